"""Several adapters as one: their ranks side by side, each factor B times what makes up the scale.

The product of the joined factors is the sum of the products, so whoever can compute with one
adapter can compute with several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np

from alora_gguf.errors import InputError

from .adapter import MAX_RANK, AdapterFile, Pair
from .parser import TensorInfo, ValueType
from .values import BF16, F16, F32, Values, stored, values
from .writer import OutTensor, gguf_bytes

_KINDS: Final = {"F32": F32, "F16": F16, "BF16": BF16, "Q8_0": F32}  # as F16 it would be rounded
_LARGEST_F16: Final = 65504.0
_SMALLEST_FACTOR: Final = 2.0**-6


def joined(parts: Sequence[tuple[AdapterFile, float]]) -> tuple[bytes, float]:
    """The GGUF of an adapter that, at the scale that is returned with it, computes what all of the
    `parts`, files with their data, compute at theirs.

    Values keep their type where a target has the same in all of them, else, and of Q8_0, they
    become F32. They
    are exact if all have one alpha/rank and one scale; otherwise B is rounded once. Raises
    InputError if the ranks of a target come to more than the bank takes.
    """
    first, _ = parts[0]
    # the largest, so that hardly a B grows
    unit = max((scale * file.scale_of(file.pairs[0]) for file, scale in parts), key=abs)
    by_target: dict[str, list[_Part]] = {}
    for file, each in parts:
        for pair in file.pairs:
            factor = each * file.scale_of(pair) / unit
            by_target.setdefault(pair.target, []).append(_Part(file, pair, factor))
    text = ValueType.STRING
    metadata = [
        ("general.type", text, "adapter"),
        ("adapter.type", text, "lora"),
        ("general.architecture", text, first.architecture),
    ]
    tensors = [each for target in sorted(by_target) for each in _tensors(by_target[target])]
    return gguf_bytes(metadata, tensors), unit


class _Part:
    """One adapter's factors of a target; `factor` is what its B is multiplied with."""

    def __init__(self, file: AdapterFile, pair: Pair, factor: float) -> None:
        self.file, self.pair, self.factor = file, pair, factor

    def a(self) -> Values:
        """In numpy's order of dimensions: ranks are the last but one, of an embedding the last."""
        return self._values(self.pair.a)

    def b(self) -> Values:
        """Ranks are the last dimension."""
        found = self._values(self.pair.b)
        return found if self.factor == 1 else found * np.float32(self.factor)

    def _values(self, info: TensorInfo) -> Values:
        data = memoryview(self.file.data)[info.offset : info.offset + info.nbytes]
        return values(data, info, str(self.file.path)).astype(np.float32)


def _tensors(parts: Sequence[_Part]) -> Iterator[OutTensor]:
    pair = parts[0].pair
    rank = sum(part.pair.rank for part in parts)
    if rank > MAX_RANK:
        names = " and ".join(part.file.name for part in parts)
        raise InputError(
            f"together {names} have rank {rank} on '{pair.target}', and at most {MAX_RANK} is "
            "supported; take fewer, or cut their ranks with `alora-gguf analyse --write-rank`"
        )
    embedding = pair.target.endswith("token_embd.weight")
    axis = 0 if embedding else 1  # of ranks in A, in ggml's order
    shape = (*pair.a.shape[:axis], rank, *pair.a.shape[axis + 1 :])
    in_numpy = -1 if embedding else -2
    kind = _kind(part.pair.a for part in parts)
    yield OutTensor(pair.a.name, shape, kind, partial(_joined_a, parts, in_numpy, kind))
    kind = _kind(part.pair.b for part in parts)
    if kind == F16 and not all(map(_fits, parts)):
        kind = F32
    shape = (rank, *pair.b.shape[1:])
    yield OutTensor(pair.b.name, shape, kind, partial(_joined_b, parts, kind))


def _kind(infos: Iterator[TensorInfo]) -> int:
    kinds = {_KINDS[info.type_name] for info in infos}
    return kinds.pop() if len(kinds) == 1 else F32


def _fits(part: _Part) -> bool:
    """Whether B in half precision neither overflows nor loses bits of what is small."""
    if abs(part.factor) > 1:
        return bool(np.abs(part.b()).max() <= _LARGEST_F16)
    return abs(part.factor) >= _SMALLEST_FACTOR


def _joined_a(parts: Sequence[_Part], axis: int, kind: int) -> bytes:
    return stored(np.concatenate([part.a() for part in parts], axis), kind)


def _joined_b(parts: Sequence[_Part], kind: int) -> bytes:
    return stored(np.concatenate([part.b() for part in parts], -1), kind)
