"""What the rows share: one loaded base, its adapters, and a cached conversation to fork from."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import growing, models
from .models import INVOCATION, TARGETS, Shape
from .runtime import Context, ContextSize, Library, Rows, Weights

N_ADAPTERS = 8
ROOM = 256  # cells beside the cached conversation: eight forks of 16 + 8 tokens, and some


@dataclass(frozen=True)
class Settings:
    """What the command line decides.

    n_cached  tokens of the conversation that intrinsics are asked about
    effort    1 for published figures; less makes fewer rounds
    stock     folder of the unpatched libllama
    targets   the adapters' weights: keys of TARGETS
    """

    n_threads: int
    n_cached: int = 2048
    effort: float = 1.0
    stock: Path | None = None
    targets: Sequence[str] = tuple(TARGETS)

    def rounds(self, n: int) -> int:
        return max(2, round(n * self.effort))


class Bench:
    """A base of one shape, opened once for all rows."""

    def __init__(self, library: Library, shape: Shape, settings: Settings) -> None:
        self.shape, self.settings = shape, settings
        self.path = models.base(shape)
        self.weights = Weights(library, self.path)
        self._stock: dict[str, list[Any]] = {}

    def close(self) -> None:
        self.weights.close()

    def tokens(self, n: int, seed: int = 0) -> list[int]:
        return tokens(self.shape, n, seed)

    def adapters(self, targets: str, n: int = N_ADAPTERS) -> list[Path]:
        return models.adapters(self.shape, targets, n)

    def stock_adapters(self, targets: str) -> list[Any]:
        """The same adapters as stock llama.cpp loads them; the weights own them."""
        if targets not in self._stock:
            self._stock[targets] = [self.weights.stock_adapter(p) for p in self.adapters(targets)]
        return self._stock[targets]

    def context(self, n_ctx: int, n_seq: int = 1) -> Context:
        return Context(self.weights, ContextSize(n_ctx, n_seq, self.settings.n_threads))

    def conversation(self, n_seq: int = 1) -> Context:
        """A context whose sequence 0 holds the cached conversation, as growing.py makes it."""
        context = self.context(self.settings.n_cached + ROOM, n_seq)
        context.restore(self.prefix)
        return context

    @functools.cached_property
    def prefix(self) -> bytes:
        n = self.settings.n_cached
        with self.context(ROOM) as context:
            return growing.conversation(context, self.tokens(growing.N_READ), n)


def tokens(shape: Shape, n: int, seed: int = 0) -> list[int]:
    """`n` random token ids."""
    return [int(t) for t in np.random.default_rng(seed).integers(2000, shape.vocab, n)]


def suffix(seq: int, first: int) -> list[tuple[int, int, int, bool]]:
    """The invocation as rows of a batch; the last one's logits are wanted."""
    last = len(INVOCATION) - 1
    return [(t, first + i, seq, i == last) for i, t in enumerate(INVOCATION)]


def steps(seqs: Sequence[int], chosen: Sequence[int], position: int) -> Rows:
    """One more token of each sequence as rows of a batch."""
    return [(t, position, s, True) for s, t in zip(seqs, chosen, strict=True)]
