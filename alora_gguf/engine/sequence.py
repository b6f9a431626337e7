"""A sequence of tokens, the cells that hold them, who computed those, and what comes next."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Final, cast

from alora_gguf._calls import allowed, uninterrupted
from alora_gguf.errors import CacheFullError, ClosedError, InputError
from alora_gguf.options import CancelToken, Progress, Timings

from .activation import Activations, ActiveAdapter
from .context import Engine
from .llama_context import Logits, Run
from .prefix_cache import MIN_GAIN, OpenSequence, usable
from .tokens import BASE, CachedTokens, Spans


@uninterrupted
class TokenSequence:
    """What a session knows of its tokens.

    seq     the sequence that has the cells
    tokens  the conversation
    cached  the tokens in the cells and who computed each: those of the conversation, but fewer
            after a call that failed, and more where a memory that cannot rewind is still to be cut
    logits  after the last token, [n_vocab]; None if they are not known

    Whoever works on it holds `lock`, and takes it before any lock of the engine's.
    """

    def __init__(self, engine: Engine, source: TokenSequence | None = None) -> None:
        """An empty one, or one that goes on from `source` and shares its cells. Raises
        CacheFullError if all sequences are in use.
        """
        self.engine = engine
        self._cache = engine.prefix_cache
        _SEQUENCES.add(self)
        self.lock, self._borrowing = threading.RLock(), threading.Lock()
        if source is None:
            self.seq = engine.allocate()
            self.cached, self.tokens = CachedTokens(), list[int]()
            self.logits: Logits | None = None
        else:
            n = len(source.cached)
            self.seq = engine.fork(source.seq, n)
            self.cached, self.tokens = source.cached.copy(n), source.tokens.copy()
            self.logits = source.logits
        self._finalizer = weakref.finalize(self, engine.context.abandon, self.seq)
        self._finalizer.atexit = False

    @property
    def closed(self) -> bool:
        """Whether it or its model was closed."""
        return not self._finalizer.alive or self.engine.closed

    def begin(self) -> None:
        """To be called before anything else is: raises ClosedError if there is nothing to work on,
        and makes allocator and `cached` agree.
        """
        if not self._finalizer.alive:
            raise ClosedError("the session was closed")
        _ = self.engine.ctx  # raises ClosedError after the model's close()
        # an interrupt may have struck between the two; what both have is certain
        n = min(len(self.cached), self.engine.cells.length(self.seq))
        if n < len(self.cached) or n < self.engine.cells.length(self.seq):
            self.cut(n)

    def close(self) -> None:
        """Gives the sequence up; its cells stay for others that begin like it, while nobody needs
        their room. Idempotent.
        """
        if self._finalizer.detach() and not self.engine.closed:
            self.engine.deactivate(self.seq)
            self.engine.waive(self.seq)
            self._cache.give(self.seq, self.cached)

    def activate(self, activations: Activations) -> None:
        """Tokens are computed as these say."""
        for position, stage in activations.stages:
            self.engine.activate(self.seq, position, stage.slot, stage.scale)

    def deactivate(self) -> None:
        """The base computes again."""
        if self._finalizer.alive:  # or the sequence may be another's
            self.engine.deactivate(self.seq)

    # Prefill and decode --------------------------------------------------------------------------

    def prefill(
        self,
        tokens: list[int],
        active: ActiveAdapter,
        *,
        logits: bool = False,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> Timings:
        """Makes the conversation `tokens`, which a reply is to follow: the cells are shared where
        some have them as `active` computes them, and the rest is prefilled. With `logits`, those
        after the last token are there afterwards. If it raises, the conversation is what it was.

        Returns what was reused and prefilled, and why not more was reused; times are the caller's.
        """
        engine = self.engine
        activations = active.over(tokens, engine.vocab)
        spans = activations.spans
        keep = self.cached.common_prefix(tokens, spans)
        note = self._note(tokens, keep)
        # a last token whose logits are wanted is decoded in any case
        shared = self._share_with_others(tokens[:-1] if logits else tokens, spans, keep)
        if shared:
            keep, note = shared, f"{shared} tokens are shared with another conversation"
        if keep == len(tokens) and logits and (self.logits is None or keep < len(self.cached)):
            keep -= 1  # the last token is computed again for its logits
        if keep < len(self.cached):
            needed = engine.cells.beyond_promise(self.seq, len(tokens) - keep)
            engine.admission.require(needed, freed=engine.cells.freed_by(self.seq, keep))
            if self.cut(keep) < keep:
                keep = 0
                note = "this model's memory cannot rewind, so everything was read again"
        old, before = self.tokens, self.logits  # None if anything was cut
        rest = tokens[keep:]
        try:
            if rest:
                self.activate(activations)
                run = Run(self.seq, rest)
                (self.logits,) = engine.decode([run], cancel=cancel, progress=progress)
                self.cached.extend(rest, spans)
            self.tokens = list(tokens)
        except BaseException:
            self.tokens = old
            self.cut(keep)
            self.logits = before if len(self.cached) == keep else None
            if shared:  # cells of what was to come
                self.go_back(old)
            raise
        finally:
            self.deactivate()
        return Timings(keep, len(rest), reuse_note=note)

    def read_rows(
        self,
        tokens: list[int],
        first: int,
        active: ActiveAdapter,
        take: Callable[[int, Logits], None],
        *,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Makes the conversation `tokens`, of which those from `first` on, which is 1 or more, are
        the reply, and hands `take` each of their positions with the logits before it, [n_vocab].
        Cells before that are reused.
        """
        engine, old, n = self.engine, self.tokens, len(tokens)
        activations = active.over(tokens, engine.vocab, reply=first - 1)
        spans = activations.spans
        keep = min(self.cached.common_prefix(tokens, spans), first - 1)
        keep = self._share_with_others(tokens[: first - 1], spans, keep) or keep
        engine.admission.require(
            engine.cells.beyond_promise(self.seq, n - keep),
            freed=engine.cells.freed_by(self.seq, keep),
        )
        keep = at = self.cut(keep)
        step = min(engine.n_batch, engine.options.rows)
        try:
            self.activate(activations)
            while at < n:
                part = tokens[at : at + step]
                wanted = min(len(part), at + len(part) - first + 1)
                run = Run(self.seq, part, max(1, wanted))
                rows = cast(Logits, engine.decode([run], cancel=cancel)[0])
                self.cached.extend(part, spans)
                at += len(part)
                self.logits = rows[-1].copy()
                for position, row in enumerate(rows, at - len(rows) + 1):
                    if first <= position < n:
                        take(position, row)
                if progress is not None:
                    with allowed:
                        progress(at - keep, n - keep)
            self.tokens = list(tokens)
        except BaseException:
            self.cut(keep)
            self.go_back(old)
            self.logits = None
            raise
        finally:
            self.deactivate()

    def advance(
        self, tokens: Sequence[int], spans: Spans, cancel: CancelToken | None = None
    ) -> None:
        """Adds tokens and decodes them; what computes them is active already."""
        n, before = len(self.cached), self.logits
        try:
            (logits,) = self.engine.decode([Run(self.seq, tokens)], cancel=cancel)
            self.extend(tokens, spans, logits)
        except BaseException:
            self.cut(n)
            self.logits = before if len(self.cached) == n else None
            del self.tokens[n:]
            raise

    def extend(self, tokens: Sequence[int], spans: Spans, logits: Logits | None) -> None:
        """Adds tokens that were decoded, and the logits after them."""
        self.cached.extend(tokens, spans)
        self.tokens += tokens
        self.logits = logits

    def _note(self, tokens: list[int], keep: int) -> str:
        """Why no more than `keep` cells serve `tokens`; nothing if they are all there are."""
        if keep >= min(len(self.cached), len(tokens)):
            return ""
        if self.cached.tokens[keep] != tokens[keep]:
            return f"the conversation differs from the cached one at token {keep}"
        by = self.cached.at(keep)
        who = "the base" if by == BASE else f"an adapter at scale {by.scale:g}"
        if by.parts:
            who = f"{len(by.parts)} adapters together"
        return f"tokens from {keep} on were in the cache, but computed by {who}"

    # Others' cells -------------------------------------------------------------------------------

    def _share_with_others(self, tokens: list[int], spans: Spans, keep: int) -> int:
        """Where another conversation, open or over, has clearly more of `tokens` in its cells than
        the first `keep`, shares those in place of our own; returns how many, or 0.
        """
        if len(tokens) < keep + MIN_GAIN:
            return 0
        engine, cache, enough = self.engine, self._cache, keep + MIN_GAIN
        with cache.longest(tokens, spans) as (entry, most):
            found = list[tuple[int, OpenSequence]]()
            for other in cache.open_sequences():  # this one has too few
                with other.borrow() as there:
                    n = usable(engine.context, other.cached, tokens, spans) if there else 0
                    if n >= max(enough, most):
                        found.append((n, other))
            for _, other in sorted(found, key=itemgetter(0), reverse=True):
                with other.borrow() as there:  # if another thread is using it by now, the next best
                    n = usable(engine.context, other.cached, tokens, spans) if there else 0
                    if n >= enough and self._share(other.seq, other.cached, n):
                        return n
            if entry is None or most < enough:
                return 0
            cache.used(entry)
            return self._share(entry.seq, entry.cached, most)

    def holds(self, tokens: list[int], active: ActiveAdapter) -> bool:
        """Whether there are cells for all but a few of `tokens`, as `active` computes them: its
        own, or those of another conversation. If it shares those, `tokens` is its conversation.
        """
        spans = active.over(tokens, self.engine.vocab).spans
        keep = self.cached.common_prefix(tokens, spans)
        if not self.engine.rewinds and keep < len(self.cached):
            keep = 0  # they cannot be cut
        shared = self._share_with_others(tokens, spans, keep)
        if shared:
            self.tokens = list(tokens)
        return max(keep, shared) > len(tokens) - MIN_GAIN

    def _share(self, seq: int, cached: CachedTokens, n: int) -> int:
        if self.engine.cells.length(seq) < len(cached):
            return 0  # an interrupt struck there; it is put right at its next call
        self.logits = None
        self.cached.truncate(0)
        self.engine.share(self.seq, seq, n)
        self.cached = cached.copy(n)
        return n

    def reserve(
        self, tokens: list[int], active: ActiveAdapter, n: int, cancel: CancelToken | None
    ) -> None:
        """Promises the cells that `tokens`, as `active` computes them, and `n` more will need, but
        for those that are there or can be shared. While it waits it shares none: others may need
        their room.
        """
        engine = self.engine
        spans = active.over(tokens, engine.vocab).spans
        keep = self.cached.common_prefix(tokens, spans)
        if not engine.rewinds and keep < len(self.cached):
            keep = 0
        shared = self._share_with_others(tokens[:-1], spans, keep)  # the last one is decoded
        if shared:
            try:
                engine.reserve(self.seq, len(tokens) - shared + n, waits=False)
                return
            except CacheFullError:
                keep = self.cut(keep)
        engine.reserve(self.seq, len(tokens) - keep + n, cancel=cancel)

    # Forgetting ----------------------------------------------------------------------------------

    def forget(self, n: int) -> None:
        """Takes the tokens from position `n` on out of the conversation."""
        del self.tokens[n:]
        # a memory that cannot rewind keeps its cells until it is known what comes next
        if self.engine.rewinds and n < len(self.cached):
            self.cut(n)

    def release_tail(self, n: int) -> None:
        """Keeps the first `n` cells. The others stay where those of conversations that are over
        do, while nobody needs their room; the next call shares them again or prefills again.
        No cells go where the memory cannot rewind. What reserve() promised ends.
        """
        self.engine.waive(self.seq)
        if self.engine.rewinds and n < len(self.cached):
            TokenSequence(self.engine, self).close()
            self.cut(n)

    def go_back(self, tokens: list[int]) -> None:
        """Makes the conversation `tokens` again, and keeps what the cells have of them."""
        self.tokens = tokens
        self.cut(self.cached.common_prefix(tokens, self.cached.spans))

    def cut(self, n: int) -> int:
        """Keeps the first `n` cells, or fewer where the memory cannot rewind; returns how many. The
        conversation stays as it is.
        """
        if n < len(self.cached):
            self.logits = None
        self.cached.truncate(n)
        left = self.engine.truncate(self.seq, n)
        self.cached.truncate(left)
        return left

    # For others ----------------------------------------------------------------------------------

    @contextmanager
    def borrow(self) -> Iterator[bool]:
        """Keeps it as it is meanwhile; false if it is closed or another thread is using it."""
        with self._borrowing:  # whoever else borrows it is done in a moment
            if not self.lock.acquire(blocking=False):
                yield False
                return
            try:
                yield not self.closed
            finally:
                self.lock.release()

    def deactivate_unless_busy(self) -> None:
        """For a generation that garbage collection ends, perhaps amid something else: blocks on
        nothing. What it cannot do now, the session's next call does.
        """
        if self.lock.acquire(blocking=False):
            try:
                if self.engine.lock.acquire(blocking=False):
                    try:
                        self.deactivate()
                    finally:
                        self.engine.lock.release()
            finally:
                self.lock.release()

    def last_logits(self) -> Logits:
        """The logits after the last token, [n_vocab], amid a generation."""
        if self.closed:
            raise ClosedError("the session or its model was closed during a generation")
        if self.logits is None:
            raise InputError("the conversation has changed during a generation")
        return self.logits


_SEQUENCES: Final = weakref.WeakSet[TokenSequence]()


def _after_fork() -> None:
    """In a child process, where those who held a lock are missing."""
    for sequence in list(_SEQUENCES):
        for lock in (sequence.lock, sequence._borrowing):
            lock._at_fork_reinit()  # type: ignore[union-attr]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
