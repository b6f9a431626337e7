"""Running planned invocations: each on a fork of its parent's cells, all in the same batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from alora_gguf.engine.batch import Logits, Run
from alora_gguf.engine.context import Engine
from alora_gguf.errors import CacheFullError
from alora_gguf.options import CancelToken, FinishReason

from .drafting import Path
from .plan import Plan, title

OnText = Callable[[int, str], None]
"""Called with an invocation's index and the next piece of its text."""


@dataclass(slots=True)
class Fork:
    """A running invocation."""

    plan: Plan
    seq: int
    tokens: list[int] = field(default_factory=list)  # sampled, or certain
    held: Path = ()  # what the cells hold after the prompt
    rows: dict[Path, Logits] = field(default_factory=dict)  # logits after the prompt and a path
    scouts: dict[int, Path] = field(default_factory=dict)  # forks for the draft's other paths
    said: bytes = b""
    sampled: int = 0
    first_token: float | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """A fork that came to its end, and when that was, in seconds from the call."""

    fork: Fork
    total: float


@dataclass(slots=True)
class Runner:
    """What the waves of one call have in common."""

    engine: Engine
    started: float
    on_text: OnText | None
    cancel: CancelToken | None
    on_done: Callable[[Done], None]

    def run_batch(self, plans: Sequence[Plan]) -> None:
        """Runs as many of the plans, in order, as sequences and cells allow; at least one."""
        engine = self.engine
        forks: list[Fork] = []
        try:
            self._fork_all(plans, forks)
            self._read_prompts(forks)
            while forks:
                for fork in forks.copy():
                    while fork.finish_reason is None and tuple(fork.tokens) in fork.rows:
                        self._step(fork)
                    if fork.finish_reason is not None:
                        forks.remove(fork)
                        engine.drop(fork.seq)  # its cells serve the others
                        self.on_done(Done(fork, time.perf_counter() - self.started))
                if forks:
                    self._read_tokens(forks)
        finally:
            for fork in forks:
                for seq in (fork.seq, *fork.scouts):
                    engine.abandon(seq)
            if not engine.closed:
                engine.collect()

    # Forks ---------------------------------------------------------------------------------------

    def _fork_all(self, plans: Sequence[Plan], forks: list[Fork]) -> None:
        """Forks for the plans, each with the cells that it needs at worst."""
        for plan in plans:
            try:
                seq = self._fork(plan, plan.needs())
            except CacheFullError:
                if forks:
                    return  # the rest takes its turn later
                seq = self._fork_alone(plan)
            fork = Fork(plan, seq)
            forks.append(fork)
            if not plan.drafts or self._is_too_long(plan):
                continue
            fork.held = plan.draft.paths[0]
            for path in plan.draft.paths[1:]:
                try:
                    scout = self._fork(plan, len(plan.prompt) - plan.reuse + len(path))
                except CacheFullError:
                    break  # these logits come later, if they are needed
                fork.scouts[scout] = path

    def _is_too_long(self, plan: Plan) -> bool:
        """Whether a draft would not fit into what was promised."""
        return len(plan.draft.paths[0]) >= plan.invocation.max_tokens

    def _fork(self, plan: Plan, promise: int) -> int:
        engine = self.engine
        seq = engine.fork(plan.parent.seq, plan.reuse, promise=promise, cancel=self.cancel)
        try:
            if plan.active.slot and plan.first is not None:
                engine.activate(seq, plan.first, plan.active.slot, plan.active.scale)
        except BaseException:
            engine.abandon(seq)
            raise
        return seq

    def _fork_alone(self, plan: Plan) -> int:
        """A fork for a plan that may be too long: it may still end before its last token."""
        engine = self.engine
        rest = len(plan.prompt) - plan.reuse
        if not engine.cells.free_sequences:
            raise CacheFullError(
                f"{title(plan)}: all {engine.cells.n_seqs} sequences are in use, none is left to "
                "fork; close a session, or open the model with a larger n_seq_max"
            )
        try:
            return self._fork(plan, rest)
        except CacheFullError:
            raise CacheFullError(
                f"{title(plan)}: the KV cache is full: {rest} cells needed, {engine.cells.free()} "
                f"of {engine.cells.n_cells} free; the conversation is as it was; close another "
                "session or open the model with a larger n_ctx"
            ) from None

    # Reading -------------------------------------------------------------------------------------

    def _read_prompts(self, forks: Sequence[Fork]) -> None:
        """Reads every fork's suffix and drafts; the logits after them are its rows then."""
        work: list[tuple[Fork, int, Path]] = []
        for fork in forks:
            work.append((fork, fork.seq, fork.held))
            work += [(fork, seq, path) for seq, path in fork.scouts.items()]
        runs, owners = [], []
        for fork, seq, path in work:
            plan = fork.plan
            rest = plan.prompt[plan.reuse :]
            if not rest and plan.parent.logits is not None:
                fork.rows[()] = plan.parent.logits  # it stands where its parent does
            tokens = [*rest, *path]
            if tokens:
                runs.append(Run(seq, tokens, outputs=min(len(tokens), len(path) + 1)))
                owners.append((fork, path))
        for (fork, path), rows in zip(owners, self._decode(forks, runs), strict=True):
            if rows is not None:
                for back, row in enumerate(rows[::-1]):
                    fork.rows[path[: len(path) - back]] = row
        for fork in forks:
            for seq in fork.scouts:
                self.engine.drop(seq)
            fork.scouts.clear()

    def _read_tokens(self, forks: Sequence[Fork]) -> None:
        """Reads what each fork has chosen since."""
        runs = []
        for fork in forks:
            tokens, held = fork.tokens, fork.held
            same = next((i for i, t in enumerate(held) if tokens[i : i + 1] != [t]), len(held))
            if same < len(held):  # the draft was wrong there
                self.engine.truncate(fork.seq, len(fork.plan.prompt) + same)
            runs.append(Run(fork.seq, tokens[same:]))
        for fork, row in zip(forks, self._decode(forks, runs), strict=True):
            fork.held = tuple(fork.tokens)
            fork.rows = {} if row is None else {fork.held: row}

    def _decode(self, forks: Sequence[Fork], runs: Sequence[Run]) -> list[Logits | None]:
        if self.cancel is not None:
            self.cancel.check()
        try:
            return self.engine.decode(runs, cancel=self.cancel)
        except CacheFullError as error:
            names = ", ".join(title(fork.plan) for fork in forks)
            raise CacheFullError(
                f"{names}: dropped after {len(forks[0].tokens)} tokens, the conversation is as it "
                f"was: {error}"
            ) from error

    # Sampling ------------------------------------------------------------------------------------

    def _step(self, fork: Fork) -> None:
        """Samples a fork's next token, and goes on to the end if there is only one."""
        plan, stream, vocab = fork.plan, fork.plan.stream, self.engine.vocab
        token = plan.sampler.sample(fork.rows[tuple(fork.tokens)])
        if fork.first_token is None:
            fork.first_token = time.perf_counter() - self.started
        fork.tokens.append(token)
        fork.sampled += 1
        piece = ""
        if vocab.is_end(token):
            fork.finish_reason = "stop"
        else:
            data = vocab.piece(token)
            fork.said += data
            piece = stream.push(data) + self._certain_rest(fork)
            if stream.stopped or plan.sampler.must_end:
                fork.finish_reason = "stop"
            elif fork.finish_reason is None and len(fork.tokens) >= plan.invocation.max_tokens:
                fork.finish_reason = "length"
        if fork.finish_reason is not None:
            piece += stream.finish()
        if piece and self.on_text is not None:
            self.on_text(plan.index, piece)

    def _certain_rest(self, fork: Fork) -> str:
        """Where only one answer is left, the rest of it, and the reply ends: its tokens need not be
        read, as nobody asks for the logits after them.
        """
        rest = fork.plan.draft.rest(fork.said)
        if rest is None or not _is_text(rest):
            return ""
        vocab = self.engine.vocab
        tokens = vocab.tokenize(rest.decode(), add_special=False, parse_special=False)
        if b"".join(vocab.piece(token) for token in tokens) != rest:
            return ""
        fork.plan.sampler.note_certain(tokens)
        fork.tokens += tokens
        fork.finish_reason = "stop"
        return "".join(fork.plan.stream.push(vocab.piece(token)) for token in tokens)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:  # the token ended within a character
        return False
    return True
