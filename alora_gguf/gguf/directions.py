"""What a steering vector does to one layer: directions, and the linear algebra that makes them
sound. Knows no file.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from alora_gguf._calls import checked
from alora_gguf.errors import InputError

from . import glp
from .glp import Hook, Operation
from .soundness import MAX_LAYERS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXACT: Final = 1e-5  # of max |V Vᵀ - 1|: rows that F32 rounded; nothing to do for them
_DEPENDENT: Final = 1e-6  # of a row's own length: what is left of one that the others make up


@checked
@dataclass(frozen=True, eq=False)
class Directions:
    """What is done to one layer: `values` are its directions, [k, n_embd] float32, row by row.

    layer      the block's index, counted from 0
    hook       "block": on the residual stream behind the block; "attention", "ffn": on what
               those of the block return, before it is added to the stream
    operation  with h what flows there (a row of it, one token) and s = `scale` times the
               activation's scale:

               add               h + s·v
               project           h - s·V Vᵀ h: at 1 nothing is left along V
               project_positive  h - s·V relu(Vᵀ h): only what points along v is removed
               add_keep_norm     (h + s·v) · |h| / |h + s·v|

    scale      what an activation's scale multiplies, rounded to float32

    Those that add have one direction (a plain [n_embd] will do). Rows of those that project become
    orthonormal: they are what spans the same space, the first row keeps its direction, and only
    lengths change if they are orthogonal. Raises InputError for what no layer could do.
    """

    layer: int
    hook: Hook
    operation: Operation
    scale: float
    values: NDArray[np.float32] = field(repr=False)

    def __post_init__(self) -> None:
        import numpy as np

        require(
            0 <= self.layer < MAX_LAYERS, f"layer is {self.layer}, expected 0 to {MAX_LAYERS - 1}"
        )
        require(abs(self.scale) <= 3.4e38, f"scale is {self.scale}, expected a finite number")
        object.__setattr__(self, "scale", float(np.float32(self.scale)))
        try:
            with np.errstate(over="ignore"):  # what becomes infinite is refused below
                values = np.array(self.values, np.float32, ndmin=2)
        except (TypeError, ValueError) as error:
            raise InputError(f"values are no array of numbers: {error}") from None
        require(
            values.ndim == 2 and values.size > 0,
            f"values have the shape {list(values.shape)}, expected [k, n_embd]",
        )
        if problem := data_problem(values, self.operation):
            raise InputError(f"values {problem}")
        values = orthonormal(values) if self.operation in glp.PROJECTIONS else values
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    @property
    def rank(self) -> int:
        """k, the number of directions."""
        return int(self.values.shape[0])

    @property
    def n_embd(self) -> int:
        """How wide the stream is that it acts on."""
        return int(self.values.shape[1])

    @property
    def target(self) -> str:
        """Where it acts, such as "blk.12", "blk.12.attention", "blk.12.ffn"."""
        return f"blk.{self.layer}" + ("" if self.hook == "block" else f".{self.hook}")

    def _key(self) -> tuple[object, ...]:
        shape = self.values.shape
        place = (self.layer, self.hook, self.operation, self.scale)
        return (*place, shape, self.values.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Directions) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


def data_problem(
    values: NDArray[np.float32], operation: str, names: Sequence[str] = ()
) -> str | None:
    """What is wrong with a layer's directions, as the end of a sentence about them."""
    import numpy as np

    k = len(values)
    called = names or [f"row {i}" for i in range(k)]
    for row, name in zip(values, called, strict=True):
        if not np.isfinite(row).all():
            return f"{name} holds NaN or infinite values; derive the vector again"
        if not row.any():
            return f"{name} holds only zeros, which is no direction; leave that layer out"
    if operation not in glp.PROJECTIONS and k > 1:
        return f"are {k} rows, expected one for the operation {operation}; add them up"
    lost = _dependent(values) if operation in glp.PROJECTIONS else None
    if lost is not None:
        return f"{called[lost]} is made up of the directions before it; leave it out"
    return None


def overlap(values: NDArray[np.float32]) -> float:
    """How far rows are from orthonormal ones: max |V Vᵀ - 1|."""
    import numpy as np

    rows = values.astype(np.float64)
    return float(np.abs(rows @ rows.T - np.eye(len(rows))).max())


def _dependent(values: NDArray[np.float32]) -> int | None:
    """The first row that is a sum of those before it, as far as float32 can tell."""
    import numpy as np

    if len(values) > values.shape[1]:
        return int(values.shape[1])
    rows = values.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    left = np.abs(np.diag(np.linalg.qr(rows.T, mode="r")))
    lost = np.flatnonzero(left < _DEPENDENT)
    return int(lost[0]) if lost.size else None


def orthonormal(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows that span the same space, each in the half that its own points into; those that are
    orthonormal as far as float32 can say stay as they are.
    """
    import numpy as np

    if overlap(values) <= EXACT:
        return values
    q, r = np.linalg.qr(values.astype(np.float64).T)
    return np.ascontiguousarray((q * np.sign(np.diag(r))).T, np.float32)


def identity_of(parts: Iterable[Directions]) -> str:
    """sha256 of each part's layer, hook, operation, scale, shape and float bytes, sorted."""
    each = sorted(
        struct.pack("<iQQ", part.layer, *part.values.shape)
        + f"{part.hook} {part.operation} ".encode()
        + struct.pack("<f", part.scale)
        + part.values.astype("<f4").tobytes()
        for part in parts
    )
    digest = hashlib.sha256(b"alora-gguf vector 1\0")
    for data in each:
        digest.update(struct.pack("<Q", len(data)) + data)
    return digest.hexdigest()


def require(holds: bool, problem: str) -> None:
    """Raises InputError for what does not hold."""
    if not holds:
        raise InputError(problem)
