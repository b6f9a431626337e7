"""A base's GGUF as transformers' model: every family against the directory that it was made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from alora_gguf.errors import InputError, MissingFileError, ModelError
from alora_gguf.gguf.header import read_header
from alora_gguf.train.hf_model import load_model, model_bytes
from tests.support.gguf_bytes import tensor_array
from tests.support.make_gguf import rewritten
from tests.support.tiny_families import ALL_FAMILIES, FUSED_FAMILIES
from tests.support.tiny_models import TinyModel, tiny_model

Kind = gguf.GGMLQuantizationType
IDS = torch.tensor([[(7 * i * i + 3 * i) % 320 for i in range(40)]])
GEMMA = ("gemma2", "gemma3")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(IDS).logits
    return out


def with_eager(model: Any) -> Any:
    """transformers' attention without sdpa, which rounds in another order."""
    model.set_attn_implementation("eager")
    return model


def served(family: str, name: str, values: torch.Tensor) -> torch.Tensor:
    """What is computed with: of gemma's norms their sum with one, which is what a GGUF keeps."""
    return values + 1 if family in GEMMA and name.endswith("norm.weight") else values


CASES = [(family, False) for family in ALL_FAMILIES] + [(family, True) for family in FUSED_FAMILIES]


@pytest.mark.parity
@pytest.mark.parametrize(("family", "fused"), CASES)
def test_a_gguf_is_the_model_that_it_was_made_of(family: str, fused: bool) -> None:
    tiny = tiny_model(family)
    original = tiny.load()
    ours = with_eager(load_model(tiny.fused.gguf if fused else tiny.gguf))
    theirs, own = dict(original.named_parameters()), dict(ours.named_parameters())
    assert own.keys() == theirs.keys()
    for name, values in own.items():
        assert torch.equal(served(family, name, values), served(family, name, theirs[name])), name
    assert not ours.training
    assert not any(values.requires_grad for values in own.values())
    assert (logits(ours) - logits(original)).abs().max() < 1e-5


@pytest.fixture(scope="module")
def llama() -> TinyModel:
    return tiny_model("llama")


