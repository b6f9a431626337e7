"""The queues in front of llama_decode: who is let in when cells run short, and, the only place that
calls it, what the calls of several threads compute together.

Whoever comes first computes for all who wait (leader and followers). A scheduler thread that owns
the context was measured instead: two switches of threads for each decode cost a lone caller 0.35 ms
a token, 4 to 9 % with a small model, and the fair lock, the batch window and the barrier are needed
all the same, because sequences are forked, cut and saved between batches.

Who needs both of the context's locks takes `lock` first; a thread that waits here holds neither.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final

import numpy as np

from alora_gguf._calls import allowed, check_interrupts, pending
from alora_gguf.errors import (
    AloraError,
    CacheFullError,
    CancelledError,
    ClosedError,
    DecodeError,
    NotFiniteError,
    RpcError,
)
from alora_gguf.options import CancelToken, Progress

from .llama_context import Batch, LlamaContext, Logits, Request, Run
from .prefix_cache import PrefixCache

# seconds after which who waits looks again, were it not woken; for signals that arrived meanwhile
_GLANCE: Final = 0.1
_LONGEST_WAIT: Final = 0.02  # seconds; sampling from a large vocabulary takes some milliseconds
_PATIENCE: Final = 0.5  # seconds that calls wait for one another at most

_REASONS: Final = {
    2: "the computation was aborted",
    -1: "llama.cpp refused the batch",
    -2: "memory for the computation could not be allocated",
}


class BatchWindow:
    """How long the next batch waits for callers that were just served together and will probably be
    back at once, one token later: or they would take turns from then on. The caller holds the
    context's condition.

    That is never longer than the last batch took, which is what sharing one saves; and a caller who
    was served alone is waited for by nobody and waits for nobody.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._threads: frozenset[int] = frozenset()
        self._until = 0.0

    def served(self, threads: Collection[int], seconds: float) -> None:
        """A batch that took so long was computed for these threads."""
        self._threads = frozenset(threads)
        self._until = self._clock() + min(seconds, _LONGEST_WAIT)

    def leaves(self, thread: int) -> None:
        """It has all that it wanted, and will not be back at once."""
        self._threads -= {thread}

    def wait_for(self, here: Collection[int]) -> float:
        """Seconds that those who are `here` may still wait; 0 if nobody is missing."""
        if self._threads.issubset(here):
            return 0.0
        return max(0.0, self._until - self._clock())


