"""Rows about batches with adapters: one adapter, a mixed batch, and what switching costs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from . import models
from .bench import N_ADAPTERS, Bench, steps, suffix
from .measure import Result, Side, alternate, timed
from .runtime import Context

_SHORT = 64  # cached tokens of the rows that are not about attention
_AGAINST_STOCK = 1.03  # "never slower", within what repeating a measurement varies


def one_decode(bench: Bench) -> list[Result]:
    """One token with one adapter on, against base and stock LoRA."""
    goals = {"attention-only": "≤ 1.02x", "all-linear": "≤ 1.08x"}
    results = []
    for targets in bench.settings.targets:
        with ExitStack() as stack:
            sides = _three_sides(bench, stack, targets, cached=_SHORT)
            samples = alternate(
                {name: decode_run(c, _SHORT) for name, c in sides.items()},
                bench.settings.rounds(40),
            )
        ours = Side(f"{targets}, on", samples["ours"])
        results += [
            Result("decode, one adapter", f"{targets} against base", ours,
                   Side("base", samples["base"]), goal=goals[targets]),
            Result("decode, one adapter", f"{targets} against stock LoRA", ours,
                   Side("stock", samples["stock"]), floor=_AGAINST_STOCK),
        ]  # fmt: skip
    return results


def types(bench: Bench) -> list[Result]:
    """One adapter on all linear layers, F16 and Q8_0, against base: a token, and 16."""
    targets, n, results = "all-linear", _SHORT, []
    with ExitStack() as stack:
        sides = {}
        for name in ("base", "F16", "Q8_0"):
            sides[name] = context = stack.enter_context(bench.context(512))
            context.prefill(bench.tokens(n))
            if name != "base":
                paths = models.adapters(bench.shape, targets, 1, dtype=name)
                context.activate(0, n, context.add(paths)[0])
        decodes = {name: decode_run(context, n) for name, context in sides.items()}
        reads = {name: _invocation_run(context, n) for name, context in sides.items()}
        for what, runs, rounds in (("decode", decodes, 40), ("16 tokens", reads, 20)):
            samples = alternate(runs, bench.settings.rounds(rounds))
            results += [
                Result(f"{what}, one adapter by type", f"{name}, {targets} against base",
                       Side(name, samples[name]), Side("base", samples["base"]),
                       goal="≤ 1.04x" if (what, name) == ("decode", "Q8_0") else "")
                for name in ("F16", "Q8_0")
            ]  # fmt: skip
    return results


def one_invocation(bench: Bench) -> list[Result]:
    """The 16 tokens of an invocation on a cached conversation, against base and stock LoRA."""
    goals = {"attention-only": "≤ 1.01x", "all-linear": "≤ 1.06x"}
    n, results = bench.settings.n_cached, []
    for targets in bench.settings.targets:
        with ExitStack() as stack:
            sides = _three_sides(bench, stack, targets, cached=n)
            samples = alternate(
                {name: _invocation_run(c, n) for name, c in sides.items()},
                bench.settings.rounds(15),
            )
        ours = Side(f"{targets}, on", samples["ours"])
        results += [
            Result(f"16 tokens at {n}", f"{targets} against base", ours,
                   Side("base", samples["base"]), goal=goals[targets]),
            Result(f"16 tokens at {n}", f"{targets} against stock LoRA", ours,
                   Side("stock", samples["stock"]), floor=_AGAINST_STOCK),
        ]  # fmt: skip
    return results


def _three_sides(bench: Bench, stack: ExitStack, targets: str, cached: int) -> dict[str, Context]:
    """The same cached tokens in three contexts: base, one stock LoRA on, one of the bank's on."""
    sides = {}
    for name in ("ours", "stock", "base"):
        if cached == bench.settings.n_cached:
            context = stack.enter_context(bench.conversation())
        else:
            context = stack.enter_context(bench.context(512))
            context.prefill(bench.tokens(cached))
        sides[name] = context
    slots = sides["ours"].add(bench.adapters(targets))
    sides["ours"].activate(0, cached, slots[0])
    sides["stock"].set_stock(bench.stock_adapters(targets)[0])
    return sides


def decode_run(context: Context, at: int, n: int = 4) -> Callable[[], float]:
    """Seconds for one token, of `n` decoded one after another."""

    def run() -> None:
        for i in range(n):
            context.decode([(1, at + i, 0, True)])

    def sample() -> float:
        seconds = timed(run) / n
        context.truncate(0, at)
        return seconds

    return sample


