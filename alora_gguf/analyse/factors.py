"""An adapter's matrices as numbers: A and B of each target, and the SVD of their product BA, which
never exists as a matrix of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.gguf.adapter import AdapterFile, Pair
from alora_gguf.gguf.values import values

Doubles = NDArray[np.float64]

_LAYER: Final = re.compile(r"(.*\b)?blk\.([0-9]+)\.(.+)", re.ASCII)
# What rounding leaves, relative to the largest singular value: the distance between neighbouring
# numbers of the type. F32 has room for how a program computed it.
_ROUNDING: Final = {"F32": 1e-6, "F16": 2.0**-10, "BF16": 2.0**-7, "Q8_0": 2.0**-7}


@dataclass(frozen=True, slots=True)
class Place:
    """Which matrix of a model: the tensor's name, its short name without layer and ".weight", the
    layer (None outside the layers) and the expert (None in a plain matrix).
    """

    target: str
    name: str
    layer: int | None
    expert: int | None


@dataclass(frozen=True, slots=True)
class Factors:
    """A [r, n_in] and B [n_out, r] of one matrix, in numpy's order; it is changed by scale * B A.

    Singular values up to `rounding` times the largest are what storing the numbers leaves.
    """

    place: Place
    a: Doubles
    b: Doubles
    scale: float
    rounding: float

    @property
    def rank(self) -> int:
        """r, as stored."""
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows and columns dW has: (n_out, n_in)."""
        return int(self.b.shape[0]), int(self.a.shape[1])

    def singular_values(self) -> Doubles:
        """All r of scale * B A, descending, from the r x r Gram matrices of A and B. What is below
        1e-8 of the largest is noise.
        """
        core = _root(self.b.T @ self.b) @ _root(self.a @ self.a.T).T
        return abs(self.scale) * np.linalg.svd(core, compute_uv=False)

    def svd(self) -> tuple[Doubles, Doubles, Doubles]:
        """U [n_out, k], the singular values [k] and Vt [k, n_in] of scale * B A, k = min(r, n_out,
        n_in), by the QR decompositions of A and B.
        """
        q_b, r_b = np.linalg.qr(self.b)
        q_a, r_a = np.linalg.qr(self.a.T)
        u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
        return q_b @ (u * np.sign(self.scale)), abs(self.scale) * s, vt @ q_a.T


def _root(gram: Doubles) -> Doubles:
    """R with R^T R = gram, as the R of a QR decomposition is."""
    w, e = np.linalg.eigh(gram)
    return np.asarray(np.sqrt(np.maximum(w, 0.0))[:, None] * e.T)


def places(pair: Pair) -> Iterator[Place]:
    """The matrices of a target, one for each expert."""
    weight = pair.target.removesuffix(".weight")
    found = _LAYER.fullmatch(weight)
    name = (found[1] or "") + found[3] if found else weight
    layer = int(found[2]) if found else None
    experts = range(pair.a.shape[2]) if len(pair.a.shape) == 3 else (None,)
    for expert in experts:
        yield Place(pair.target, name, layer, expert)


def factors_of(file: AdapterFile, pair: Pair) -> Iterator[Factors]:
    """The matrices of a target, in the order of places()."""
    data, label = memoryview(file.data), str(file.path)
    a, b = (
        values(data[info.offset : info.offset + info.nbytes], info, label)
        for info in (pair.a, pair.b)
    )
    if pair.target.endswith("token_embd.weight"):  # its A is stored as it is looked up in
        a = a.T
    rounding = max(_ROUNDING[info.type_name] for info in (pair.a, pair.b))
    for place in places(pair):
        one = slice(None) if place.expert is None else place.expert
        # exact, and products neither overflow nor lose what is small
        wide_a, wide_b = np.asarray(a[one], np.float64), np.asarray(b[one], np.float64)
        yield Factors(place, wide_a, wide_b, file.scale_of(pair), rounding)
