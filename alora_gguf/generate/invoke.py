"""Asking adapters about a conversation: each on a fork of its cells, all in the same batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final

from alora_gguf._calls import allowed
from alora_gguf.engine.context import Engine
from alora_gguf.engine.llama_context import Logits, Run
from alora_gguf.engine.runtime import Runtime
from alora_gguf.engine.tokens import Vocabulary, common
from alora_gguf.errors import CacheFullError
from alora_gguf.options import (
    AdapterLike,
    CancelToken,
    FinishReason,
    Invocation,
    Timings,
    TokenLogprob,
    TopLogprob,
)

from .plan import (
    WORTH,
    InvocationPlan,
    Lead,
    Parent,
    Path,
    choose_parent,
    count_shared,
    leads,
    plan_invocation,
    prefill_shared,
    title,
)
from .sampling import usual_tokens

OnText = Callable[[int, str], None]
"""Called with an invocation's index and the next piece of its text."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An adapter's answer: its text and tokens, without an end token or a stop string, and their
    log-probabilities if they were asked for; `end` is the end token's, if one was sampled.
    `adapter` is what the invocation named. `further` has what can come after other ways to begin,
    in tokens, that were read with it anyway.
    """

    adapter: AdapterLike | None
    text: str
    tokens: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason
    timings: Timings
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)
    end: TokenLogprob | None = field(default=None, repr=False)
    further: Mapping[Path, tuple[TopLogprob, ...]] = field(default_factory=dict, repr=False)

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

    def keep(fork: RunningInvocation) -> None:
        index = fork.plan.index
        verdicts[index] = verdict = _verdict(fork)
        if on_verdict is not None:
            with allowed:
                on_verdict(index, verdict)

    with ExitStack() as kept_loaded:
        adapters = [
            kept_loaded.enter_context(runtime.bank.using(inv.adapter, inv.scale, invoked=True))
            for inv in invocations
        ]
        plans = [
            plan_invocation(engine, parent, i, inv, adapters[i], started)
            for i, inv in enumerate(invocations)
        ]
        runner = Runner(engine, started, on_text, cancel, keep)
        shared = prefill_shared(engine, parent, plans, cancel)
        try:
            for plan in plans:
                choose_parent(engine, plan, [parent] if shared is None else [shared, parent])
            count_shared(parent, shared, plans)
            while len(verdicts) < len(plans):
                runner.run_batch([plan for plan in plans if plan.index not in verdicts])
        finally:
            engine.scheduler.leave()
            if shared is not None:
                engine.drop(shared.seq)
    return [verdicts[i] for i in range(len(plans))]


def _verdict(fork: RunningInvocation) -> Verdict:
    plan = fork.plan
    reply = plan.reply
    n, logprobs = reply.stream.tokens_in_text(), reply.sampler.logprobs
    sampled_end = logprobs is not None and len(logprobs) > len(fork.tokens)
    return Verdict(
        adapter=plan.active.name,
        text=reply.stream.text,
        tokens=tuple(fork.tokens[:n]),
        finish_reason=reply.ended or "stop",
        timings=Timings(
            reused=plan.reuse - plan.extra,
            evaluated=len(plan.prompt) - plan.reuse + plan.extra,
            generated=reply.n_sampled,
            first_token=reply.first_token or fork.total,
            total=fork.total,
            reuse_note=plan.note,
        ),
        logprobs=None if logprobs is None else logprobs[:n],
        end=logprobs[-1] if logprobs and sampled_end else None,
        further=_further(fork, logprobs) if logprobs else {},
    )


_TOGETHER: Final = 4
"""So many forks are worth it that conversations which are over give way; more take turns instead:
who comes back to such a conversation would have to read it again.
"""
_UNLIKELY: Final = math.log(1e-6)  # ways to begin that nobody asks about


def _further(
    fork: RunningInvocation, logprobs: Sequence[TokenLogprob]
) -> dict[Path, tuple[TopLogprob, ...]]:
    """What can come after drafted paths that were not taken, each after one that is known."""
    said = tuple(each.token for each in logprobs)
    known = {said[:i]: (0.0, each.top) for i, each in enumerate(logprobs)}
    found = {}
    for path in sorted(fork.drafted, key=len):
        if path in known or path[:-1] not in known:
            continue
        before, top = known[path[:-1]]
        chance = next((before + each.logprob for each in top if each.token == path[-1]), -math.inf)
        if chance > _UNLIKELY:
            found[path] = fork.plan.reply.sampler.alternatives(path, fork.drafted[path])
            known[path] = chance, found[path]
    return found


@dataclass(slots=True)
class RunningInvocation:
    """An invocation on its fork.

    tokens    sampled, or certain
    ahead     how much of the prompt was read before the rest, for others to share
    held      what the cells hold after the prompt
    rows      the logits after the prompt and a path
    drafted   those rows that were read with the prompt
    branches  forks for the draft's other paths
    later     those paths that are read after the prompt
    said      the bytes of `tokens`
    total     when it came to its end, in seconds from the call
    """

    plan: InvocationPlan
    seq: int
    tokens: list[int] = field(default_factory=list)
    ahead: int = 0
    held: Path = ()
    rows: dict[Path, Logits] = field(default_factory=dict)
    drafted: dict[Path, Logits] = field(default_factory=dict)
    branches: dict[int, Path] = field(default_factory=dict)
    later: Sequence[Path] = ()
    said: bytes = b""
    total: float = 0.0

    def add(self, tokens: Sequence[int], vocab: Vocabulary) -> None:
        """Goes on by tokens."""
        self.tokens += tokens
        self.said += b"".join(vocab.piece(token) for token in tokens)


@dataclass(slots=True)
class Runner:
    """What the batches of one call have in common."""

    engine: Engine
    started: float
    on_text: OnText | None
    cancel: CancelToken | None
    on_done: Callable[[RunningInvocation], None]

    def run_batch(self, plans: Sequence[InvocationPlan]) -> None:
        """Runs as many of the plans, in order, as sequences and cells allow; at least one."""
        engine = self.engine
        forks: list[RunningInvocation] = []
        try:
            self._fork_all(plans, forks)
            self._prefill(forks)
            while forks:
                for fork in forks.copy():
                    while fork.plan.reply.ended is None and tuple(fork.tokens) in fork.rows:
                        self._step(fork)
                    if fork.plan.reply.ended is not None:
                        forks.remove(fork)
                        engine.drop(fork.seq)  # its cells serve the others
                        fork.total = time.perf_counter() - self.started
                        self.on_done(fork)
                if forks:
                    self._read_tokens(forks)
        finally:
            for fork in forks:
                for seq in (fork.seq, *fork.branches):
                    engine.abandon(seq)
            if not engine.closed:
                engine.collect()

    # Forks ---------------------------------------------------------------------------------------

    def _fork_all(self, plans: Sequence[InvocationPlan], forks: list[RunningInvocation]) -> None:
        """Forks for the plans, each with the cells that it needs at worst. What several begin with
        is read once, by the first of them, before the others fork its cells.
        """
        made: dict[int, RunningInvocation] = {}
        lead = leads(plans) if self.engine.rewinds else {}
        ready = [plan for plan in plans if plan.index not in lead]
        while ready:
            for plan in ready:
                before = plan.parent, plan.reuse
                if plan.index in lead:
                    of = made[lead[plan.index].index]
                    plan.parent = replace(plan.parent, seq=of.seq, logits=None)
                    plan.reuse = lead[plan.index].n
                try:
                    seq = self._fork(plan, plan.needs(), evicts=len(forks) < _TOGETHER)
                except CacheFullError:
                    plan.parent, plan.reuse = before
                    if forks:
                        return  # the rest takes its turn later
                    seq = self._fork_alone(plan)
                made[plan.index] = fork = RunningInvocation(plan, seq, held=plan.draft.forced)
                forks.append(fork)
                self._branch(fork)
            todo = [plan for plan in plans if plan.index not in made]
            self._read_ahead(made, [lead[plan.index] for plan in todo])
            ready = [plan for plan in todo if lead[plan.index].index in made]

    def _branch(self, fork: RunningInvocation) -> None:
        """Forks for the other paths of a draft."""
        plan = fork.plan
        held, *others = plan.draft.paths
        if len(held) - len(fork.held) >= plan.invocation.max_tokens:
            return  # it would not fit into what was promised
        fork.held = held
        if self.engine.rewinds and len(plan.prompt) - plan.reuse >= WORTH:
            fork.later = others
            return
        for path in others:
            try:
                n = len(plan.prompt) - plan.reuse + len(path)
                branch = self._fork(plan, n, evicts=False)
            except CacheFullError:
                return  # these logits come later, if they are needed
            fork.branches[branch] = path

    def _read_ahead(self, made: dict[int, RunningInvocation], wanted: Sequence[Lead]) -> None:
        """Reads what others wait for."""
        runs = []
        for index, fork in made.items():
            plan = fork.plan
            begin = plan.reuse + fork.ahead
            end = max((each.n for each in wanted if each.index == index), default=0)
            if end > begin:
                fork.ahead = end - plan.reuse
                runs.append(Run(fork.seq, plan.prompt[begin:end], outputs="none"))
        if runs:
            self._decode(list(made.values()), runs)

    def _fork(
        self,
        plan: InvocationPlan,
        promise: int,
        source: int | None = None,
        *,
        evicts: bool = True,
    ) -> int:
        """A fork of what the plan reuses, or of its prompt, which `source` holds."""
        engine = self.engine
        n = plan.reuse if source is None else len(plan.prompt)
        source = plan.parent.seq if source is None else source
        seq = engine.fork(source, n, promise=promise, cancel=self.cancel, evicts=evicts)
        try:
            for position, stage in plan.activations.stages:
                engine.activate(seq, position, stage.slot, stage.scale)
        except BaseException:
            engine.abandon(seq)
            raise
        return seq

    def _fork_alone(self, plan: InvocationPlan) -> int:
        """A fork for a plan that may be too long: it may still end before its last token."""
        try:
            return self._fork(plan, len(plan.prompt) - plan.reuse + len(plan.draft.forced))
        except CacheFullError as error:
            raise CacheFullError(
                f"{title(plan)}: {error}; the conversation is as it was"
            ) from error

    # Reading -------------------------------------------------------------------------------------

    def _prefill(self, forks: Sequence[RunningInvocation]) -> None:
        """Reads every fork's suffix and drafts; the logits after them are its rows then."""
        runs, owners = [], []
        for fork in forks:
            plan = fork.plan
            self._say(fork, self._take(fork, plan.draft.forced, counted=False))
            rest = plan.prompt[plan.reuse :]
            own = rest[fork.ahead :]
            if not rest and plan.parent.logits is not None:
                fork.rows[()] = plan.parent.logits  # it stands where its parent does
            for seq, path in ((fork.seq, fork.held), *fork.branches.items()):
                tokens = [*(own if seq == fork.seq else rest), *path]
                if tokens:
                    wanted = len(path) - len(plan.draft.forced) + 1
                    n = min(len(tokens), wanted)
                    runs.append(Run(seq, tokens, outputs=n, head=plan.head))
                    owners.append((fork, path))
        for (fork, path), rows in zip(owners, self._decode(forks, runs), strict=True):
            if rows is not None:
                for back, row in enumerate(rows[::-1]):
                    fork.rows[path[: len(path) - back]] = row
        self._read_later([(fork, path) for fork in forks for path in fork.later], forks)
        for fork in forks:
            if fork.plan.invocation.logprobs and len(fork.rows) > 1:
                fork.drafted = fork.rows
            for seq in fork.branches:
                self.engine.drop(seq)
            fork.branches.clear()

    def _read_later(
        self, todo: Sequence[tuple[RunningInvocation, Path]], forks: Sequence[RunningInvocation]
    ) -> None:
        """Reads drafts on forks of a prompt that is long enough to be read but once; as many at a
        time as there is room for. Those that have none come later, if they are needed.
        """
        while todo:
            runs = []
            for fork, path in todo:
                try:
                    seq = self._fork(fork.plan, len(path), fork.seq, evicts=False)
                except CacheFullError:
                    break
                fork.branches[seq] = path
                runs.append(Run(seq, path, outputs="all"))
            if not runs:
                return
            for (fork, path), rows in zip(todo, self._decode(forks, runs), strict=False):
                for i, row in enumerate(() if rows is None else rows):
                    fork.rows[path[: i + 1]] = row
            for fork, _ in todo[: len(runs)]:
                for seq in fork.branches:
                    self.engine.drop(seq)
                fork.branches.clear()
            todo = todo[len(runs) :]

    def _read_tokens(self, forks: Sequence[RunningInvocation]) -> None:
        """Reads what each fork has chosen since."""
        runs = []
        for fork in forks:
            tokens, held = fork.tokens, fork.held
            same = common(held, tuple(tokens))
            if same < len(held):  # the draft was wrong there
                self.engine.truncate(fork.seq, len(fork.plan.prompt) + same)
            runs.append(Run(fork.seq, tokens[same:]))
        for fork, row in zip(forks, self._decode(forks, runs), strict=True):
            fork.held = tuple(fork.tokens)
            fork.rows = {} if row is None else {fork.held: row}

    def _decode(
        self, forks: Sequence[RunningInvocation], runs: Sequence[Run]
    ) -> list[Logits | None]:
        if self.cancel is not None:
            self.cancel.check()
        try:
            return self.engine.decode(runs, cancel=self.cancel)
        except CacheFullError as error:
            names = ", ".join(dict.fromkeys(title(fork.plan) for fork in forks))
            raise CacheFullError(
                f"{names}: dropped after {len(forks[0].tokens)} tokens, the conversation is as it "
                f"was: {error}"
            ) from error

    # Sampling ------------------------------------------------------------------------------------

    def _step(self, fork: RunningInvocation) -> None:
        """Samples a fork's next token, and takes what there is no choice about after it."""
        reply = fork.plan.reply
        token, piece = reply.choose(fork.rows[tuple(fork.tokens)]), ""
        if token is not None:
            fork.add([token], self.engine.vocab)
            piece = reply.push(token)
            if reply.ended != "stop":
                piece += self._certain_rest(fork)
        self._say(fork, piece)

    def _take(self, fork: RunningInvocation, tokens: Sequence[int], *, counted: bool) -> str:
        """Goes on by tokens that there is no choice about; returns the text that became certain."""
        fork.add(tokens, self.engine.vocab)
        return fork.plan.reply.take(tokens, counted=counted)

    def _say(self, fork: RunningInvocation, piece: str) -> None:
        if fork.plan.reply.ended is not None:
            piece += fork.plan.reply.stream.finish()
        if piece and self.on_text is not None:
            with allowed:
                self.on_text(fork.plan.index, piece)

    def _certain_rest(self, fork: RunningInvocation) -> str:
        """Takes what comes next where there is no choice. Where only one answer is left it is the
        rest of it, and the reply ends: its tokens need not be decoded, as nobody asks for the
        logits after them.
        """
        reply, rest = fork.plan.reply, fork.plan.draft.rest(fork.said)
        tokens = reply.certain() if rest is None else usual_tokens(rest, self.engine.vocab)
        if not tokens and rest != b"":
            return ""
        piece = self._take(fork, tokens, counted=rest is None)
        if rest is not None:
            reply.ended = "stop"
        return piece
