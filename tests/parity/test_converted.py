"""What the converter writes computes what PEFT computes: every family, targets and scales."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.convert import convert_adapter
from alora_gguf.convert.base.hf_config import KINDS

from alora_gguf.errors import UnsupportedAdapterError
from tests.support.peft_oracle import (
    PEFT_ADDS_EXPERTS,
    TinyAdapter,
    has_experts,
    make_adapter,
    reference_logits,
)
from tests.support.tiny_families import ALL_FAMILIES, CONVERTED_FAMILIES, FUSED_FAMILIES
from tests.support.tiny_models import TinyModel, tiny_model

from .checks import TOLERANCE, assert_close, error
from .sides import Sides, gguf_of, open_model, read, words
from .wrong_layouts import write_mistakes

pytestmark = [
    pytest.mark.parity,
    # not every pattern has something to match in every family
    pytest.mark.filterwarnings("ignore:The following .*_pattern keys did not match"),
]

INVOCATION = (5, 5, 6)
TOKENS = [*words(20, 60), *INVOCATION, *words(9, 61)]

# whose experts have little weight in the tiny models' results
FAINT_EXPERTS = ("llama4", "ernie4_5moe")
# whose attention is only another name for llama's: all linear layers are enough
_ALIKE = list(CONVERTED_FAMILIES)[list(CONVERTED_FAMILIES).index("gemma") :]
CASES = [
    (family, targets)
    for family in (*ALL_FAMILIES, *CONVERTED_FAMILIES)
    for targets in ("attention", "all-linear", "experts")
    if (targets != "experts" or has_experts(family))
    and (targets != "attention" or family not in _ALIKE)
]

# Ranks and alphas of some of each family's modules and parameters. PEFT takes the first key that
# matches, and everything else has rank 8 and alpha 6.
RANKS = {
    r"layers\.1\.self_attn\.q_proj": 3,
    "q_proj": 5,
    "qkv_proj": 6,
    "c_attn": 6,
    r"h\.\d+\.mlp\.c_proj": 4,
    "in_proj": 4,
    "in_proj_qkvz?": 6,
    "in_proj_a": 1,
    "query_key_value": 6,
    "input_linear": 12,
    "up_proj": 7,
    "down_proj": 2,
    "shared_expert_gate": 1,
    r"(gate|router)\.weight": 1,
}
GATE_UP = {"gate_up_proj": 6}
ALPHAS = {
    r"layers\.2\..*": 5,
    "v_proj": 11,
    "c_proj": 9,
    "out_proj": 3,
    "output_linear": 4,
    "gate_up_proj": 7,
    r"experts\.down_proj": 3,
    r"(gate|router)\.weight": 2,
}


def options(family: str, targets: str, *, scaled: bool) -> dict[str, Any]:
    if not scaled:
        return {}
    # where PEFT rewrites "all-linear" it makes such a pattern itself, and refuses what it has made
    # of two of them
    rewritten = family in PEFT_ADDS_EXPERTS and targets == "all-linear"
    ranks = RANKS if rewritten else {**RANKS, **GATE_UP}
    return {"alpha": 6, "use_rslora": True, "rank_pattern": ranks, "alpha_pattern": ALPHAS}


def size(family: str, targets: str) -> float:
    """How large an adapter's output must be that its effect is seen."""
    return 0.5 if targets == "experts" and family in FAINT_EXPERTS else 0.1


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def sides(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sides]:
    pytest.importorskip("peft")
    family, targets = request.param
    tiny, folder = tiny_model(family), tmp_path_factory.mktemp(family)
    adapters = {}
    for i, name in enumerate(("lora", "alora", "scaled lora", "scaled alora")):
        adapters[name] = make_adapter(
            tiny,
            folder / name,
            targets=targets,
            invocation=INVOCATION if "alora" in name else None,
            seed=60 + i,
            size=size(family, targets),
            **options(family, targets, scaled="scaled" in name),
        )
    files = {name: gguf_of(a, folder / f"{name}.gguf") for name, a in adapters.items()}
    with open_model(tiny, files) as model:
        yield Sides(tiny, adapters, files, model)


@pytest.mark.parametrize("name", ["lora", "alora", "scaled lora", "scaled alora"])
def test_logits(sides: Sides, name: str) -> None:
    theirs = sides.theirs(TOKENS, name)
    assert_close(sides, sides.ours(TOKENS, name), theirs, name)
    assert error(theirs, sides.theirs(TOKENS)) > 20 * TOLERANCE


