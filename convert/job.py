"""Makes the bytes of a plan's tensors, a few ahead of the writer, and judges their values."""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from alora_gguf.errors import ConvertError

from .assemble import Array, make_a, make_b
from .outtypes import OUTTYPES, stored_type
from .peft_config import PeftConfig
from .plan import Pair, Plan
from .safetensors_file import WeightsFile
from .values import check_finite, encode
from .writer import OutTensor

# Tensors in the making at a time. numpy works without Python's lock on arrays of this size, so two
# threads take half as long, and what waits for the writer stays a few megabytes.
_AHEAD: Final = 3


@dataclass(frozen=True)
class _Made:
    """A tensor's bytes, whether any value is not zero, and how many became zero by rounding."""

    data: bytes
    acts: bool
    lost: int
    size: int


class Job:
    """The tensors of a file to write, made in `pool`; to be taken once each, in their order."""

    def __init__(
        self,
        config: PeftConfig,
        weights: WeightsFile,
        plan: Plan,
        outtype: str,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._weights = weights
        self._plan = plan
        self._outtype = outtype
        self._pool = pool
        # the one alpha of the file; GGUF keeps it as float32, so folding starts from that value
        self.alpha: float = struct.unpack("<f", struct.pack("<f", config.alpha))[0]
        self.folded = sum(any(f != 1.0 for f in self._factors(pair)) for pair in plan.pairs)
        self._tasks: list[Callable[[], _Made]] = []
        self._running: dict[int, Future[_Made]] = {}
        self._changes_anything = False
        self._a_acts = False

    def tensors(self) -> list[OutTensor]:
        """The file's tensors: every pair's A, then its B."""
        out = []
        for pair in self._plan.pairs:
            experts = (pair.n_experts,) if pair.n_experts else ()
            a_shape = (pair.rank, pair.n_in) if pair.flip_a else (pair.n_in, pair.rank)
            for suffix, shape, make in (
                ("lora_a", a_shape, self._make_a),
                ("lora_b", (pair.rank, pair.n_out), self._make_b),
            ):
                kind = stored_type(self._outtype, shape[0])
                take = partial(self._take, len(self._tasks), kind, pair, suffix == "lora_b")
                self._tasks.append(partial(make, pair, kind))
                name = f"{pair.target}.{suffix}"
                out.append(OutTensor(name, (*shape, *experts), OUTTYPES[kind][0], take))
        return out

    def _factors(self, pair: Pair) -> list[float]:
        """What each piece's B is multiplied with, for alpha/rank to give the piece's own scale."""
        return [piece.scale * pair.rank / self.alpha for piece in pair.pieces]

    def _take(self, index: int, kind: str, pair: Pair, is_b: bool) -> bytes:
        """The bytes of the tensor at `index`; others are begun meanwhile."""
        for i in range(index, min(index + _AHEAD, len(self._tasks))):
            if i not in self._running:
                self._running[i] = self._pool.submit(self._tasks[i])
        made = self._running.pop(index).result()
        if made.lost * 1000 > made.size:
            piece = pair.pieces[0]
            self._plan.warnings.append(
                f"'{(piece.b if is_b else piece.a).name}': {made.lost} of {made.size} values are "
                f"too small for {kind} and became zero; f32 would keep them"
            )
        if is_b:
            self._changes_anything |= self._a_acts and made.acts
        else:
            self._a_acts = made.acts
        if index + 1 == len(self._tasks) and not self._changes_anything:
            raise ConvertError(
                f"{self._weights.path}: in every pair lora_A or lora_B is zero throughout, so the "
                "adapter changes nothing; it was probably saved before it was trained"
            )
        return made.data

    def _make_a(self, pair: Pair, kind: str) -> _Made:
        return _made(make_a(pair, self._read), kind, pair.pieces[0].a.name)

    def _make_b(self, pair: Pair, kind: str) -> _Made:
        values = make_b(pair, self._read, self._factors(pair))
        return _made(values, kind, pair.pieces[0].b.name)

    def _read(self, name: str) -> Array:
        values = self._weights.read(name)
        check_finite(values, str(self._weights.path), name)
        return values


def _made(values: Array, kind: str, name: str) -> _Made:
    data, lost = encode(values, kind, name)
    return _Made(data, bool(values.any()), lost, values.size)
