"""VeRA's and AdaLoRA's adapters, converted to LoRAs, compute what PEFT computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.convert import convert_adapter

from tests.support.peft_oracle import TinyAdapter, reference_logits
from tests.support.tiny_models import TinyModel, tiny_model

from .checks import TOLERANCE, error
from .sides import open_model, read, words

pytestmark = pytest.mark.parity

TOKENS = words(30, 90)


def save(tiny: TinyModel, folder: Path, config: Any, *, masked: bool = False) -> TinyAdapter:
    """A random adapter as PEFT writes it; if `masked`, as after AdaLoRA has taken ranks away."""
    import torch
    from peft import get_peft_model

    model = get_peft_model(tiny.load(), config)
    generator = torch.Generator().manual_seed(1)
    masks = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "lambda" in name:
                size = 1.0 if "lambda" in name or "lora_E" in name else parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
            if masked and "lora_E" in name:
                keep = torch.rand(len(parameter), generator=generator) < 0.5
                parameter[~keep] = 0.0
                masks[name.removeprefix("base_model.model.")] = keep.tolist()
    assert not masked or {sum(mask) for mask in masks.values()} >= {0, 1, 2}
    model.peft_config["default"].rank_pattern = masks or None
    model.save_pretrained(str(folder))
    return TinyAdapter(tiny, folder, None)


def vera(family: str) -> Any:
    from peft import VeraConfig

    targets = ["c_attn", "c_proj"] if family == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    return VeraConfig(task_type="CAUSAL_LM", r=24, target_modules=targets)


def adalora(alpha: int) -> Any:
    from peft import AdaLoraConfig

    return AdaLoraConfig(
        task_type="CAUSAL_LM",
        init_r=4,
        lora_alpha=alpha,
        total_step=10,
        target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
    )


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "vera"),
        ("qwen2", "vera"),
        ("gpt2", "vera"),
        ("llama", "adalora"),
        ("qwen2", "adalora-masked"),
        ("llama", "adalora-without-alpha"),
    ],
)
def test_logits(family: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny = tiny_model(family)
    config = vera(family) if kind == "vera" else adalora(0 if "without" in kind else 8)
    adapter = save(tiny, tmp_path / "peft", config, masked="masked" in kind)
    report = convert_adapter(adapter.directory, tiny.gguf, tmp_path / "it.gguf", outtype="f32")
    assert report.kind == "lora"
    theirs = reference_logits(tiny, adapter, TOKENS)
    with open_model(tiny, {"it": report.out}) as model:
        assert error(read(model, TOKENS, "it"), theirs) < (2e-3 if family == "gpt2" else 1e-4)
    base = reference_logits(tiny, None, TOKENS)
    assert error(theirs, base) > 20 * TOLERANCE
    assert np.isfinite(theirs).all()
