"""Asking adapters about a conversation: each on a fork of its cells, all in the same batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from .bank import Use, not_found
from .checks import check_int
from .engine import Engine, Logits, Run
from .errors import CacheFullError, InputError
from .generation import FinishReason
from .invocation import find_last
from .provenance import BASE, CachedTokens, Spans, spans_for
from .sampling import GREEDY, Sampler, Sampling
from .text import TextStream, check_stops
from .timings import Timings

if TYPE_CHECKING:
    from .model import Model

OnText = Callable[[int, str], None]
"""Called with an invocation's index and the next piece of its text."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """What to ask an adapter (None: the base model) after a conversation.

    `suffix` (text or token ids) is put behind the conversation. The adapter's invocation is
    appended to that if the suffix lacks it, unless `append_invocation` is false: then it must occur
    in the conversation or the suffix. `scale` multiplies the adapter's own alpha/rank.
    """

    adapter: str | None
    suffix: str | Sequence[int] | None = None
    _: KW_ONLY
    scale: float = 1.0
    max_tokens: int = 16
    sampling: Sampling = GREEDY
    stop: str | Sequence[str] = ()
    append_invocation: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """An adapter's answer: its text and tokens, without an end token or a stop string."""

    adapter: str | None
    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings


@dataclass(frozen=True, slots=True)
class Parent:
    """A sequence to fork: its cells' record, the tokens it stands for, the logits after its last
    cell.
    """

    seq: int
    record: CachedTokens
    tokens: tuple[int, ...]
    logits: Logits | None


@dataclass(slots=True)
class _Plan:
    """One invocation, checked and worked out: what to read, and how much of it is there already."""

    index: int
    invocation: Invocation
    use: Use
    prompt: list[int]
    spans: Spans
    first: int | None
    sampler: Sampler
    stream: TextStream
    parent: Parent
    reuse: int = 0
    extra: int = 0  # tokens that were read once for several forks and are counted here
    note: str = ""

    def needs(self) -> int:
        """Cells of its own at most; the last token is sampled but never read."""
        return len(self.prompt) - self.reuse + self.invocation.max_tokens - 1


@dataclass(slots=True)
class _Fork:
    """A running invocation."""

    plan: _Plan
    seq: int
    tokens: list[int]
    first_token: float | None = None
    finish_reason: FinishReason | None = None


def run_invocations(
    model: Model, parent: Parent, invocations: Sequence[Invocation], on_text: OnText | None
) -> list[Verdict]:
    """Session.invoke_many()'s work; the caller holds the engine's lock."""
    started = time.perf_counter()
    plans = [_plan(model, parent, i, inv) for i, inv in enumerate(invocations)]
    engine = model.engine
    verdicts: dict[int, Verdict] = {}
    trunk = _read_trunk(engine, parent, plans)
    try:
        for plan in plans:
            _choose_parent(engine, plan, [parent] if trunk is None else [trunk, parent])
        _count_trunk(parent, trunk, plans)
        while len(verdicts) < len(plans):
            wave = _next_wave(engine, plans[len(verdicts) :])
            for fork, verdict in _run_wave(engine, wave, started, on_text):
                verdicts[fork.plan.index] = verdict
    finally:
        if trunk is not None:
            engine.drop(trunk.seq)
    return [verdicts[i] for i in range(len(plans))]


# Planning ----------------------------------------------------------------------------------------


def _plan(model: Model, parent: Parent, index: int, invocation: Invocation) -> _Plan:
    vocab = model.engine.vocab
    use = model.use(invocation.adapter, invocation.scale)
    check_int(invocation.max_tokens, "max_tokens", 1)
    prompt = _prompt(model, parent, invocation, use)
    first = use.first_position(prompt, vocab)
    return _Plan(
        index=index,
        invocation=invocation,
        use=use,
        prompt=prompt,
        spans=spans_for(first, use.provenance),
        first=first,
        sampler=Sampler(invocation.sampling, vocab),
        stream=TextStream(check_stops(invocation.stop)),
        parent=parent,
    )


