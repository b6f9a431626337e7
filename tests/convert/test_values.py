"""Rounding happens once, and to nearest even."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from alora_gguf.convert.values import encode, fold

from alora_gguf.errors import ConvertError


def bf16(values: np.ndarray) -> np.ndarray:
    data = encode(values, "bf16", "t").data
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
    data = encode(np.array([tie + 2.0**-40, tie - 2.0**-40, tie]), "f16", "t").data
    np.testing.assert_array_equal(np.frombuffer(data, "<f2"), [1 + 2.0**-10, 1, 1])


def test_folding_by_one_changes_nothing() -> None:
    b = np.ones((2, 2), np.float32)
    assert fold(b, 1.0) is b
    assert fold(b, 0.3).dtype == np.float64


@pytest.mark.parametrize(("outtype", "value"), [("f16", 7e4), ("bf16", 3.4e38), ("f32", 1e39)])
def test_overflow(outtype: str, value: float) -> None:
    with pytest.raises(ConvertError, match=f"'t' has values up to .*, too large for {outtype}"):
        encode(np.array([1.0, -value]), outtype, "t")


def test_lost_values_are_counted() -> None:
    assert encode(np.array([1.0, 1e-30, 0.0]), "f16", "t").lost == 1


def test_f16_from_float32_is_numpys_at_every_step() -> None:
    """All float16, the middles between them, and the float32 beside these."""
    finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (finite[:-1] + finite[1:]) / 2
    exact = np.concatenate([finite, middles])
    around = [np.nextafter(exact, np.float32(x), dtype=np.float32) for x in (-1, np.inf)]
    positive = np.concatenate([exact, *around])
    values = np.concatenate([positive, -positive, np.float32([1e-45, -1e-45, 65519.996, -0.0])])
    values = values[np.abs(values) < 65520]
    encoded = encode(values, "f16", "t")
    assert bytes(encoded.data) == values.astype("<f2").tobytes()
    assert encoded.lost == np.count_nonzero((values != 0) & (values.astype("<f2") == 0)) > 0


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_no_number_is_refused(outtype: str, value: float, dtype: type) -> None:
    with pytest.raises(ConvertError):
        encode(np.array([1.0, value] * 16, dtype), outtype, "t")


@pytest.mark.parametrize("value", [65520.0, 1e30, 3e38])
def test_f16_from_float32_overflows(value: float) -> None:
    with pytest.raises(ConvertError, match="too large for f16"):
        encode(np.array([value], np.float32), "f16", "t")


def test_q8_0_is_ggufs_and_ggmls() -> None:
    import gguf

    values = np.random.default_rng(3).standard_normal((4, 64)).astype(np.float32)
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    encoded = encode(values, "q8_0", "t")
    assert bytes(encoded.data) == expected.tobytes()
    assert encoded.acts
    assert len(encoded.data) == 4 * 2 * 34


def test_q8_0_overflow_and_underflow() -> None:
    with pytest.raises(ConvertError, match="too large for q8_0"):
        encode(np.full((1, 32), 1e8), "q8_0", "t")
    with pytest.raises(ConvertError, match="all values of tensor 't' are too small for q8_0"):
        encode(np.full((1, 32), 1e-9), "q8_0", "t")
    assert not encode(np.zeros((1, 32)), "q8_0", "t").acts