def _invocation_run(context: Context, at: int) -> Callable[[], float]:
    def sample() -> float:
        seconds = timed(lambda: context.decode(suffix(0, at)))
        context.truncate(0, at)
        return seconds

    return sample


def mixed_decode(bench: Bench) -> list[Result]:
    """A token each for eight sequences with eight adapters, against the same batch on base."""
    goals = {"attention-only": "≤ 1.05x", "all-linear": "≤ 1.15x"}
    results = []
    for targets in bench.settings.targets:
        with ExitStack() as stack:
            sides = {}
            for name in ("ours", "base"):
                context = stack.enter_context(bench.context(1024, N_ADAPTERS))
                for seq in range(N_ADAPTERS):
                    context.prefill(bench.tokens(_SHORT, seq), seq)
                sides[name] = context
            for seq, slot in enumerate(sides["ours"].add(bench.adapters(targets))):
                sides["ours"].activate(seq, _SHORT, slot)
            samples = alternate(
                {name: mixed_run(c, _SHORT) for name, c in sides.items()},
                bench.settings.rounds(30),
            )
        results.append(
            Result("decode, 8 sequences, 8 adapters", f"{targets} against base",
                   Side(targets, samples["ours"]), Side("base", samples["base"]),
                   goal=goals[targets])
        )  # fmt: skip
    return results


def mixed_run(context: Context, at: int, n: int = 2) -> Callable[[], float]:
    """Seconds for one batch of a token per sequence, of `n` decoded one after another."""
    seqs, chosen = range(N_ADAPTERS), [1] * N_ADAPTERS

    def run() -> None:
        for i in range(n):
            context.decode(steps(seqs, chosen, at + i))

    def sample() -> float:
        seconds = timed(run) / n
        for seq in seqs:
            context.truncate(seq, at)
        return seconds

    return sample


def switching(bench: Bench) -> list[Result]:
    """What choosing another adapter costs: the calls, the next batch, and reserves."""
    results = []
    for targets in bench.settings.targets:
        with ExitStack() as stack:
            sides = _three_sides(bench, stack, targets, cached=_SHORT)
            results += _switching(bench, targets, sides)
    return results


def _switching(bench: Bench, targets: str, sides: dict[str, Context]) -> list[Result]:
    ours, stock, adapters = sides["ours"], sides["stock"], bench.stock_adapters(targets)
    turn = iter(range(1, 10**9))

    def calls() -> float:
        n = 200

        def run() -> None:
            for i in range(n):
                ours.activate(0, _SHORT, 1 + i % N_ADAPTERS)
                ours.deactivate(0)

        return timed(run) / n

    def ours_next() -> float:
        def run() -> None:
            ours.deactivate(0)
            ours.activate(0, _SHORT, 1 + next(turn) % N_ADAPTERS)
            ours.decode([(1, _SHORT, 0, True)])

        return _extra(ours, run)

    def stock_next() -> float:
        def run() -> None:
            stock.set_stock(adapters[next(turn) % N_ADAPTERS])
            stock.decode([(1, _SHORT, 0, True)])

        return _extra(stock, run)

    before = ours.stats().n_reserves
    samples = alternate(
        {"calls": calls, "ours": ours_next, "stock": stock_next}, bench.settings.rounds(30)
    )
    reserves = ours.stats().n_reserves - before
    return [
        Result("activate and deactivate", targets, Side("both calls", samples["calls"]), None,
               kind="value", floor=1e-4, goal="< 0.1 ms"),
        Result("reserves", f"{targets}, all of these switches", Side("", [reserves], ""), None,
               kind="value", floor=0, goal="0"),
        Result("switch, with the next token", f"{targets}, beyond a token without a switch",
               Side("ours", samples["ours"]), Side("stock", samples["stock"])),
    ]  # fmt: skip


def _extra(context: Context, run: Callable[[], None]) -> float:
    """What a token takes beyond the plain tokens that follow it."""
    with_switch = timed(run)
    context.truncate(0, _SHORT)
    plain = []
    for _ in range(2):
        plain.append(timed(lambda: context.decode([(1, _SHORT, 0, True)])))
        context.truncate(0, _SHORT)
    return with_switch - min(plain)