def _prompt(model: Model, parent: Parent, invocation: Invocation, use: Use) -> list[int]:
    """The conversation, the suffix, and the adapter's invocation if it is not there yet."""
    vocab, suffix = model.engine.vocab, invocation.suffix
    if isinstance(suffix, str):
        ids = (
            vocab.tokenize(suffix, add_special=False, parse_special=True)
            if parent.tokens
            else vocab.tokenize_start(suffix)
        )
    else:
        ids = vocab.check(suffix or (), "suffix")
    prompt = [*parent.tokens, *ids]
    wanted = () if use.file is None else use.file.invocation
    if wanted and invocation.append_invocation:
        # an occurrence may begin in the conversation, but one that ends there is an earlier turn's
        tail = prompt[max(0, len(parent.tokens) - len(wanted) + 1) :]
        if find_last(tail, wanted) is None:
            if isinstance(suffix, str) and vocab.detokenize(wanted, special=True) in suffix:
                raise not_found(use, prompt, vocab)  # it would stand there twice
            prompt += wanted
    if not prompt:
        raise InputError("there is nothing to ask about: conversation and suffix are empty")
    return prompt


def _reusable(engine: Engine, plan: _Plan, parent: Parent) -> int:
    """How many of the parent's cells a fork for this plan can share."""
    keep = parent.record.common_prefix(plan.prompt, plan.spans)
    whole = keep == len(parent.record)
    if keep == len(plan.prompt) and not (whole and parent.logits is not None):
        keep, whole = keep - 1, False  # a token must be read to have logits to sample from
    return keep if engine.rewinds or whole else 0


def _choose_parent(engine: Engine, plan: _Plan, parents: Sequence[Parent]) -> None:
    plan.parent = max(parents, key=lambda parent: _reusable(engine, plan, parent))
    plan.reuse = _reusable(engine, plan, plan.parent)
    common = plan.parent.record.common_prefix(plan.prompt, plan.spans)
    name, n = plan.use.name, len(plan.parent.tokens)
    if plan.reuse >= n - 1:
        return
    if plan.first == 0:
        plan.note = f"'{name}' is a plain LoRA: it computes every token anew"
    elif plan.reuse < common - 1:
        plan.note = "this model's memory can be forked only as a whole, so everything is read again"
    elif plan.first is not None and plan.first < n:
        plan.note = f"'{name}' is on from token {plan.first} of the conversation's {n}"
    else:
        plan.note = f"tokens from {common} on are cached as another adapter computed them"


def _read_trunk(engine: Engine, parent: Parent, plans: Sequence[_Plan]) -> Parent | None:
    """Where the conversation's end is not in the cache as the base computes it (an adapter wrote
    the last reply, say) and several plans need it so, reads it once, on a fork for all to fork.
    """
    base, n = spans_for(None, BASE), len(parent.tokens)
    if not plans or not n:
        return None
    have = parent.record.common_prefix(parent.tokens, base)
    if not engine.rewinds and have < len(parent.record):
        have = 0
    wanting = [p for p in plans if p.first is None or p.first >= n]
    room = engine.books.free() - (n - have)
    if have == n or len(wanting) < 2 or engine.books.free_sequences < 2:
        return None
    if room < min(p.needs() - n for p in wanting):
        return None
    seq = engine.fork(parent.seq, have)
    try:
        (logits,) = engine.decode([Run(seq, parent.tokens[have:])])
    except BaseException:
        engine.drop(seq)
        raise
    record = parent.record.copy(have)
    record.extend(parent.tokens[have:], base)
    return Parent(seq, record, parent.tokens, logits)


def _count_trunk(parent: Parent, trunk: Parent | None, plans: Sequence[_Plan]) -> None:
    """Books what the trunk read, which is forked further on, on the first plan that uses it."""
    users = [plan for plan in plans if plan.parent is trunk and plan.reuse]
    if trunk is None or not users:
        return
    plan = users[0]
    had = parent.record.common_prefix(trunk.tokens, trunk.record.spans)
    plan.extra = max(0, plan.reuse - had)
    if not plan.note:
        plan.note = (
            f"{plan.extra} tokens were cached as another adapter computed them, and read again for "
            f"{len(users)} invocations together"
        )


