"""Rows about a cached conversation: eight intrinsics at once, the first token, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from .bench import N_ADAPTERS, Bench, steps, suffix
from .measure import Result, Side, alternate, continued, timed
from .models import INVOCATION
from .runtime import Context

GENERATED = 8  # tokens of each intrinsic's answer
_READ_AT_MOST = 8192  # tokens by the plain LoRA; what the rest would take is a line's word
_STEP = 512  # of its tokens, one graph
# by the conversation's length
_FLOORS_AT_ONCE = {2048: 2.5, 8192: 4.0}
_FLOORS_FIRST = {2048: 50.0, 8192: 300.0, 32768: 600.0}
_FORKS = range(1, N_ADAPTERS + 1)


def eight_intrinsics(bench: Bench) -> list[Result]:
    """16 tokens in and 8 out for eight adapters: one batch, against one after another on stock."""
    n, results = bench.settings.n_cached, []
    for targets in bench.settings.targets:
        with ExitStack() as stack:
            ours = stack.enter_context(bench.conversation(N_ADAPTERS + 1))
            stock = stack.enter_context(bench.conversation())
            slots = ours.add(bench.adapters(targets))
            adapters = bench.stock_adapters(targets)
            samples = alternate(
                {
                    "ours": partial(timed, partial(at_once, ours, slots, n)),
                    "stock": partial(timed, partial(in_turn, stock, adapters, n)),
                },
                bench.settings.rounds(7),
            )
        results.append(
            Result(f"8 intrinsics at {n}, 16 + {GENERATED} tokens each", targets,
                   Side("one batch", samples["ours"]),
                   Side("stock, one by one", samples["stock"]),
                   kind="speedup", floor=_floor(_FLOORS_AT_ONCE, n),
                   goal="≥ 2.5x at 2k, ≥ 4x at 8k")
        )  # fmt: skip
    return results


def at_once(context: Context, slots: Sequence[int], n: int) -> list[list[int]]:
    """Forks sequence 0 for each slot, answers all together, drops the forks."""
    for seq, slot in zip(_FORKS, slots, strict=True):
        context.fork(0, seq)
        context.activate(seq, n, slot)
    context.decode([row for seq in _FORKS for row in suffix(seq, n)])
    width = len(INVOCATION)
    chosen = [context.greedy(width * (i + 1) - 1) for i in range(N_ADAPTERS)]
    answers = [[token] for token in chosen]
    for at in range(n + width, n + width + GENERATED - 1):
        context.decode(steps(_FORKS, chosen, at))
        chosen = [context.greedy(i) for i in range(N_ADAPTERS)]
        for answer, token in zip(answers, chosen, strict=True):
            answer.append(token)
    for seq in _FORKS:
        context.deactivate(seq)
        context.drop(seq)
    return answers


def in_turn(context: Context, adapters: Sequence[Any], n: int) -> list[list[int]]:
    """The same on stock: switch, answer after the cached conversation, rewind to it."""
    answers = []
    for adapter in adapters:
        context.set_stock(adapter)
        context.decode(suffix(0, n))
        answer = [context.greedy()]
        first = n + len(INVOCATION)
        for at in range(first, first + GENERATED - 1):
            context.decode(steps([0], answer[-1:], at))
            answer.append(context.greedy())
        answers.append(answer)
        context.truncate(0, n)
    return answers


def _floor(floors: dict[int, float], n: int) -> float | None:
    return max((floor for at, floor in floors.items() if n >= at), default=None)


def first_token(bench: Bench) -> list[Result]:
    """From the question to its first token: a fork, against a plain LoRA that reads all again.

    Of a conversation beyond _READ_AT_MOST tokens the plain LoRA reads as many, and what the rest
    would take is extrapolated from the steps of that; so is the second half of those, to show how
    far to trust it.
    """
    n = bench.settings.n_cached
    read = [*bench.tokens(n), *INVOCATION]
    n_rest = len(read) - _READ_AT_MOST if n > _READ_AT_MOST else 0
    label = f"plain LoRA, {_READ_AT_MOST} read, the rest extrapolated" if n_rest else "plain LoRA"
    results = []
    for targets in bench.settings.targets:
        errors: list[float] = []
        with ExitStack() as stack:
            ours = stack.enter_context(bench.conversation(2))
            stock = stack.enter_context(bench.conversation())
            slots = ours.add(bench.adapters(targets))
            stock.set_stock(bench.stock_adapters(targets)[0])
            samples = alternate(
                {
                    "ours": _fork_run(ours, slots[0], n),
                    "stock": _reread_run(stock, read[: len(read) - n_rest], n_rest, errors),
                },
                bench.settings.rounds(3),
                warmup=0,
            )
        results.append(
            Result(f"first token at {n}", f"{targets}, 16 tokens asked",
                   Side("fork", samples["ours"]), Side(label, samples["stock"]),
                   kind="speedup", floor=_floor(_FLOORS_FIRST, n),
                   goal="≥ 50x at 2k, ≥ 300x at 8k, ≥ 600x at 32k")
        )  # fmt: skip
        if n_rest:
            results.append(
                Result(f"first token at {n}", f"{targets}, second half of what was read, from "
                       "the first, beyond what it took", Side("", errors, "%"), None, kind="value")
            )  # fmt: skip
    return results


def _fork_run(context: Context, slot: int, n: int) -> Callable[[], float]:
    def run() -> None:
        context.fork(0, 1)
        context.activate(1, n, slot)
        context.decode(suffix(1, n))
        context.greedy()

    def sample() -> float:
        seconds = []
        for _ in range(4):  # the first follows seconds of another side's work and warms up
            seconds.append(timed(run))
            context.deactivate(1)
            context.drop(1)
        return sum(seconds[1:]) / 3

    return sample


def _reread_run(
    context: Context, read: list[int], n_rest: int, errors: list[float]
) -> Callable[[], float]:
    """Seconds of reading, and those extrapolated for `n_rest` more tokens. To `errors` goes by how
    many percent the second half's extrapolation is off.
    """

    def step(first: int) -> None:
        context.prefill(read[first : first + _STEP], first=first)
        context.greedy()

    def sample() -> float:
        context.clear()
        steps = [timed(partial(step, first)) for first in range(0, len(read), _STEP)]
        if not n_rest:
            return sum(steps)
        half = len(steps) // 2
        took = sum(steps[half:])
        errors.append(100 * (continued(steps[:half], len(steps) - half) / took - 1))
        return sum(steps) + continued(steps, n_rest / _STEP)

    return sample


def memory(bench: Bench) -> list[Result]:
    """Cells in use with eight forks on one conversation, against eight conversations."""
    n = bench.settings.n_cached
    with bench.conversation(N_ADAPTERS + 1) as context:
        one = _state_bytes(context)
        for seq in _FORKS:
            context.fork(0, seq)
        forked = _state_bytes(context)
        context.decode([row for seq in _FORKS for row in suffix(seq, n)])
        used = _state_bytes(context)
        apart = sum(context.llama.llama_state_seq_get_size(context.ctx, seq) for seq in _FORKS)
    return [
        Result("memory of 8 forks", f"cells in use, {n} cached + 16 each",
               Side("8 forks", [used], "B"), Side("8 contexts", [apart], "B"), kind="speedup",
               goal="context + suffixes"),
        Result("memory of 8 forks", "beyond the one conversation, before their first token",
               Side("8 forks", [forked - one], "B"), None, kind="value",
               floor=n * 64),
    ]  # fmt: skip


def _state_bytes(context: Context) -> int:
    """What llama.cpp would save: each used cell once, and a few bytes of who uses it."""
    return int(context.llama.llama_state_get_size(context.ctx))
