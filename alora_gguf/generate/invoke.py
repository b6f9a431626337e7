"""Asking adapters about a conversation: each on a fork of its cells, all in the same batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from alora_gguf.engine.runtime import Runtime
from alora_gguf.options import CancelToken, FinishReason, Invocation, Timings, TokenLogprob

from .forks import Done, OnText, Runner
from .plan import Parent, choose_parent, count_trunk, plan_invocation, read_trunk


@dataclass(frozen=True, slots=True)
class Verdict:
    """An adapter's answer: its text and tokens, without an end token or a stop string, and their
    log-probabilities if they were asked for.
    """

    adapter: str | None
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None = None

    def __str__(self) -> str:
        return self.text


OnVerdict = Callable[[int, Verdict], None]
"""Called with an invocation's index and its verdict, as soon as it is over."""


def run_invocations(
    runtime: Runtime,
    parent: Parent,
    invocations: Sequence[Invocation],
    on_text: OnText | None,
    cancel: CancelToken | None,
    on_verdict: OnVerdict | None = None,
) -> list[Verdict]:
    """Session.invoke_many()'s work; the caller holds the session's lock."""
    started = time.perf_counter()
    engine = runtime.engine
    verdicts: dict[int, Verdict] = {}

    def keep(done: Done) -> None:
        index = done.fork.plan.index
        verdicts[index] = verdict = _verdict(done)
        if on_verdict is not None:
            on_verdict(index, verdict)

    with ExitStack() as kept_loaded:
        adapters = [
            kept_loaded.enter_context(runtime.bank.using(inv.adapter, inv.scale))
            for inv in invocations
        ]
        plans = [
            plan_invocation(engine, parent, i, inv, adapters[i])
            for i, inv in enumerate(invocations)
        ]
        run = Runner(engine, started, on_text, cancel, keep)
        trunk = read_trunk(engine, parent, plans, cancel)
        try:
            for plan in plans:
                choose_parent(engine, plan, [parent] if trunk is None else [trunk, parent])
            count_trunk(parent, trunk, plans)
            while len(verdicts) < len(plans):
                run.run_batch(plans[len(verdicts) :])
        finally:
            engine.scheduler.leave()
            if trunk is not None:
                engine.drop(trunk.seq)
    return [verdicts[i] for i in range(len(plans))]


def _verdict(done: Done) -> Verdict:
    fork = done.fork
    plan = fork.plan
    n = plan.stream.tokens_in_text()
    logprobs = plan.sampler.logprobs
    return Verdict(
        adapter=plan.active.name,
        text=plan.stream.text,
        tokens=tuple(fork.tokens[:n]),
        finish_reason=fork.finish_reason or "stop",
        timings=Timings(
            reused=plan.reuse - plan.extra,
            evaluated=len(plan.prompt) - plan.reuse + plan.extra,
            generated=fork.sampled,
            first_token=fork.first_token,
            total=done.total,
            reuse_note=plan.note,
        ),
        logprobs=None if logprobs is None else logprobs[:n],
    )
