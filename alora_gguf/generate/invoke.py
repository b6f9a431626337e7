"""Asking adapters about a conversation: each on a fork of its cells, all in the same batches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

from ..options import CancelToken
from .forks import Done, OnText, Runner
from .generation import FinishReason
from ..options import TokenLogprob
from .plan import Parent, choose_parent, count_trunk, plan_invocation, read_trunk
from .sampling import GREEDY, Sampling
from ..options import Timings

if TYPE_CHECKING:
    from ..model import Model


@dataclass(frozen=True, slots=True)
class Invocation:
    """What to ask an adapter (None: the base model) after a conversation.

    `suffix` (text or token ids) is put behind the conversation; or `prompt` (token ids) takes the
    place of both, and shares the cells of what it has in common with the conversation. The
    adapter's invocation is appended to that if it lacks it, unless `append_invocation` is false:
    then it must occur. `scale` multiplies the adapter's own alpha/rank.

    With a JSON `schema` the answer is JSON that matches it. Its beginning is drafted and checked
    instead of sampled token by token, and where it admits only a few answers, all of them are
    scored at once; the answer is the one that sampling would give. With `logprobs` the verdict has
    the log-probabilities of its tokens, and of so many alternatives.
    """

    adapter: str | None
    suffix: str | Sequence[int] | None = None
    _: KW_ONLY
    prompt: Sequence[int] | None = None
    scale: float = 1.0
    max_tokens: int = 16
    sampling: Sampling = GREEDY
    schema: Mapping[str, Any] | None = None
    logprobs: int | None = None
    stop: str | Sequence[str] = ()
    append_invocation: bool = True


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


def run_invocations(
    model: Model,
    parent: Parent,
    invocations: Sequence[Invocation],
    on_text: OnText | None,
    cancel: CancelToken | None,
) -> list[Verdict]:
    """Session.invoke_many()'s work; the caller holds the session's lock."""
    started = time.perf_counter()
    engine = model.engine
    verdicts: dict[int, Verdict] = {}
    with ExitStack() as kept_loaded:
        uses = [
            kept_loaded.enter_context(model.using(inv.adapter, inv.scale)) for inv in invocations
        ]
        plans = [
            plan_invocation(model, parent, i, inv, uses[i]) for i, inv in enumerate(invocations)
        ]
        run = Runner(engine, started, on_text, cancel)
        trunk = read_trunk(engine, parent, plans, cancel)
        try:
            for plan in plans:
                choose_parent(engine, plan, [parent] if trunk is None else [trunk, parent])
            count_trunk(parent, trunk, plans)
            while len(verdicts) < len(plans):
                for done in run.wave(plans[len(verdicts) :]):
                    verdicts[done.fork.plan.index] = _verdict(done)
        finally:
            engine.queue.leave()
            if trunk is not None:
                engine.drop(trunk.seq)
    return [verdicts[i] for i in range(len(plans))]


def _verdict(done: Done) -> Verdict:
    fork = done.fork
    plan = fork.plan
    n = plan.stream.tokens_in_text()
    logprobs = plan.sampler.logprobs
    return Verdict(
        adapter=plan.use.name,
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
