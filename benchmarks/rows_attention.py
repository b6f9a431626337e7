"""The row about attention: whole batches on a long conversation, upstream's node against ours.

Two contexts of the same bank, alike but for their mode of attention.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from .bench import N_ADAPTERS, Bench, steps, suffix
from .measure import Result, Side, alternate, timed
from .runtime import Context, Rows

_SIDES = ("ours", "stock")
_FORKS = range(1, N_ADAPTERS + 1)
_NOT_SLOWER = 0.97  # within what repeating a measurement varies
# of each batch, by the conversation's length
_FLOORS = {"16 tokens": {2048: 1.8, 8192: 3.0}, "8 forks": {8192: 2.0}}


def long_attention(bench: Bench) -> list[Result]:
    """A token, an invocation, forks, and forks beside the base's own next token."""
    n, targets, results = bench.settings.n_cached, "attention-only", []
    with ExitStack() as stack:
        contexts = {side: _forked(bench, stack, side, targets) for side in _SIDES}
        for batch, rows in _batches(n).items():
            samples = alternate(
                {side: _run(c, rows, n) for side, c in contexts.items()},
                bench.settings.rounds(15),
            )
            floors = _FLOORS.get(batch, {})
            floor = max((f for at, f in floors.items() if n >= at), default=_NOT_SLOWER)
            results.append(
                Result(f"attention at {n}", batch, Side("ours", samples["ours"]),
                       Side("upstream's node", samples["stock"]), kind="speedup", floor=floor)
            )  # fmt: skip
    return results


def _forked(bench: Bench, stack: ExitStack, side: str, targets: str) -> Context:
    """The conversation and eight forks of it, each with an adapter of its own."""
    context = stack.enter_context(bench.conversation(N_ADAPTERS + 1))
    context.attend("auto" if side == "ours" else side)
    slots = context.add(bench.adapters(targets))
    for seq, slot in zip(_FORKS, slots, strict=True):
        context.fork(0, seq)
        context.activate(seq, bench.settings.n_cached, slot)
    return context


def _batches(n: int) -> dict[str, Rows]:
    one, forks = steps([1], [1], n), steps(_FORKS, [1] * N_ADAPTERS, n)
    guards = [row for seq in (1, 2) for row in suffix(seq, n)]
    base = steps([0], [2], n)
    return {
        "1 token": one,
        "16 tokens": suffix(1, n),
        "8 forks": forks,
        "8 forks of 16 tokens": [row for seq in _FORKS for row in suffix(seq, n)],
        "1 token of the base, 1 adapted": [*base, *one],
        "1 of the base, 8 forks": [*base, *forks],
        "1 of the base, 16 adapted": [*base, *suffix(1, n)],
        "1 of the base, 2 forks of 16": [*base, *guards],
    }


def _run(context: Context, rows: Rows, n: int) -> Callable[[], float]:
    def sample() -> float:
        seconds = timed(lambda: context.decode(rows))
        for seq in (0, *_FORKS):
            context.truncate(seq, n)
        return seconds

    return sample
