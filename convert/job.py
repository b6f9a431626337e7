"""Makes the bytes of a plan's tensors, a few ahead of the writer, and judges their values."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from alora_gguf.errors import ConvertError
from alora_gguf.gguf.writer import OutTensor

from .metadata import OUTTYPES, stored_type
from .peft.config import PeftConfig
from .peft.weights import SafetensorsFile
from .plan import Pair
from .values import Encoded, check_finite, encode, make_a, make_b

# Tensors in the making at a time. numpy works without Python's lock on arrays of this size, so
# threads gain, and what waits for the writer stays a few tensors.
_AHEAD: Final = 4


@dataclass(frozen=True)
class _Task:
    """One tensor: its pair, which side of it, its type, and how many values it has."""

    pair: Pair
    is_b: bool
    kind: str
    count: int

    @property
    def source(self) -> str:
        """The adapter's tensor that it is made of, or the first of them."""
        piece = self.pair.pieces[0]
        return (piece.b if self.is_b else piece.a).name


class Job:
    """The tensors of a file to write, made in `pool`; to be taken once each, in their order."""

    def __init__(
        self,
        config: PeftConfig,
        weights: SafetensorsFile,
        pairs: Sequence[Pair],
        outtype: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._weights = weights
        self._pairs = pairs
        self._outtype = outtype
        self._pool = pool
        # the one alpha of the file; GGUF keeps it as float32, so folding starts from that value
        self.alpha: float = struct.unpack("<f", struct.pack("<f", config.alpha))[0]
        self.folded = sum(any(f != 1.0 for f in self._factors(pair)) for pair in pairs)
        self.warnings: list[str] = []  # what making the tensors has shown
        self._tasks: list[_Task] = []
        self._running: dict[int, Future[Encoded]] = {}
        self._changes_anything = False
        self._a_acts = False

    def tensors(self) -> list[OutTensor]:
        """The file's tensors: every pair's A, then its B; the first ones are begun."""
        out = []
        for pair in self._pairs:
            experts = (pair.n_experts,) if pair.n_experts else ()
            a_shape = (pair.rank, pair.n_in) if pair.flip_a else (pair.n_in, pair.rank)
            for suffix, matrix in (("lora_a", a_shape), ("lora_b", (pair.rank, pair.n_out))):
                shape = (*matrix, *experts)
                kind = stored_type(self._outtype, shape[0])
                take = partial(self._take, len(self._tasks))
                self._tasks.append(_Task(pair, suffix == "lora_b", kind, math.prod(shape)))
                out.append(OutTensor(f"{pair.target}.{suffix}", shape, OUTTYPES[kind][0], take))
        self._begin(0)
        return out

    def _factors(self, pair: Pair) -> list[float]:
        """What each piece's B is multiplied with, for alpha/rank to give the piece's own scale."""
        return [piece.scale * pair.rank / self.alpha for piece in pair.pieces]

    def _begin(self, index: int) -> None:
        for i in range(index, min(index + _AHEAD, len(self._tasks))):
            if i not in self._running:
                self._running[i] = self._pool.submit(self._make, self._tasks[i])

    def _take(self, index: int) -> memoryview:
        """The bytes of the tensor at `index`; the next ones are begun meanwhile."""
        self._begin(index)
        task, made = self._tasks[index], self._running.pop(index).result()
        if made.lost * 1000 > task.count:
            self.warnings.append(
                f"'{task.source}': {made.lost} of {task.count} values are too small for "
                f"{task.kind} and became zero; f32 would keep them"
            )
        if task.is_b:
            self._changes_anything |= self._a_acts and made.acts
        self._a_acts = made.acts
        if index + 1 == len(self._tasks) and not self._changes_anything:
            raise ConvertError(
                f"{self._weights.path}: in every pair lora_A or lora_B is zero throughout, so the "
                "adapter changes nothing; it was probably saved before it was trained"
            )
        return made.data

    def _make(self, task: _Task) -> Encoded:
        read = self._weights.read
        if task.is_b:
            values = make_b(task.pair, read, self._factors(task.pair))
        else:
            values = make_a(task.pair, read)
        try:
            return encode(values, task.kind, task.source)
        except ConvertError:  # of values that are too large, some may be no numbers at all
            for piece in task.pair.pieces:
                for name in (piece.a.name, piece.b.name):
                    check_finite(read(name), str(self._weights.path), name)
            raise