def test_mistakes_would_be_seen(sides: Sides, tmp_path: Path) -> None:
    files = write_mistakes(sides.files["lora"], tmp_path)
    assert files, "no mistake concerns this case"
    theirs = sides.theirs(TOKENS, "lora")
    with open_model(sides.tiny, files) as model:
        for name in files:
            # least of all where queries only meet ALiBi, and of experts with little weight
            assert error(read(model, TOKENS, name), theirs) > 3 * TOLERANCE, name


def test_a_model_directory_is_as_good_a_base(sides: Sides, tmp_path: Path) -> None:
    """What its configuration says of the tensors is what upstream's converter made of them; where
    that is not known, a GGUF is asked for.
    """
    name = "scaled alora"
    from_directory = dataclasses.replace(
        sides.adapters[name], model=dataclasses.replace(sides.tiny, gguf=sides.tiny.directory)
    )
    config = json.loads((sides.tiny.directory / "config.json").read_text())
    if config["model_type"] not in KINDS:
        with pytest.raises(UnsupportedAdapterError, match="give the base as a GGUF"):
            gguf_of(from_directory, tmp_path / "it.gguf")
        return
    written = gguf_of(from_directory, tmp_path / "it.gguf")
    assert written.read_bytes() == sides.files[name].read_bytes()


@pytest.mark.parametrize("family", FUSED_FAMILIES)
def test_a_base_with_fused_projections(family: str, tmp_path: Path) -> None:
    """Query, key and value rows go into one tensor, also where some of them have no adapter."""
    tiny = tiny_model(family).fused
    targets = {
        "all": ["q_proj", "k_proj", "v_proj"],
        "some": ["v_proj", "q_proj"],
        "one": ["k_proj"],
    }
    adapters = {
        name: make_adapter(
            tiny,
            tmp_path / name,
            invocation=INVOCATION,
            size=0.3,
            target_modules=modules,
            **options(family, "attention", scaled=True),
        )
        for name, modules in targets.items()
    }
    check(tiny, adapters, tmp_path)


# how far rounding the weights moves the logits of a model this small and this much adapted
ROUNDED = {"f16": 2e-3, "bf16": 1e-2, "q8_0": 2e-2}


@pytest.mark.parametrize("outtype", ROUNDED)
@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_rounded_weights(family: str, outtype: str, tmp_path: Path) -> None:
    tiny = tiny_model(family)
    adapter = make_adapter(tiny, tmp_path / "a", targets="all-linear", rank=32, alpha=32)
    path = tmp_path / "a.gguf"
    convert_adapter(adapter.directory, tiny.gguf, path, outtype=outtype)
    theirs = reference_logits(tiny, adapter, TOKENS)
    with open_model(tiny, {"a": path}) as model:
        found = error(read(model, TOKENS, "a"), theirs)
    assert 1e-5 < found < ROUNDED[outtype]


@pytest.mark.parametrize("family", ["llama", "olmo2", "granitemoehybrid"])
def test_embeddings_and_output(family: str, tmp_path: Path) -> None:
    tiny = tiny_model(family)
    targets = {
        "embedding": ["embed_tokens"],
        "output": ["lm_head"],
        "both": ["embed_tokens", "lm_head"],
    }
    adapters = {
        name: make_adapter(
            tiny,
            tmp_path / name,
            target_modules=modules,
            use_rslora=True,
            alpha_pattern={"lm_head": 3},
        )
        for name, modules in targets.items()
    }
    adapters["output of an alora"] = make_adapter(
        tiny, tmp_path / "alora", target_modules=["lm_head", "q_proj"], invocation=INVOCATION
    )
    check(tiny, adapters, tmp_path)


def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path: Path) -> None:
    """It multiplies Gemma 4's per_expert_scale before it adds the adapter's part."""
    tiny = tiny_model("gemma4-moe")
    parameters = ["experts.down_proj"]
    adapter = make_adapter(tiny, tmp_path / "a", targets="experts", target_parameters=parameters)
    with pytest.raises(UnsupportedAdapterError, match=r"down_proj' cannot .* gemma4: llama"):
        gguf_of(adapter, tmp_path / "a.gguf")


def check(tiny: TinyModel, adapters: dict[str, TinyAdapter], folder: Path) -> None:
    files = {name: gguf_of(a, folder / f"{name}.gguf") for name, a in adapters.items()}
    with open_model(tiny, files) as model:
        both = Sides(tiny, adapters, files, model)
        for name in adapters:
            theirs = both.theirs(TOKENS, name)
            assert_close(both, both.ours(TOKENS, name), theirs, name)
            assert error(theirs, both.theirs(TOKENS)) > 20 * TOLERANCE, name
