"""Files of VeRA's and AdaLoRA's weights that do not go together are refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from alora_gguf.errors import AloraError, FileFormatError, UnsupportedAdapterError
from tests.support.peft_files import BLOCK, PREFIX, Case

MODULE = "model.layers.0.self_attn.k_proj"
N_IN, N_OUT = BLOCK["attn_k"]
R = 4


def values(*shape: int) -> Any:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def vera(**changes: Any) -> dict[str, Any]:
    tensors = {
        "base_model.vera_A": values(R, N_IN + 3),
        "base_model.vera_B": values(N_OUT + 5, R),
        f"{PREFIX}{MODULE}.vera_lambda_d": values(R),
        f"{PREFIX}{MODULE}.vera_lambda_b": values(N_OUT),
    }
    tensors |= {next(n for n in tensors if n.endswith(key)): v for key, v in changes.items()}
    return {name: value for name, value in tensors.items() if value is not None}


def adalora(**changes: Any) -> dict[str, Any]:
    parts = {"A": values(R, N_IN), "E": values(R, 1), "B": values(N_OUT, R), **changes}
    return {f"{PREFIX}{MODULE}.lora_{k}": v for k, v in parts.items() if v is not None}


REFUSED: list[tuple[str, dict[str, Any], type[AloraError], str]] = [
    ("VERA", vera(vera_A=None), FileFormatError, r"holds no matrix 'base_model\.vera_A'"),
    ("VERA", vera(vera_B=values(R)), FileFormatError, r"holds no matrix 'base_model\.vera_B'"),
    ("VERA", vera(vera_B=values(N_OUT, R + 1)), FileFormatError, r"expected \[r, in\] and"),
    ("VERA", vera(lambda_d=None), FileFormatError, r"expected vera_lambda_d \[4\] and"),
    ("VERA", vera(lambda_d=values(R + 1)), FileFormatError, r"'vera_lambda_d': \[5\]"),
    ("VERA", vera(lambda_b=values(N_OUT, 1)), FileFormatError, r"vera_lambda_b \[out\]"),
    ("VERA", vera(vera_A=values(R, N_IN - 1)), FileFormatError, "maps 16 to 8 values, more than"),
    ("VERA", vera(vera_B=values(N_OUT - 1, R)), FileFormatError, "maps 16 to 8 values, more than"),
    ("VERA", {**vera(), f"{PREFIX}{MODULE}.bias": values(N_OUT)}, UnsupportedAdapterError,
     "is none of the tuner's factors"),
    ("ADALORA", adalora(E=None), FileFormatError, r"lora_E \[\]"),
    ("ADALORA", adalora(E=values(R)), FileFormatError, r"expected \[r, in\], \[r, 1\] and"),
    ("ADALORA", adalora(B=values(N_OUT, R + 1)), FileFormatError, r"lora_B \[8, 5\]"),
    ("ADALORA", {**adalora(), f"{PREFIX}{MODULE}.bias": values(N_OUT)}, UnsupportedAdapterError,
     "is none of the tuner's factors"),
]  # fmt: skip


@pytest.mark.parametrize(("tuner", "tensors", "error", "message"), REFUSED)
def test_refused(
    case: Case, tuner: str, tensors: dict[str, Any], error: type[AloraError], message: str
) -> None:
    case.config = {"peft_type": tuner, "r" if tuner == "VERA" else "init_r": R}
    case.tensors = tensors
    with pytest.raises(error, match=message):
        case.convert()
    assert not case.out.exists()


@pytest.mark.parametrize("tuner", ["VERA", "ADALORA"])
def test_converted(case: Case, tuner: str) -> None:
    case.config = {"peft_type": tuner, "r" if tuner == "VERA" else "init_r": R}
    case.tensors = vera() if tuner == "VERA" else adalora()
    report = case.convert()
    assert report.targets == {"attn_k": 1}
    assert report.ranks == (R,)


def test_a_rank_that_is_not_the_configurations(case: Case) -> None:
    case.config = {"peft_type": "ADALORA", "init_r": 12}
    case.tensors = adalora()
    with pytest.raises(FileFormatError, match=r"has the rank 4, but .* says 12"):
        case.convert()


@pytest.mark.parametrize("alpha", [0, -1])
def test_removed_ranks_without_an_alpha(case: Case, alpha: float) -> None:
    """PEFT's scale is then that of how many ranks there were at some moment."""
    kept = {f"{MODULE}.lora_E": [True] * (R - 1) + [False]}
    case.config = {"peft_type": "ADALORA", "init_r": R, "lora_alpha": alpha, "rank_pattern": kept}
    case.tensors = adalora()
    with pytest.raises(UnsupportedAdapterError, match="ranks were removed"):
        case.convert()
