"""Classifiers' files that are not as they should be: refused by name, and described by inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.gguf.head import BIAS, LABELS, WEIGHT
from tests.support.make_gguf import make_gguf

KEYS: dict[str, Any] = {
    "general.type": "adapter",
    "adapter.type": "classifier",
    "adapter.alora.invocation_tokens": np.array([5, 6], np.uint32).tolist(),
    LABELS.format("llama"): ["safe", "unsafe"],
}
TENSORS: dict[str, Any] = {
    WEIGHT: np.ones((2, 8), np.float32),
    BIAS: np.zeros(2, np.float32),
}


def write(path: Path, keys: dict[str, Any] | None = None, **tensors: Any) -> Path:
    import gguf

    held = {**KEYS, **(keys or {})}
    tokens = held.pop("adapter.alora.invocation_tokens")
    if tokens is not None:
        held["adapter.alora.invocation_tokens"] = (tokens, gguf.GGUFValueType.UINT32)
    weights = {**TENSORS, **{name.replace("__", "."): value for name, value in tensors.items()}}
    return make_gguf(path, held, {k: v for k, v in weights.items() if v is not None})


def test_a_sound_one(tmp_path: Path) -> None:
    file = ag.read_adapter(write(tmp_path / "a.gguf"))
    assert isinstance(file, ag.ClassifierFile)
    assert (file.labels, file.invocation) == (("safe", "unsafe"), (5, 6))
    assert (file.begins, file.rank, file.targets) == ("invocation", 0, ())
    other = ag.read_adapter(write(tmp_path / "b.gguf", cls__output__bias=np.ones(2, np.float32)))
    assert file.identity != other.identity


@pytest.mark.parametrize(
    ("keys", "tensors", "said"),
    [
        ({LABELS.format("llama"): ["safe"]}, {}, "has 1 label, expected 2 to 64"),
        ({LABELS.format("llama"): None}, {}, "has 0 labels"),
        ({LABELS.format("llama"): "safe"}, {}, "has 0 labels"),
        ({LABELS.format("llama"): ["safe", "safe"]}, {}, "has the label 'safe' twice"),
        ({LABELS.format("llama"): ["safe", ""]}, {}, "has the label '', expected a word"),
        ({"adapter.alora.invocation_tokens": None}, {}, "invocation_tokens is missing"),
        ({}, {"cls__output__weight": None}, "tensor 'cls.output.weight' is missing"),
        ({}, {"cls__output__bias": None}, "tensor 'cls.output.bias' is missing"),
        (
            {},
            {"cls__output__weight": np.ones((3, 8), np.float32)},
            r"'cls.output.weight' has the shape \[8, 3\], expected \[n_embd, 2\]",
        ),
        ({}, {"cls__output__bias": np.ones((2, 1), np.float32)}, r"expected \[2\]"),
        ({}, {"cls__output__weight": np.ones((2, 8), np.float16)}, "is F16, expected F32"),
        ({}, {"cls__output__bias": np.array([1, np.nan], np.float32)}, "NaN or infinite"),
        ({}, {"cls__x": np.ones(2, np.float32)}, "'cls.x' is no part of a classifier's head"),
    ],
)
def test_bad_ones(tmp_path: Path, keys: Any, tensors: Any, said: str) -> None:
    path = write(tmp_path / "a.gguf", keys, **tensors)
    with pytest.raises(ag.AdapterFormatError, match=rf"a\.gguf: .*{said}"):
        ag.read_adapter(path)
    summary = ag.inspect_gguf(path)
    assert isinstance(summary, ag.ClassifierSummary)
    if "NaN" not in said:  # numbers are not looked at
        assert len(summary.problems) > 0


def test_a_damaged_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ag.AdapterFormatError, match=r"a\.gguf: "):
        ag.read_adapter(path)