@pytest.mark.parity
@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1, Kind.F16, Kind.BF16])
def test_quantised_weights_are_as_gguf_has_them(
    kind: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    tiny = tiny_model("mixtral")
    header = read_header(tiny.gguf)
    packed, wide = dict[str, Any](), dict[str, Any]()
    for name, info in header.tensors.items():
        if len(info.shape) > 1:
            data = quantize(tensor_array(header, name), kind)
            packed[name] = (data, kind)
            wide[name] = dequantize(data, kind)
    one = load_model(rewritten(tiny.gguf, tmp_path / "packed.gguf", tensors=packed))
    other = load_model(rewritten(tiny.gguf, tmp_path / "wide.gguf", tensors=wide))
    for (name, values), expected in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(values, expected), name


@pytest.mark.parity
def test_gate_and_up_of_experts_may_be_one_tensor(tmp_path: Path) -> None:
    tiny = tiny_model("mixtral")
    header, changed = read_header(tiny.gguf), dict[str, Any]()
    for block in ("blk.0", "blk.1", "blk.2"):
        parts = [f"{block}.ffn_{part}_exps.weight" for part in ("gate", "up")]
        joined = np.concatenate([tensor_array(header, part) for part in parts], axis=1)
        changed |= {**dict.fromkeys(parts), f"{block}.ffn_gate_up_exps.weight": joined}
    ours = load_model(rewritten(tiny.gguf, tmp_path / "base.gguf", tensors=changed))
    for one, other in zip(ours.parameters(), load_model(tiny.gguf).parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parity
def test_the_dtype_is_that_of_every_parameter(llama: TinyModel) -> None:
    model = load_model(llama.gguf, dtype="bfloat16")
    assert {values.dtype for values in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.lm_head.weight, load_model(llama.gguf).lm_head.weight.bfloat16())


@pytest.mark.parity
def test_its_size_is_known_from_the_header(llama: TinyModel) -> None:
    sizes = [values.numel() for values in load_model(llama.gguf).parameters()]
    assert model_bytes(llama.gguf, "bfloat16") == 2 * sum(sizes) + 4 * max(sizes)


# How positions are scaled ------------------------------------------------------------------------


def llama3_factors(theta: float, head: int, rope: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """What upstream's converter makes of Llama 3.1's configuration."""
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    factors = []
    for i in range(0, head, 2):
        length = 2 * math.pi * theta ** (i / head)
        smooth = (low / length - 1) / (low / high - 1) if high <= length <= low else 0.0
        middle = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors.append(1.0 if length < high else middle)
    return np.array(factors, np.float32)


ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parity
@pytest.mark.parametrize("kind", ROPES)
def test_positions_are_scaled_as_transformers_does(
    kind: str, llama: TinyModel, tmp_path: Path
) -> None:
    import transformers

    rope = ROPES[kind]
    config = transformers.AutoConfig.from_pretrained(llama.directory)
    config.rope_parameters = {"rope_theta": 10000.0, **rope}
    auto: Any = transformers.AutoModelForCausalLM
    original = auto.from_pretrained(llama.directory, config=config, dtype=torch.float32).eval()
    keys: dict[str, Any] = {
        "llama.rope.scaling.type": kind,
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 16,
    }
    tensors = {"rope_freqs.weight": llama3_factors(10000.0, 32, rope)} if kind == "llama3" else {}
    path = rewritten(llama.gguf, tmp_path / "base.gguf", {} if tensors else keys, tensors)
    ours = load_model(path)
    assert (logits(ours) - logits(load_model(llama.gguf))).abs().max() > 0.01
    assert (logits(ours) - logits(original)).abs().max() < 2e-5


# What is refused ---------------------------------------------------------------------------------

X = np.zeros(128, np.float32)
WRONG: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "missing norm": (
        "llama",
        {},
        {"blk.1.ffn_norm.weight": None},
        "there is no tensor 'blk.1.ffn_norm.weight', which transformers'",
    ),
    "missing weight": (
        "llama",
        {},
        {"blk.2.ffn_up.weight": None},
        "there is no tensor 'blk.2.ffn_up.weight'",
    ),
    "a tensor too many": (
        "llama",
        {},
        {"blk.1.attn_sub_norm.weight": X},
        "tensor 'blk.1.attn_sub_norm.weight' would not be used",
    ),
    "frequencies that the graph does not take": (
        "qwen2",
        {},
        {"rope_freqs.weight": X[:16]},
        "tensor 'rope_freqs.weight' would not be used",
    ),
    "a half of the biases": (
        "qwen2",
        {},
        {"blk.0.attn_k.bias": None},
        "there is no tensor 'blk.0.attn_k.bias'",
    ),
    "another shape": (
        "llama",
        {},
        {"blk.0.ffn_down.weight": np.zeros((128, 160), np.float32)},
        "tensor 'blk.0.ffn_down.weight' of shape [128, 160] does not fit",
    ),
    "other numbers of heads": (
        "llama",
        {"llama.attention.head_count_kv": 1},
        {},
        "'blk.0.attn_k.weight' of shape [64, 128] does not fit",
    ),
    "weights in three dimensions": (
        "llama",
        {},
        {"blk.0.attn_q.weight": np.zeros((2, 128, 128), np.float32)},
        "tensor 'blk.0.attn_q.weight' of shape [2, 128, 128] does not fit",
    ),
    "a vector for a matrix": (
        "llama",
        {},
        {"blk.0.ffn_down.weight": np.zeros(128, np.float32)},
        "tensor 'blk.0.ffn_down.weight' of shape [128] does not fit",
    ),
    "more memory than the file accounts for": (
        "llama",
        {"llama.feed_forward_length": 2**30},
        {},
        "but a model as its metadata describe it has 1,",
    ),
    "heads that do not divide": (
        "gpt2",
        {"gpt2.attention.head_count": 12},
        {},
        "transformers' GPT2Config refuses what its metadata says",
    ),
    "heads of nothing": (
        "qwen2",
        {"qwen2.attention.head_count": 255},
        {},
        "its attention heads have 0 values",
    ),
    "more positions than a head has": (
        "phi3",
        {"phi3.rope.dimension_count": 256},
        {},
        "'phi3.rope.dimension_count' is 256, expected the 32 of a head",
    ),
    "two bases of positions": (
        "gemma2",
        {"gemma2.rope.freq_base_swa": 30.0},
        {},
        "'gemma2.rope.freq_base_swa' is 30.0, unlike its other layers' base",
    ),
    "positive states": (
        "granitemoehybrid",
        {},
        {"blk.0.ssm_a": np.ones((8, 1), np.float32)},
        "'blk.0.ssm_a' has values that are not negative",
    ),
    "a scaling that no one knows": (
        "llama",
        {"llama.rope.scaling.type": "cubic"},
        {},
        "llama.rope.scaling.type is 'cubic', expected one of none, linear, yarn, longrope",
    ),
    "LongRoPE": (
        "phi3",
        {"phi3.rope.scaling.type": "longrope"},
        {},
        "'phi3.rope.scaling.type' is 'longrope', of which transformers computes another model",
    ),
    "scaled without a scaling": (
        "llama",
        {"llama.rope.scaling.attn_factor": 1.5},
        {},
        "'llama.rope.scaling.attn_factor' is 1.5 with a scaling of type 'linear'",
    ),
    "Olmo 3": (
        "olmo2",
        {"olmo2.attention.sliding_window": 8},
        {},
        "'olmo2.attention.sliding_window' is 8, as in Olmo 3",
    ),
    "half of a head": (
        "granitemoehybrid",
        {"granitehybrid.rope.dimension_count": 16},
        {},
        "'granitehybrid.rope.dimension_count' is 16, expected the 32 of a head",
    ),
    "a key of another type": (
        "llama",
        {"llama.rope.freq_base": "10000"},
        {},
        "'llama.rope.freq_base' is of type string, expected a number",
    ),
    "no epsilon of its norms": (
        "qwen3",
        {"qwen3.attention.layer_norm_rms_epsilon": None},
        {},
        "the metadata key 'qwen3.attention.layer_norm_rms_epsilon' is missing",
    ),
    "no epsilon": (
        "gpt2",
        {"gpt2.attention.layer_norm_epsilon": None},
        {},
        "the metadata key 'gpt2.attention.layer_norm_epsilon' is missing",
    ),
    "not causal": ("llama", {"llama.attention.causal": False}, {}, "is not causal"),
    "another family": ("llama", {"general.architecture": "bloom"}, {}, "supported families: llama"),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_exact_is_refused(name: str, tmp_path: Path) -> None:
    family, keys, tensors, expected = WRONG[name]
    path = rewritten(tiny_model(family).gguf, tmp_path / "base.gguf", keys, tensors)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("call", [load_model, model_bytes])
def test_arguments_are_checked(call: Callable[..., Any], llama: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dtype is 'int4', expected one of float32, bfloat16"):
        call(llama.gguf, dtype="int4")
    with pytest.raises(MissingFileError):
        call(tmp_path / "none.gguf")
