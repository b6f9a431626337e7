"""Attention of few tokens to many cached ones: `python -m benchmarks.attention`.

Models of two layers, with the heads of real ones, over caches that are filled with repetitions of
what a short text leaves. Two contexts, alike but for their mode of attention, take turns; each cell
is the time that a layer's attention takes within a decode, and the median of each round's ratio.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from typing import Final

from alora_gguf.options import CACHE_TYPES

from . import growing, models, options
from .measure import Samples, alternate
from .models import SHAPES, Shape
from .profile import Profile
from .runtime import Context, ContextSize, Library, Rows, Weights

HEAD: Final = (
    "| base | threads | cached | batch | upstream's | ours | times faster | load |\n"
    "|---|---|---|---|---|---|---|---|"
)
_SMALL: Final = {"layers": 2, "vocab": 4096, "ff": 1024}
CUT_SHAPES: Final = {
    "1b": replace(SHAPES["1b"], name="Llama-3.2-1B-heads", **_SMALL),
    "2b": replace(SHAPES["2b"], name="Granite-3.3-2B-heads", **_SMALL),
    "135m": replace(SHAPES["135m"], name="SmolLM2-135M-heads", **_SMALL),
    "mha": replace(
        SHAPES["1b"], name="OLMo-1B-heads", heads=16, kv_heads=16, head_dim=128, **_SMALL
    ),
}
_NODES = {"stock": "FLASH_ATTN_EXT", "ours": "alora_attention"}


class Cell:
    """Two contexts over `n` cached tokens, of which each sequence is a fork."""

    def __init__(self, weights: Weights, size: ContextSize, n: int, state: bytes):
        self.n, self._stack = n, ExitStack()
        self.contexts: dict[str, tuple[Context, Profile]] = {}
        for side in _NODES:
            profile = Profile(weights.library)
            context = self._stack.enter_context(Context(weights, size, profile.watch))
            context.attend(side)
            context.restore(state)
            for seq in range(1, size.n_seq):
                context.fork(0, seq)
            self.contexts[side] = context, profile

    def measure(self, rows: Rows, rounds: int) -> Samples:
        return alternate({side: lambda s=side: self._sample(s, rows) for side in _NODES}, rounds)

    def _sample(self, side: str, rows: Rows) -> float:
        context, profile = self.contexts[side]
        seconds: list[float] = []
        while len(seconds) < 3 and sum(seconds) < 0.05:
            profile.clear()
            context.decode(rows)
            seconds.append(profile.seconds[_NODES[side]] / profile.nodes[_NODES[side]])
            for seq in {row[2] for row in rows}:
                context.truncate(seq, self.n)
        return min(seconds)

    def close(self) -> None:
        self._stack.close()


def batches(n: int, sizes: list[int], forks: list[int]) -> Iterator[tuple[str, Rows]]:
    for size in sizes:
        rows = [(1 + i % 4000, n + i, 1, i == size - 1) for i in range(size)]
        yield f"{size} token{'s' * (size > 1)}", rows
    for size in forks:
        yield f"{size} forks", [(1 + i, n, 1 + i, True) for i in range(size)]


def line(head: str, samples: Samples) -> str:
    stock, ours = samples["stock"], samples["ours"]
    ratio = statistics.median(a / b for a, b in zip(stock, ours, strict=True))
    times = " | ".join(f"{statistics.median(side) * 1e3:.2f} ms" for side in (stock, ours))
    return f"| {head} | {times} | {ratio:.2f}x | {os.getloadavg()[0]:.1f} |"


def cells(chosen: argparse.Namespace) -> Iterator[str]:
    library = Library()
    for name in chosen.models:
        shape: Shape = CUT_SHAPES[name]
        weights = Weights(library, models.base(shape))
        for kind, n, n_threads in product(chosen.cells, chosen.cached, chosen.threads):
            with Context(weights, ContextSize(512, cells=kind)) as context:
                state = growing.conversation(context, range(1, 512), n)
            size = ContextSize(n + 512, max(chosen.forks) + 1, n_threads, 1024, kind)
            cell = Cell(weights, size, n, state)
            for batch, rows in batches(n, chosen.tokens, chosen.forks):
                samples = cell.measure(rows, chosen.rounds)
                yield line(f"{shape.name} | {n_threads} | {n} of {kind} | {batch}", samples)
            cell.close()
        weights.close()


def arguments() -> argparse.Namespace:
    parser = options.parser("benchmarks.attention", __doc__)
    options.several(parser, "--models", ",".join(CUT_SHAPES), str, CUT_SHAPES)
    options.several(parser, "--threads", "1,2", options.number())
    options.several(parser, "--cached", "64,512,2048,8192,32768", options.number(growing.N_READ))
    options.several(parser, "--cells", "f16", str, CACHE_TYPES)
    options.several(parser, "--tokens", "1,2,4,8,16,32,63,64,128,512", options.number())
    options.several(parser, "--forks", "2,8", options.number())
    parser.add_argument("--rounds", type=options.number(), default=5)
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    print(HEAD, flush=True)
    for row in cells(chosen):
        print(row, flush=True)


if __name__ == "__main__":
    main()
