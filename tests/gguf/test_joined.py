"""joined(): the product of the joined factors is the sum of the products, at the scales given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import alora_gguf as ag
from alora_gguf.analyse.factors import factors_of
from alora_gguf.gguf.joined import joined
from alora_gguf.gguf.values import BF16, F16, stored
from tests.support.make_gguf import adapter_keys, make_gguf

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
N_IN, N_OUT, N_VOCAB, N_EXPERTS = 64, 96, 20, 3


def shapes(rank: int) -> Shapes:
    """A and B in numpy's order: a matrix, experts, and an embedding, whose A is looked up in."""
    return {
        "blk.0.attn_q.weight": ((rank, N_IN), (N_OUT, rank)),
        "blk.0.ffn_up_exps.weight": ((N_EXPERTS, rank, N_IN), (N_EXPERTS, N_OUT, rank)),
        "token_embd.weight": ((N_VOCAB, rank), (N_IN, rank)),
    }


def write(
    path: Path,
    *,
    rank: int = 8,
    alpha: float | None = 16.0,
    kind: str = "F32",
    seed: int = 0,
    targets: Sequence[str] = tuple(shapes(1)),
    gain: float = 1.0,
) -> ag.AdapterFile:
    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for target in targets:
        for side, shape in zip("ab", shapes(rank)[target], strict=True):
            values = gain * rng.standard_normal(shape, np.float32)
            tensors[f"{target}.lora_{side}"] = _as(values, kind)
    keys = adapter_keys(None if alpha is None else float(alpha))
    return ag.AdapterFile.read(make_gguf(path, keys, tensors))


def _as(values: NDArray[np.float32], kind: str) -> Any:
    if kind == "F32":
        return values
    if kind == "F16":
        return values.astype(np.float16)
    wanted = gguf.GGMLQuantizationType[kind]
    return gguf.quants.quantize(values, wanted), wanted


def deltas(file: ag.AdapterFile, scale: float) -> dict[tuple[str, int | None], Any]:
    return {
        (each.place.target, each.place.expert): scale * each.scale * each.b @ each.a
        for pair in file.pairs
        for each in factors_of(file, pair)
    }


def together(parts: Sequence[tuple[ag.AdapterFile, float]], folder: Path) -> ag.AdapterFile:
    """What joined() makes, checked: it computes the sum."""
    data, scale = joined(parts)
    path = folder / "joined.gguf"
    path.write_bytes(data)
    made = ag.AdapterFile.read(path)
    wanted: dict[Any, Any] = {}
    for file, each in parts:
        for key, delta in deltas(file, each).items():
            wanted[key] = wanted.get(key, 0.0) + delta
    found = deltas(made, scale)
    assert found.keys() == wanted.keys()
    rounded = any(pair.b.type_name != "F32" for pair in made.pairs)
    for key, delta in wanted.items():
        # bfloat16 keeps 8 bits, half precision 11
        bound = (2e-2 if pair_type(made, key[0]) == "BF16" else 2e-3) if rounded else 1e-5
        np.testing.assert_allclose(found[key], delta, atol=bound * np.abs(delta).max())
    return made


def pair_type(file: ag.AdapterFile, target: str) -> str:
    (found,) = (pair.b.type_name for pair in file.pairs if pair.target == target)
    return found


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_ranks_side_by_side(kind: str, tmp_path: Path) -> None:
    one = write(tmp_path / "a.gguf", rank=8, alpha=16, kind=kind)
    other = write(tmp_path / "b.gguf", rank=4, alpha=3, kind=kind, seed=1)
    made = together([(one, 0.7), (other, -0.3)], tmp_path)
    assert {pair.rank for pair in made.pairs} == {12}
    assert {pair.a.type_name for pair in made.pairs} == {kind}
    assert {pair.b.type_name for pair in made.pairs} == {kind}
    assert not made.invocation


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_equal_scales_are_exact(kind: str, tmp_path: Path) -> None:
    """Which is what two adapters of one training at scale 1 are: not a bit of them changes."""
    parts = [
        (write(tmp_path / f"{i}.gguf", rank=32, alpha=48, kind=kind, seed=i), 1.25)
        for i in range(2)
    ]
    data, scale = joined(parts)
    assert scale == 1.25 * 48 / 32
    (tmp_path / "it.gguf").write_bytes(data)
    made = ag.AdapterFile.read(tmp_path / "it.gguf")
    for pair in made.pairs:
        found = next(factors_of(made, pair))
        halves = [
            next(factors_of(file, each))
            for file, _ in parts
            for each in file.pairs
            if each.target == pair.target
        ]
        assert np.array_equal(found.a, np.concatenate([each.a for each in halves]))
        assert np.array_equal(found.b, np.concatenate([each.b for each in halves], 1))