class Barrier:
    """Calls of several threads that share their first batch, though they do not begin at once:
    nothing is computed until `n` calls wait, or have ended without it, or half a second has gone
    by. See Scheduler.barrier().
    """

    def __init__(
        self,
        condition: threading.Condition,
        n: int,
        cancel: CancelToken | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._condition, self._n, self._cancel, self._clock = condition, n, cancel, clock
        self._until = clock() + _PATIENCE

    def leave(self) -> None:
        """One of the calls need not be waited for."""
        with self._condition:
            self._n -= 1
            self._condition.notify_all()

    def open(self) -> None:
        """Nobody is waited for any more."""
        with self._condition:
            self._n = 0
            self._condition.notify_all()

    def wait_for(self, n_waiting: int) -> float:
        """Seconds that those who wait may still do so; 0 once it is open. The caller holds the
        condition.
        """
        if n_waiting >= self._n or (self._cancel is not None and self._cancel.cancelled):
            self._n = 0
        return max(0.0, self._until - self._clock()) if self._n > 0 else 0.0


class AdmissionQueue:
    """Lets calls in, in order of arrival, as soon as what they need is free; for any thread.

    What nobody needs, the prefix cache's entries, goes before anybody waits, unless the call could
    not be let in even then.
    """

    def __init__(self, context: LlamaContext, cache: PrefixCache) -> None:
        self._context, self._cells, self._condition = context, context.cells, context.condition
        self._cache = cache
        self._line: deque[object] = deque()

    def admit(
        self,
        fits: Callable[[], bool],
        full: Callable[[], AloraError],
        cancel: CancelToken | None = None,
        *,
        n: int = 0,
        waits: bool = True,
        evicts: bool = True,
    ) -> None:
        """Waits until `fits()`, which takes what it needs from the allocator, `n` cells, and says
        if it could, as long as another thread is about to give something back. Raises `full()` when
        nobody is. A thread that is to give something back itself never waits; nor, without `waits`,
        does one whose call must not. Without `evicts` no conversation that is over gives way.
        """
        me, place = threading.get_ident(), object()
        try:
            while True:
                with self._condition:
                    _ = self._context.ctx  # raises ClosedError
                    if n > self._cells.n_cells:
                        raise full()
                    holders = self._cells.holders
                    holds = not waits or me in holders.values()
                    ahead = self._ahead_of(place)
                    first = holds or ahead == 0
                    if first and fits():
                        return
                    seen = self._cells.version
                if first and self._context.collect():
                    continue
                if first and evicts and self._would_fit(n, me) and self._cache.evict():
                    continue
                with self._condition:
                    if first and (holds or not holders) and seen == self._cells.version:
                        raise full()
                    self._wait(place, seen, ahead, cancel)
                if cancel is not None:
                    cancel.check()
        finally:
            if place in self._line:
                with self._condition:
                    self._line.remove(place)
                    self._condition.notify_all()

    def _ahead_of(self, place: object) -> int:
        """How many stand in line before it, or would if it came now."""
        return self._line.index(place) if place in self._line else len(self._line)

    def _wait(self, place: object, seen: int, ahead: int, cancel: CancelToken | None) -> None:
        """Stands in line until something is given back since `seen`, or the line has moved since so
        many stood `ahead`: also before this call, when the caller had let go of the condition.
        """
        if place not in self._line:
            self._line.append(place)
        if cancel is not None:
            cancel._watch(self._wake)
        try:
            while seen == self._cells.version and ahead == self._ahead_of(place):
                if ahead == 0 and self._context.abandoned:
                    return
                if self._context.closed or (cancel is not None and cancel.cancelled):
                    return
                self._condition.wait(_GLANCE)
                check_interrupts()
        finally:
            if cancel is not None:
                cancel._unwatch(self._wake)

    def _would_fit(self, n: int, me: int) -> bool:
        """Whether `n` cells would be free with the prefix cache empty and all that other threads
        hold given back; if not, evicting is of no use.
        """
        with self._condition:
            soon = {seq for seq, holder in self._cells.holders.items() if holder != me}
            soon.update(self._cache.evictable())
            return n <= self._cells.n_cells - self._cells.used_without(soon)

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def require(self, n: int, freed: int = 0) -> None:
        """Raises CacheFullError unless `n` more cells fit once `freed` ones are given back, now or
        soon.
        """
        self.admit(
            lambda: n <= self._cells.free() + freed, lambda: self.no_cells(n, freed), n=n - freed
        )

    # Errors --------------------------------------------------------------------------------------

    def no_cells(self, n: int, freed: int = 0) -> CacheFullError:
        """The error for `n` cells that do not fit."""
        cells = self._cells
        evictable = cells.used() - cells.used_without(self._cache.evictable())
        return CacheFullError(
            f"{self._context.path}: the KV cache is full: {n} cell{'s' * (n != 1)} needed, "
            f"{cells.free() + freed + evictable} of {cells.n_cells} free; close or rewind a "
            "session, or open the model with a larger n_ctx"
        )

    def no_sequence(self, promise: int | None) -> CacheFullError:
        """The error for a sequence, with a `promise` of so many cells, that cannot be had."""
        if self._cells.free_sequences and promise is not None:
            return self.no_cells(promise)
        return CacheFullError(
            f"{self._context.path}: all {self._cells.n_seqs} sequences are in use; close a "
            "session, or open the model with a larger n_seq_max"
        )


class Scheduler:
    """The requests of one context. See decode()."""

    def __init__(self, context: LlamaContext, admission: AdmissionQueue) -> None:
        self._context, self._admission = context, admission
        self._cells, self._condition = context.cells, context.condition
        n_outputs = min(context.n_batch, context.options.rows)
        self._batch = Batch(context.llama, context.n_batch, n_outputs)
        self._requests: list[Request] = []
        self._leading = False
        self._current: list[Request] = []
        self._window = BatchWindow()
        self._barriers: list[Barrier] = []
        self._interrupted = False

    def decode(
        self,
        runs: Sequence[Run],
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> list[Logits | None]:
        """Engine.decode()'s work."""
        cells, n_vocab = self._cells, self._context.vocab.n_tokens
        rows = [run.rows(n_vocab) if run.tokens else None for run in runs]
        if not any(run.tokens for run in runs):
            return rows
        if cancel is not None:
            cancel.check()
            cancel._watch(self.wake)
        try:
            request = Request(runs, rows, [cells.length(run.seq) for run in runs], cancel)
            try:
                self._enter(request)
                self._see_through(request, progress)
            except BaseException:
                self._withdraw(request)
                raise
        finally:
            if cancel is not None:
                cancel._unwatch(self.wake)
        error, request.error = request.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # or this frame and the error would refer to one another
        return rows

    def barrier(self, n: int, cancel: CancelToken | None = None) -> Barrier:
        """Lets `n` calls of several threads that are about to begin share their first batch: a
        reply, say, and what is asked while it begins. Each call that ends without having decoded
        must leave() it; open() it when the last has begun. Until then all calls of this context are
        kept waiting, though never longer than half a second.
        """
        barrier = Barrier(self._condition, n, cancel)
        with self._condition:
            self._barriers.append(barrier)
        return barrier

    def leave(self) -> None:
        """For who has just been served for the last time: nobody need wait for this thread."""
        with self._condition:
            self._window.leaves(threading.get_ident())
            self._condition.notify_all()

    def wake(self) -> None:
        """Something was cancelled: stops the computation if nobody else waits for it."""
        with self._condition:
            if self._current and all(request.cancelled for request in self._current):
                self._interrupted = True
                self._context.native.interrupt(self._context.ctx, True)
            self._condition.notify_all()

    def fail_all(self) -> None:
        """Ends all requests; for a context that is gone. The caller holds the condition."""
        for request in tuple(self._requests):
            request.error = ClosedError(f"{self._context.path}: the model was closed")
            request.done = True
        self._requests.clear()
        self._condition.notify_all()

    # On the caller's thread ----------------------------------------------------------------------

    def _enter(self, request: Request) -> None:
        """Promises the cells and puts the request in the queue, when they are free."""
        cells = self._cells
        needs = [cells.beyond_promise(run.seq, len(run.tokens)) for run in request.runs]

        def fits() -> bool:
            if sum(needs) > cells.free():
                return False
            for run, n in zip(request.runs, needs, strict=True):
                if n:
                    cells.promise(run.seq, n)
            self._requests.append(request)
            self._condition.notify_all()  # somebody may be waiting for it
            return True

        n = sum(needs)
        self._admission.admit(fits, lambda: self._admission.no_cells(n), request.cancel, n=n)

    def _see_through(self, request: Request, progress: Progress | None) -> None:
        """Computes or waits until the request is done."""
        reported = 0
        while True:
            check_interrupts()
            lead = False
            try:
                with self._condition:
                    while not request.done and request.n_read == reported and not pending():
                        seconds = _GLANCE if self._leading else self._seconds_to_wait()
                        if seconds == 0:
                            break
                        self._condition.wait(min(seconds, _GLANCE))
                    if not request.done and not self._leading:
                        lead = True
                        self._leading = True
                if lead:
                    self._compute()
            finally:
                if lead:
                    self._leading = False  # before anything that could be interrupted
                    with self._condition:
                        self._condition.notify_all()
            if request.error is None and request.n_read > reported:
                reported = request.n_read
                if progress is not None:
                    with allowed:
                        progress(reported, request.total)
            if request.done:
                return

    def _seconds_to_wait(self) -> float:
        """For calls that should share the next batch; 0 to go on without them."""
        here = {request.thread for request in self._requests}
        seconds = self._window.wait_for(here)
        if not self._barriers:
            return seconds
        n = len(self._requests)
        self._barriers = [barrier for barrier in self._barriers if barrier.wait_for(n)]
        return max([seconds, *(barrier.wait_for(n) for barrier in self._barriers)])

    def _withdraw(self, request: Request) -> None:
        """Takes a request out of the queue and its tokens out of the cache."""
        if self._context.closed:
            return
        with self._context.lock, self._condition:
            if request.error is None:
                self._undo(request)
            self._finish(request)

    # On the leader's thread ----------------------------------------------------------------------

    def _compute(self) -> None:
        """Composes a batch of what waits, computes it, and hands out what came of it."""
        context = self._context
        with context.lock, context.logged():
            with self._condition:
                batch = self._compose()
                if not batch.pieces:
                    return
                self._current = requests = batch.requests
                if self._interrupted:
                    context.native.interrupt(context.ctx, False)
                    self._interrupted = False
            started = time.monotonic()
            try:
                context.choose_threads()
                context.show_states(batch.scores)
                status = context.llama.llama_decode(context.ctx, batch.struct())
                with self._condition:
                    self._current = []
                    threads = {request.thread for request in requests}
                    self._window.served(threads, time.monotonic() - started)
                    if status:
                        self._failed(batch, requests, self._failure(status, batch))
                    else:
                        self._deliver(batch)
            except RpcError as error:  # what any of them has in the cache is gone
                with self._condition:
                    for request in requests:
                        if not request.done:
                            self._fail(request, error)
            except BaseException:  # an interrupt: the others' tokens are tried again
                with self._condition:
                    self._current = []
                    self._take_back(batch, requests)
                raise
        context.lock.give_way()

    def _compose(self) -> Batch:
        for request in tuple(self._requests):
            if request.cancelled:
                self._fail(request, CancelledError("the call was cancelled"))
        self._batch.compose(self._requests, self._cells)
        return self._batch

    def _deliver(self, batch: Batch) -> None:
        ctx, logits_of = self._context.ctx, self._context.llama.llama_get_logits_ith
        for index, _, row, head in batch.wanted:
            if head is not None:
                head.write(self._context.state_at(index), row)
                continue
            source = logits_of(ctx, index)
            if not source:
                raise DecodeError(f"{self._context.path}: llama.cpp gave no logits for a token")
            ctypes.memmove(row.ctypes.data, source, row.nbytes)
        self._context.check_servers()
        overflown = self._overflown(batch)
        if overflown:
            self._failed(batch, overflown, self._overflow())
        for piece in batch.pieces:
            request = piece.request
            if request not in overflown:
                request.read[piece.index] = piece.end
                if not request.done and request.n_read == request.total:
                    self._finish(request)

    def _overflown(self, batch: Batch) -> list[Request]:
        """Whose tokens left cells that are not finite; and whose logits are not, if there are any
        such cells: another's may have reached them in the same batch.
        """
        if self._context.native.batch_is_finite(self._context.ctx, batch.struct()):
            return []
        ranges = [(p.run.seq, p.length, p.length + p.end - p.begin) for p in batch.pieces]
        places = self._context.native.not_finite(self._context.ctx, ranges)
        found = {id(batch.pieces[i].request) for i in places}
        found |= {id(r) for _, r, row, _ in batch.wanted if not np.isfinite(row).all()}
        return [request for request in batch.requests if id(request) in found]

    def _failed(self, batch: Batch, requests: list[Request], error: DecodeError) -> None:
        """Finds out whose fault it was: several requests are tried again one by one, one fails."""
        several = sum(not request.done for request in batch.requests) > 1
        self._take_back(batch, requests)
        for request in requests:
            if request.done:
                continue
            if request.cancelled:
                self._fail(request, CancelledError("the call was cancelled"))
            elif several:
                request.alone = True
            else:
                self._fail(request, error)

    def _overflow(self) -> NotFiniteError:
        return NotFiniteError(
            f"{self._context.path}: the model computed keys, values or states that are not finite; "
            "they were taken out of the cache again. Use the adapter at a smaller scale, or cells "
            "of type_k and type_v 'bf16'"
        )

    def _failure(self, status: int, batch: Batch) -> DecodeError:
        context, total = self._context, sum(request.total for request in batch.requests)
        context.check_servers()
        if status == 1:
            return CacheFullError(
                f"{context.path}: the KV cache is full: no cells for {total} more tokens (of "
                f"{self._cells.n_cells}, {self._cells.used()} are in use); close or rewind a "
                "session, or open the model with a larger n_ctx"
            )
        reason = _REASONS.get(status, "the computation failed")
        detail = context.native.last_error()
        return DecodeError(
            f"{context.path}: a batch could not be computed: {reason} (status {status})"
            f"{': ' + detail if detail else ''}{context.native.log.tail()}"
        )

    def _take_back(self, batch: Batch, requests: list[Request]) -> None:
        """Removes a batch's tokens from the cache and puts these requests back to before it."""
        for piece in reversed(batch.pieces):
            request = piece.request
            if request.done or request not in requests:
                continue
            left = self._context.remove_from(piece.run.seq, piece.length)
            request.read[piece.index] = piece.begin
            if left < piece.length:
                reason = "this model's memory cannot rewind, and the batch was interrupted"
                self._fail(request, DecodeError(f"{self._context.path}: {reason}"))
        if not self._context.closed:
            # what is not finite in them would reach whoever has them next
            self._context.native.clear_free_cells(self._context.ctx)

    # Requests; the caller holds both locks -------------------------------------------------------

    def _fail(self, request: Request, error: AloraError) -> None:
        self._undo(request)
        request.error = error
        self._finish(request)

    def _undo(self, request: Request) -> None:
        for run, start in zip(request.runs, request.starts, strict=True):
            # a memory that cannot rewind would drop everything, also where there is nothing to undo
            if self._cells.length(run.seq) > start:
                self._context.remove_from(run.seq, start)

    def _finish(self, request: Request) -> None:
        request.done = True
        for run in request.runs:
            self._cells.settle(run.seq)
        if request in self._requests:
            self._requests.remove(request)
        self._condition.notify_all()
