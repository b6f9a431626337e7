"""Rounding happens once, and to nearest even."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from alora_gguf.convert.values import encode, fold, head_order

from alora_gguf.errors import ConvertError


def bf16(values: np.ndarray) -> np.ndarray:
    data, _ = encode(values, "bf16", "t")
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def nearest_bf16(value: float) -> float:
    """The bfloat16 nearest to a float64, by exact comparison of all neighbours."""
    around = np.float32(value).view(np.uint32) >> 16 << 16
    exact = Fraction(value)
    options = [
        np.uint32(bits).view(np.float32) for bits in (around - 65536, around, around + 65536)
    ]

    def key(option: np.float32) -> tuple[Fraction, int]:
        odd = int(option.view(np.uint32) >> 16) & 1
        return abs(Fraction(float(option)) - exact), odd

    return float(min(options, key=key))


def test_bf16_from_float64_rounds_once() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(2000)
    # just beside a tie of bfloat16, nearer than float32 can tell: two roundings would go wrong
    tie = 1 + 2.0**-8
    hostile = [tie + 2.0**-40, tie - 2.0**-40, tie, -tie - 2.0**-40, 3 + 2.0**-7 - 2.0**-38]
    for value in [*values, *hostile]:
        assert bf16(np.array([value]))[0] == nearest_bf16(value), value.hex()


def test_bf16_from_float32_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(1).integers(0x30000000, 0x47000000, 5000, dtype=np.uint32)
    values = bits.view(np.float32)
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(bf16(values), expected)


def test_f16_from_float64_rounds_once() -> None:
    tie = 1 + 2.0**-11  # between two float16
    data, _ = encode(np.array([tie + 2.0**-40, tie - 2.0**-40, tie]), "f16", "t")
    np.testing.assert_array_equal(np.frombuffer(data, "<f2"), [1 + 2.0**-10, 1, 1])


def test_folding_by_one_changes_nothing() -> None:
    b = np.ones((2, 2), np.float32)
    assert fold(b, 1.0) is b
    assert fold(b, 0.3).dtype == np.float64


def test_head_order_interleaves_halves() -> None:
    rows = np.arange(8.0).reshape(8, 1)
    assert head_order(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(("outtype", "value"), [("f16", 7e4), ("bf16", 3.4e38), ("f32", 1e39)])
def test_overflow(outtype: str, value: float) -> None:
    with pytest.raises(ConvertError, match=f"'t' has values up to .*, too large for {outtype}"):
        encode(np.array([1.0, -value]), outtype, "t")


def test_lost_values_are_counted() -> None:
    assert encode(np.array([1.0, 1e-30, 0.0]), "f16", "t")[1] == 1
