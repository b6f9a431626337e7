"""inspect_gguf of what is malformed: described, with its problems, as the runtime sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alora_gguf import AdapterFile
from alora_gguf.errors import AdapterFormatError, FileFormatError
from alora_gguf.gguf.inspection import (
    BaseSummary,
    inspect_gguf,
)
from alora_gguf.gguf.parser import ValueType
from tests.support import corrupt
from tests.support.gguf_bytes import Tensors
from tests.support.inspected import adapter, base, lora

Q = "blk.0.attn_q.weight"
FINE = lora("blk.1.attn_q", 32, 32)
UNSOUND: dict[str, tuple[Tensors, str]] = {
    "half a pair": (
        {f"{Q}.lora_a": ("F16", (32, 8))},
        f"'{Q}.lora_b' is missing, its counterpart is there",
    ),
    "the other half": (
        {f"{Q}.lora_b": ("F16", (8, 32))},
        f"'{Q}.lora_a' is missing, its counterpart is there",
    ),
    "ranks": (
        {f"{Q}.lora_a": ("F16", (32, 8)), f"{Q}.lora_b": ("F16", (4, 32))},
        f"'{Q}': A [32, 8] has rank 8, but B [4, 32] has rank 4",
    ),
    "experts": (
        {f"{Q}.lora_a": ("F16", (32, 8, 2)), f"{Q}.lora_b": ("F16", (8, 32))},
        f"'{Q}': A [32, 8, 2] and B [8, 32] differ in their experts",
    ),
    "dimensions": (
        {f"{Q}.lora_a": ("F16", (32,)), f"{Q}.lora_b": ("F16", (8, 32))},
        f"'{Q}.lora_a' has the shape [32], expected 2 dimensions, or 3 with experts, and none of "
        "them 0",
    ),
    "a bias": ({"blk.0.attn_q.bias": ("F32", (32,))}, "'blk.0.attn_q.bias' ends in neither"),
    "a norm": (
        {"blk.0.attn_norm.weight": ("F32", (32,))},
        "'blk.0.attn_norm.weight' is a trained norm, which llama.cpp ignores",
    ),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_what_is_no_pair_is_named_and_the_rest_shown(case: str, tmp_path: Path) -> None:
    tensors, problem = UNSOUND[case]
    summary = adapter(tmp_path, {**tensors, **FINE})
    assert len(summary.problems) == 1
    assert problem in summary.problems[0]
    assert [(t.name, t.layers) for t in summary.targets] == [("attn_q", (1,))]
    assert summary.n_tensors == len(tensors) + 2


SHOWN: dict[str, tuple[Tensors, str]] = {
    "type": (lora("blk.0.attn_q", 32, 32, kind="I32"), f"'{Q}.lora_a' is I32, expected one of F32"),
    "rank": (
        lora("blk.0.attn_q", 1, 1, rank=4097),
        f"'{Q}' has rank 4097, at most 4096 is supported",
    ),
}


@pytest.mark.parametrize("case", SHOWN)
def test_what_the_runtime_refuses_is_still_a_pair(case: str, tmp_path: Path) -> None:
    tensors, problem = SHOWN[case]
    summary = adapter(tmp_path, tensors)
    assert problem in summary.problems[0]
    assert [(t.name, t.layers) for t in summary.targets] == [("attn_q", (0,))]


KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "type missing": ({"general.type": None}, "general.type is missing, expected 'adapter'"),
    "type": ({"general.type": "model"}, "general.type is 'model', expected 'adapter'"),
    "type's type": ({"general.type": 3}, "general.type is of type uint32, expected a string"),
    "technique missing": ({"adapter.type": None}, "adapter.type is missing, expected 'lora'"),
    "technique": ({"adapter.type": "ia3"}, "adapter.type is 'ia3', expected 'lora'"),
    "no architecture": (
        {"general.architecture": ""},
        "general.architecture is missing or empty; it names the base's kind",
    ),
    "architecture's type": (
        {"general.architecture": True},
        "general.architecture is of type bool, expected a string",
    ),
    "name's type": (
        {"general.name": ["a", "b"]},
        "general.name is an array of 2 string, expected a string",
    ),
    "alpha's type": (
        {"adapter.lora.alpha": (ValueType.FLOAT64, 16.0)},
        "adapter.lora.alpha is of type float64, expected a float32",
    ),
    "alpha": (
        {"adapter.lora.alpha": float("inf")},
        "adapter.lora.alpha is inf, expected a finite number",
    ),
    "invocation's type": (
        {"adapter.alora.invocation_tokens": ["a"]},
        "adapter.alora.invocation_tokens is an array of 1 string, expected an array of uint32",
    ),
    "empty invocation": (
        {"adapter.alora.invocation_tokens": []},
        "adapter.alora.invocation_tokens is empty, which makes it a plain LoRA that is on for "
        "every token; leave the key out if that is meant",
    ),
    "no id": (
        {"adapter.alora.invocation_tokens": [1, 2**31]},
        "adapter.alora.invocation_tokens holds 2147483648, which is not a token id",
    ),
    "text's type": (
        {"alora.invocation_text": 1.0},
        "alora.invocation_text is of type float32, expected a string",
    ),
}


@pytest.mark.parametrize("case", KEYS)
def test_keys_that_are_not_what_they_should_be(case: str, tmp_path: Path) -> None:
    changes, problem = KEYS[case]
    summary = adapter(tmp_path, changes=changes)
    assert summary.problems == (problem,)
    assert summary.targets[0].layers == (0,)


def test_an_adapter_is_known_by_either_sign(tmp_path: Path) -> None:
    """Where general.type is missing: by adapter.type, or by the names of its tensors."""
    missing = "general.type is missing, expected 'adapter'"
    by_names = adapter(tmp_path, changes={"general.type": None, "adapter.type": None})
    assert by_names.problems == (missing, "adapter.type is missing, expected 'lora'")
    by_key = adapter(tmp_path, {"x": ("F32", (1,))}, {"general.type": None})
    assert by_key.problems == (missing, "tensor 'x' ends in neither .lora_a nor .lora_b")


def test_the_largest_that_the_runtime_takes(tmp_path: Path) -> None:
    ids = {"adapter.alora.invocation_tokens": [2**31 - 1]}
    summary = adapter(tmp_path, lora("blk.0.attn_q", 1, 1, rank=4096), ids)
    assert summary.problems == ()


def test_an_alpha_of_the_wrong_type_is_shown_all_the_same(tmp_path: Path) -> None:
    changes = {"adapter.lora.alpha": (ValueType.FLOAT64, 16.0)}
    assert adapter(tmp_path, changes=changes).alpha == 16.0
    assert adapter(tmp_path, changes={"adapter.lora.alpha": True}).alpha is None


@pytest.mark.parametrize("case", corrupt.ADAPTERS)
def test_problems_are_what_the_runtime_refuses(case: str, tmp_path: Path) -> None:
    """An adapter has problems exactly if AdapterFile refuses it, values of weights apart."""
    make, _, _, _ = corrupt.ADAPTERS[case]
    path = make(tmp_path / "adapter.gguf")
    try:
        AdapterFile.read(path)
        refusal = None
    except AdapterFormatError as error:
        refusal = str(error)
    try:
        summary = inspect_gguf(path)
    except FileFormatError as error:
        summary, refused = None, str(error)
    if summary is None:
        assert refused == refusal
    elif isinstance(summary, BaseSummary):
        assert refusal is not None
        assert "not an adapter" in refusal
    elif refusal is not None and "NaN or infinite values" in refusal:
        assert summary.problems == ()
    else:
        assert bool(summary.problems) == (refusal is not None), refusal
        assert refusal is None or f"{path}: {summary.problems[0]}; " in refusal


def test_problems_of_bases(tmp_path: Path) -> None:
    assert base(tmp_path, {}).problems == ("general.architecture is missing",)
    nothing = base(tmp_path, {"general.architecture": "llama"}, {})
    assert nothing.problems == ("holds neither weights nor a vocabulary; download the whole model",)
    odd = {
        "general.architecture": "llama",
        "llama.block_count": "many",
        "llama.embedding_length": True,
        "llama.attention.head_count": [1.5],
        "llama.attention.head_count_kv": [1] * 1025,
    }
    summary = base(tmp_path, odd)
    assert (summary.layers, summary.n_embd, summary.heads, summary.kv_heads) == (None,) * 4
    assert summary.problems == (
        "llama.block_count is of type string, expected an integer",
        "llama.embedding_length is of type bool, expected an integer",
        "llama.attention.head_count is an array of 1 float32, expected an integer, or at most "
        "1024 of them",
        "llama.attention.head_count_kv is an array of 1025 uint32, expected an integer, or at "
        "most 1024 of them",
    )