def test_each_has_targets_and_types_of_its_own(tmp_path: Path) -> None:
    q, experts, embedding = shapes(1)
    one = write(tmp_path / "a.gguf", targets=[q, experts], kind="F16", alpha=None)
    other = write(tmp_path / "b.gguf", targets=[q, embedding], kind="F32", seed=1, rank=5)
    made = together([(one, 1.0), (other, 2.0)], tmp_path)
    assert {each: pair_type(made, each) for each in made.targets} == {
        q: "F32", experts: "F16", embedding: "F32"
    }  # fmt: skip


def test_three_of_which_one_is_quantized(tmp_path: Path) -> None:
    q, *_ = shapes(1)
    parts = [
        (write(tmp_path / "a.gguf", rank=32, targets=[q], kind="Q8_0"), 1.0),
        (write(tmp_path / "b.gguf", rank=8, targets=[q], kind="F16", seed=1), 0.5),
        (write(tmp_path / "c.gguf", rank=16, targets=[q], kind="F16", seed=2), 4.0),
    ]
    made = together(parts, tmp_path)
    assert (made.rank, pair_type(made, q)) == (56, "F32")  # F16 would round what Q8_0 holds


def test_extreme_scales_leave_numbers(tmp_path: Path) -> None:
    """No B overflows its type: the largest scale is the activation's."""
    q, *_ = shapes(1)
    large = write(tmp_path / "a.gguf", targets=[q], kind="F16", gain=200.0)
    small = write(tmp_path / "b.gguf", targets=[q], kind="F16", seed=1)
    data, scale = joined([(large, 1e-30), (small, 1000.0)])
    assert scale == 1000.0 * 2
    (tmp_path / "it.gguf").write_bytes(data)
    assert ag.AdapterFile.read(tmp_path / "it.gguf").rank == 16  # which refuses infinities


def test_a_weak_one_keeps_its_bits(tmp_path: Path) -> None:
    """Times a small factor its B would lose bits in half precision."""
    q, *_ = shapes(1)
    strong = write(tmp_path / "a.gguf", targets=[q], kind="F16")
    weak = write(tmp_path / "b.gguf", targets=[q], kind="F16", seed=1, gain=1e-3)
    data, scale = joined([(strong, 1.0), (weak, 1e-3)])
    (tmp_path / "it.gguf").write_bytes(data)
    (pair,) = ag.AdapterFile.read(tmp_path / "it.gguf").pairs
    assert (pair.a.type_name, pair.b.type_name, scale) == ("F16", "F32", 2.0)
    assert pair_type(together([(strong, 1.0), (weak, 0.5)], tmp_path), q) == "F16"


def test_where_a_pattern_of_ranks_makes_one_b_grow(tmp_path: Path) -> None:
    """Its values would not fit half precision, so they are not stored in it."""
    q, experts, _ = shapes(1)
    rng = np.random.default_rng(3)
    tensors = {}
    for target, rank in ((q, 32), (experts, 1)):
        for side, shape in zip("ab", shapes(rank)[target], strict=True):
            tensors[f"{target}.lora_{side}"] = (
                2500 * rng.uniform(0.5, 1.0, shape).astype(np.float32)
            ).astype(np.float16)
    path = make_gguf(tmp_path / "a.gguf", adapter_keys(32.0), tensors)
    one = ag.AdapterFile.read(path)
    other = write(tmp_path / "b.gguf", targets=[q], kind="F16", seed=1, alpha=8)
    made = together([(one, 1.0), (other, 1.0)], tmp_path)
    assert {each: pair_type(made, each) for each in made.targets} == {q: "F16", experts: "F32"}


def test_too_high_a_rank(tmp_path: Path) -> None:
    q, *_ = shapes(1)
    parts = [(write(tmp_path / f"{i}.gguf", rank=2100, targets=[q], seed=i), 1.0) for i in range(2)]
    with pytest.raises(ag.InputError, match=r"have rank 4200 on 'blk.0.attn_q.weight', and at mo"):
        joined(parts)


def test_bytes_of_each_type() -> None:
    values = np.array([1.0, -2.5, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7, 3e38], np.float32)
    bits = np.frombuffer(stored(values, BF16), "<u2")
    back = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    # ties go to the even one
    assert back[:5].tolist() == [1.0, -2.5, 1.0, 1 + 2**-6, 1 + 2**-7]
    assert np.isfinite(back).all()
    assert stored(values[:2], F16) == values[:2].astype("<f2").tobytes()
