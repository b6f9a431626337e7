"""Adapters with a module per expert, as PEFT saved them under transformers 4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.peft_oracle import reference_logits
from tests.support.tiny_models import tiny_model
from tests.support.transformers4 import OLD_FAMILIES, make_old_adapter, old_reference_logits

from .checks import TOLERANCE, assert_close, error
from .sides import Sides, gguf_of, open_model, words

pytestmark = pytest.mark.parity
pytest.importorskip("peft")

INVOCATION = (5, 5, 6)
TOKENS = [*words(20, 70), *INVOCATION, *words(9, 71)]

# Per family: what only some experts, or one of the two halves of a fused tensor, have. Experts may
# differ in rank, too.
WITHOUT = {
    "mixtral": r"experts\.2|w3|gate$",
    "qwen2moe": r"experts\.0\.|experts\.1\.up_proj|shared_expert",
    "qwen3moe": r"experts\.\d\.(gate_proj|down_proj)|self_attn",
    "granitemoe": "input_linear|self_attn",
    "granitemoe-square": "output_linear|self_attn",
}
RANKS = {
    r"layers\.1\..*\.(w1|gate_proj)": 2,
    r"experts\.3\.(w[123]|\w+_proj)": 6,
    r"(gate|router\.layer)": 3,
    r"output_linear\.weight": 5,
}
ALPHAS = {r"experts\.1\..*": 3, "q_proj": 5, r"input_linear\.weight": 4}


@pytest.mark.parametrize("family", ["mixtral", "qwen3moe"])
def test_the_reference_equals_peft(family: str, tmp_path: Path) -> None:
    """Where PEFT itself converts them rightly: without rsLoRA."""
    adapter = make_old_adapter(tiny_model(family), tmp_path / "a")
    theirs = reference_logits(adapter.model, adapter, TOKENS)
    assert error(old_reference_logits(adapter, TOKENS), theirs) < 1e-5
    assert error(theirs, reference_logits(adapter.model, None, TOKENS)) > 20 * TOLERANCE


@pytest.mark.parametrize("family", OLD_FAMILIES)
def test_converted(family: str, tmp_path: Path) -> None:
    tiny = tiny_model(family)
    scaled: dict[str, Any] = {"use_rslora": True, "rank_pattern": RANKS, "alpha_pattern": ALPHAS}
    adapters = {
        "lora": make_old_adapter(tiny, tmp_path / "lora"),
        "alora": make_old_adapter(tiny, tmp_path / "alora", invocation=INVOCATION, seed=1),
        "scaled": make_old_adapter(tiny, tmp_path / "scaled", seed=2, **scaled),
        "some": make_old_adapter(
            tiny,
            tmp_path / "some",
            invocation=INVOCATION,
            seed=3,
            without=WITHOUT[family],
            **scaled,
        ),
    }
    files = {name: gguf_of(a, tmp_path / f"{name}.gguf") for name, a in adapters.items()}
    with open_model(tiny, files) as model:
        both = Sides(tiny, adapters, files, model)
        for name, adapter in adapters.items():
            theirs = old_reference_logits(adapter, TOKENS)
            assert_close(both, both.ours(TOKENS, name), theirs, name)
            assert error(theirs, both.theirs(TOKENS)) > 20 * TOLERANCE, name