def _next_wave(engine: Engine, plans: Sequence[_Plan]) -> list[_Plan]:
    """As many plans, in order, as sequences and cells allow at worst; at least one."""
    engine.collect()
    free, sequences = engine.books.free(), engine.books.free_sequences
    wave: list[_Plan] = []
    for plan in plans:
        if len(wave) == sequences or plan.needs() > free:
            break
        wave.append(plan)
        free -= plan.needs()
    if not wave:
        plan = plans[0]  # alone it may still end before its last token
        rest = len(plan.prompt) - plan.reuse
        if not sequences:
            raise CacheFullError(
                f"{_title(plan)}: all {engine.books.n_seqs} sequences are in use, none is left to "
                "fork; close a session, or open the model with a larger n_seq_max"
            )
        if rest > free:
            raise CacheFullError(
                f"{_title(plan)}: the KV cache is full: {rest} cells needed, {free} of "
                f"{engine.books.n_cells} free; the conversation is as it was; close another "
                "session or open the model with a larger n_ctx"
            )
        wave.append(plan)
    return wave


# Running -----------------------------------------------------------------------------------------


def _run_wave(
    engine: Engine, plans: Sequence[_Plan], started: float, on_text: OnText | None
) -> list[tuple[_Fork, Verdict]]:
    forks: list[_Fork] = []
    done: list[tuple[_Fork, Verdict]] = []
    try:
        for plan in plans:
            fork = _Fork(plan, engine.fork(plan.parent.seq, plan.reuse), [])
            forks.append(fork)
            if plan.use.slot and plan.first is not None:
                engine.activate(fork.seq, plan.first, plan.use.slot, plan.use.scale)
        rows = _decode(engine, [(f, f.plan.prompt[f.plan.reuse :]) for f in forks])
        live = forks.copy()
        while live:
            for fork, row in zip(live, rows, strict=True):
                _step(engine, fork, row, started, on_text)
                if fork.finish_reason is not None:
                    done.append((fork, _verdict(fork, started)))
                    forks.remove(fork)
                    engine.drop(fork.seq)  # its cells serve the others
            live = forks.copy()
            rows = _decode(engine, [(f, f.tokens[-1:]) for f in live])
    finally:
        for fork in forks:
            engine.abandon(fork.seq)
        if not engine.closed:
            engine.collect()
    return done


def _decode(engine: Engine, work: Sequence[tuple[_Fork, list[int]]]) -> list[Logits]:
    """Reads each fork's tokens, all forks together; returns the logits after each one's last."""
    busy = [(fork, tokens) for fork, tokens in work if tokens]
    if not work:
        return []
    try:
        rows = iter(engine.decode([Run(fork.seq, tokens) for fork, tokens in busy]))
    except CacheFullError as error:
        names = ", ".join(_title(fork.plan) for fork, _ in busy)
        n = len(work[0][0].tokens)
        raise CacheFullError(
            f"{names}: dropped after {n} tokens, the conversation is as it was: {error}"
        ) from error
    # a fork with nothing to read stands where its parent does
    found = [next(rows) if tokens else fork.plan.parent.logits for fork, tokens in work]
    return [row for row in found if row is not None]


def _step(engine: Engine, fork: _Fork, row: Logits, started: float, on_text: OnText | None) -> None:
    """Samples a fork's next token."""
    plan, stream = fork.plan, fork.plan.stream
    token = plan.sampler.sample(row)
    if fork.first_token is None:
        fork.first_token = time.perf_counter() - started
    fork.tokens.append(token)
    if engine.vocab.is_end(token):
        fork.finish_reason, piece = "stop", ""
    else:
        piece = stream.push(engine.vocab.piece(token))
        if stream.stopped:
            fork.finish_reason = "stop"
        elif len(fork.tokens) >= plan.invocation.max_tokens:
            fork.finish_reason = "length"
    if fork.finish_reason is not None:
        piece += stream.finish()
    if piece and on_text is not None:
        on_text(plan.index, piece)


def _verdict(fork: _Fork, started: float) -> Verdict:
    plan = fork.plan
    return Verdict(
        adapter=plan.use.name,
        text=plan.stream.text,
        tokens=tuple(fork.tokens[: plan.stream.tokens_in_text()]),
        finish_reason=fork.finish_reason or "stop",
        timings=Timings(
            reused=plan.reuse - plan.extra,
            evaluated=len(plan.prompt) - plan.reuse + plan.extra,
            generated=len(fork.tokens),
            first_token=fork.first_token,
            total=time.perf_counter() - started,
            reuse_note=plan.note,
        ),
    )


def _title(plan: _Plan) -> str:
    return "the base model" if plan.use.name is None else f"adapter '{plan.use.name}'"
