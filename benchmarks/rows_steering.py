"""Rows about steering vectors: loaded and not used, one, and eight in one batch."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from .bench import N_ADAPTERS, Bench
from .measure import Result, Side, alternate
from .rows_decode import decode_run, mixed_run
from .runtime import Context

_CACHED = 64
_ONE, _EIGHT = 1.01, 1.03
_WITHIN_NOISE = 1.03
_OPERATIONS = ("add", "project", "add_keep_norm")


def steering(bench: Bench) -> list[Result]:
    """Vectors that act behind every block, against the base."""
    return [*_idle(bench), *_one(bench), *_several(bench)]


def add_vectors(bench: Bench, context: Context, n: int, operation: str = "add") -> list[int]:
    """Slots of random vectors that act behind every block."""
    from alora_gguf.gguf.vector import Directions

    rng, slots = np.random.default_rng(0), []
    for i in range(n):
        values = rng.standard_normal((bench.shape.layers, bench.shape.hidden)).astype(np.float32)
        values *= 0.05 if operation != "project" else 1.0
        parts = [
            Directions(layer, "block", operation, 1.0, row)  # type: ignore[arg-type]
            for layer, row in enumerate(values)
        ]
        slots.append(
            context.alora.vector_add(context.ctx, parts, bench.shape.hidden, f"vector {i}")
        )
    return slots


def _idle(bench: Bench) -> list[Result]:
    """Eight vectors loaded and none active."""
    with ExitStack() as stack:
        sides = _sides(bench, stack)
        add_vectors(bench, sides["ours"], N_ADAPTERS)
        samples = alternate(
            {name: decode_run(c, _CACHED) for name, c in sides.items()}, bench.settings.rounds(30)
        )
        different = len({_digest(context) for context in sides.values()}) - 1
    return [
        Result("idle, 8 vectors loaded", "decode, 1 token", Side("ours", samples["ours"]),
               Side("base", samples["base"]), floor=_WITHIN_NOISE, goal="1.00x"),
        Result("idle, different logits", "8 vectors loaded, decode, 1 token",
               Side("", [different], ""), None, kind="value", floor=0, goal="bit-equal"),
    ]  # fmt: skip


def _one(bench: Bench) -> list[Result]:
    results = []
    for operation in _OPERATIONS:
        with ExitStack() as stack:
            sides = _sides(bench, stack)
            (slot,) = add_vectors(bench, sides["ours"], 1, operation)
            sides["ours"].activate(0, _CACHED, slot)
            samples = alternate(
                {name: decode_run(c, _CACHED) for name, c in sides.items()},
                bench.settings.rounds(40),
            )
        results.append(
            Result("decode, one vector", f"{operation}, behind every block, against base",
                   Side("on", samples["ours"]), Side("base", samples["base"]),
                   goal=f"≤ {_ONE:.2f}x")
        )  # fmt: skip
    return results


def _several(bench: Bench) -> list[Result]:
    """A token each for eight sequences with eight vectors, against the same batch on base."""
    with ExitStack() as stack:
        sides = {}
        for name in ("ours", "base"):
            context = stack.enter_context(bench.context(1024, N_ADAPTERS))
            for seq in range(N_ADAPTERS):
                context.prefill(bench.tokens(_CACHED, seq), seq)
            sides[name] = context
        for seq, slot in enumerate(add_vectors(bench, sides["ours"], N_ADAPTERS)):
            sides["ours"].activate(seq, _CACHED, slot)
        samples = alternate(
            {name: mixed_run(c, _CACHED) for name, c in sides.items()}, bench.settings.rounds(30)
        )
    return [
        Result("decode, 8 sequences, 8 vectors", "add, behind every block, against base",
               Side("one batch", samples["ours"]), Side("base", samples["base"]),
               goal=f"≤ {_EIGHT:.2f}x")
    ]  # fmt: skip


def _sides(bench: Bench, stack: ExitStack) -> dict[str, Context]:
    """The same cached tokens in two contexts."""
    sides = {}
    for name in ("ours", "base"):
        context = stack.enter_context(bench.context(512))
        context.prefill(bench.tokens(_CACHED))
        sides[name] = context
    return sides


def _digest(context: Context) -> str:
    context.decode([(1, _CACHED, 0, True)])
    found = context.digest()
    context.truncate(0, _CACHED)
    return found
