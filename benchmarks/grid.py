"""What an adapter costs on the CPU, over ranks, bases and threads: `python -m benchmarks.grid`.

Four contexts take turns in one run: base, stock LoRA, the bank with ggml's own products
(ALORA_CPU_PATH=standard), and the bank as it is. Each cell is the median of each round's ratio to
the base beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final
from unittest import mock

from . import models, options
from .bench import N_ADAPTERS, steps, suffix, tokens
from .measure import Samples, alternate, timed
from .models import DENSE, SHAPES, TARGETS, Shape
from .runtime import Context, ContextSize, Library, Rows, Weights

HEAD: Final = (
    "| base | threads | rank | targets | batch "
    "| base | stock LoRA | ggml's products | fused | load |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
BATCHES: Final = ("1 token", "16 tokens", "64 tokens", "256 tokens", "8 sequences")
_SIDES = ("base", "stock", "standard", "fused")
_CACHED = 16


class Cell:
    """A base, an adapter set and a number of threads: four contexts, alike but for the adapters."""

    def __init__(self, weights: Weights, shape: Shape, targets: str, rank: int, n_threads: int):
        self._stack = ExitStack()
        self.contexts: dict[str, Context] = {}
        paths = models.adapters(shape, targets, N_ADAPTERS, rank)
        size = ContextSize(512, N_ADAPTERS, n_threads)
        for side in _SIDES:
            with mock.patch.dict(os.environ, ALORA_CPU_PATH=side):  # read once, by the bank
                context = self._stack.enter_context(Context(weights, size))
            for seq in range(N_ADAPTERS):
                context.prefill(tokens(shape, _CACHED, seq), seq)
            if side == "stock":
                context.set_stock(weights.stock_adapter(paths[0]))
            elif side != "base":
                for seq, slot in enumerate(context.add(paths, rank)):
                    context.activate(seq, _CACHED, slot)
            self.contexts[side] = context

    def measure(self, batch: str, rounds: int) -> Samples:
        sides = _SIDES if batch != "8 sequences" else ("base", "standard", "fused")
        rows, n = _rows(batch)
        return alternate({side: _run(self.contexts[side], rows, n) for side in sides}, rounds)

    def close(self) -> None:
        self._stack.close()


def _rows(batch: str) -> tuple[Rows, int]:
    """The batch, and how often a sample decodes it."""
    if batch == "1 token":
        return steps([0], [1], _CACHED), 4
    if batch == "16 tokens":
        return suffix(0, _CACHED), 2
    if batch == "8 sequences":
        return steps(range(N_ADAPTERS), [1] * N_ADAPTERS, _CACHED), 2
    n = int(batch.split(maxsplit=1)[0])  # a long text under an adapter, as plain LoRAs read it
    return [(1 + i, _CACHED + i, 0, i == n - 1) for i in range(n)], 1


def _run(context: Context, rows: Rows, n: int) -> Callable[[], float]:
    def sample() -> float:
        seconds = 0.0
        for _ in range(n):
            seconds += timed(lambda: context.decode(rows))
            for seq in range(N_ADAPTERS):
                context.truncate(seq, _CACHED)
        return seconds / n

    return sample


def line(head: str, batch: str, samples: Samples) -> str:
    base = samples["base"]

    def paired(side: str) -> str:
        if side not in samples:
            return ""
        pairs = zip(samples[side], base, strict=True)
        return f"{statistics.median(ours / other for ours, other in pairs):.3f}x"

    ratios = " | ".join(paired(side) for side in _SIDES[1:])
    load = os.getloadavg()[0]
    return f"| {head} | {batch} | {statistics.median(base) * 1e3:.1f} ms | {ratios} | {load:.1f} |"


def cells(chosen: argparse.Namespace) -> Iterator[tuple[str, str, Samples]]:
    library = Library()
    for name in chosen.models:
        shape = SHAPES[name]
        for quant in chosen.quants:
            weights = Weights(library, models.base(shape, quant))
            for n_threads in chosen.threads:
                for rank in chosen.ranks:
                    for targets in chosen.targets:
                        cell = Cell(weights, shape, targets, rank, n_threads)
                        head = f"{shape.name} {quant.upper()} | {n_threads} | {rank} | {targets}"
                        for batch in chosen.batches:
                            yield head, batch, cell.measure(batch, chosen.rounds)
                        cell.close()
            weights.close()


def arguments() -> argparse.Namespace:
    parser = options.parser("benchmarks.grid", __doc__)
    options.several(parser, "--models", ",".join(DENSE), str, SHAPES)
    options.several(parser, "--quants", "q4_0,q8_0", str, ("q4_0", "q8_0"))
    options.several(parser, "--threads", "1,2", options.number())
    options.several(parser, "--ranks", "8,16,32,64", options.number())
    options.several(parser, "--targets", ",".join(TARGETS), str, TARGETS)
    options.several(parser, "--batches", ",".join(BATCHES), str, BATCHES)
    parser.add_argument("--rounds", type=options.number(), default=15)
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    print(HEAD, flush=True)
    for head, batch, samples in cells(chosen):
        print(line(head, batch, samples), flush=True)


if __name__ == "__main__":
    main()
