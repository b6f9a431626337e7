"""The queue in front of llama_decode, the only place that calls it: whoever comes first computes
for all who wait, so that the calls of several threads share batches.

Locks: `engine.lock` guards the context and is held over each C call; `engine.condition` guards the
books and the queue and is only ever held for moments. Who needs both takes the lock first. A thread
that waits here holds neither.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from alora_gguf.errors import AloraError, CacheFullError, CancelledError, ClosedError, DecodeError
from alora_gguf.options import CancelToken, Progress

from .batch import Batch, Logits, Run

if TYPE_CHECKING:
    from .context import Engine

# While others wait, a long text is read in pieces of this many tokens, so that they need not wait
# long; on a CPU longer pieces are hardly faster per token.
_MIXED_PIECE: Final = 128

_LONGEST_WAIT: Final = 0.02  # seconds; sampling from a large vocabulary takes some milliseconds
_STEP: Final = 50e-6
_PATIENCE: Final = 0.5  # seconds that calls wait for one another at most
_BARRIER_STEP: Final = 0.0005

_REASONS: Final = {
    2: "the computation was aborted",
    -1: "llama.cpp refused the batch",
    -2: "memory for the computation could not be allocated",
    -3: "the computation failed",
}


class FairLock:
    """A reentrant lock. Python's own may be taken again by the thread that just released it, time
    after time; give_way() lets those who wait for it come first.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: set[int] = set()  # threads; changed by single atomic operations only

    def acquire(self, blocking: bool = True) -> bool:
        """Takes the lock; says whether it did, which it may not have if not `blocking`."""
        if self._lock.acquire(blocking=False):
            return True
        if not blocking:
            return False
        me = threading.get_ident()
        self._waiting.add(me)
        try:
            return self._lock.acquire()
        finally:
            self._waiting.discard(me)

    def release(self) -> None:
        """Gives it back."""
        self._lock.release()

    def give_way(self) -> None:
        """For who has just released it: returns when those who were waiting have had it, or some
        milliseconds later.
        """
        waiting = self._waiting.copy()
        until = time.monotonic() + _LONGEST_WAIT
        while waiting & self._waiting and time.monotonic() < until:
            time.sleep(_STEP)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class BatchWindow:
    """Whom the next batch may wait for, and how long; the caller holds the engine's desk.

    That is never longer than the last batch took, which is what sharing one saves; and a caller who
    was served alone is waited for by nobody and waits for nobody.
    """

    def __init__(self) -> None:
        self._threads: frozenset[int] = frozenset()
        self._until = 0.0

    def served(self, threads: Collection[int], seconds: float) -> None:
        """A batch that took so long was computed for these threads."""
        self._threads = frozenset(threads)
        self._until = time.monotonic() + min(seconds, _LONGEST_WAIT)

    def leaves(self, thread: int) -> None:
        """It has all that it wanted, and will not be back at once."""
        self._threads -= {thread}

    def wait_for(self, here: Collection[int]) -> float:
        """Seconds that those who are `here` may still wait; 0 if nobody is missing."""
        if self._threads.issubset(here):
            return 0.0
        return max(0.0, self._until - time.monotonic())


@dataclass(slots=True, eq=False)
class Request:
    """One call's tokens in the queue."""

    runs: Sequence[Run]
    rows: list[Logits | None]
    starts: list[int]  # length of each run's sequence before
    read: list[int]  # tokens of each run that are in the cache
    total: int
    cancel: CancelToken | None
    thread: int = field(default_factory=threading.get_ident)
    alone: bool = False  # after a batch failed, each of its requests is tried by itself
    done: bool = False
    error: AloraError | None = None

    @property
    def n_read(self) -> int:
        """Tokens of all runs that are in the cache."""
        return sum(self.read)

    @property
    def cancelled(self) -> bool:
        """Whether its caller gave up."""
        return self.cancel is not None and self.cancel.cancelled


@dataclass(slots=True)
class Piece:
    """Tokens [begin, end) of a request's run, which are in the batch that is being computed."""

    request: Request
    index: int
    begin: int
    end: int
    length: int  # of the sequence before it

    @property
    def run(self) -> Run:
        """The run it is of."""
        return self.request.runs[self.index]


@dataclass(slots=True)
class Work:
    """A batch: its pieces, and for each row of logits the index in the batch and where it goes."""

    pieces: list[Piece] = field(default_factory=list)
    wanted: list[tuple[int, Logits]] = field(default_factory=list)

    @property
    def requests(self) -> list[Request]:
        """Whose pieces these are."""
        return list({id(p.request): p.request for p in self.pieces}.values())


class Scheduler:
    """The requests of one engine. See decode()."""

    def __init__(self, engine: Engine, n_batch: int, n_outputs: int) -> None:
        self._engine = engine
        self._n_batch, self._n_outputs = n_batch, n_outputs
        self._batch = Batch(engine.native.llama, n_batch)
        self._requests: list[Request] = []
        self._leading = False
        self._current: list[Request] = []
        self._returning = BatchWindow()
        self._interrupted = False

    def decode(
        self,
        runs: Sequence[Run],
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> list[Logits | None]:
        """Engine.decode()'s work."""
        engine = self._engine
        books = engine.cells
        total = sum(len(run.tokens) for run in runs)
        if not total:
            return [run.rows(engine.vocab.n_tokens) if run.tokens else None for run in runs]
        if cancel is not None:
            cancel.check()
            cancel._watch(self.wake)
        try:
            starts = [books.length(run.seq) for run in runs]
            rows = [run.rows(engine.vocab.n_tokens) for run in runs]
            request = Request(runs, rows, starts, [0] * len(runs), total, cancel)
            try:
                self._enter(request)
                self._see_through(request, progress)
            except BaseException:
                self._withdraw(request)
                raise
        finally:
            if cancel is not None:
                cancel._unwatch(self.wake)
        if request.error is not None:
            raise request.error
        return request.rows

    def hold(self) -> None:
        """Waits until nobody computes, and keeps everybody from it until let_go(): who comes in the
        meantime shares the next batch. The caller must not hold the desk.
        """
        with self._engine.condition:
            while self._leading:
                self._engine.condition.wait()
            self._leading = True

    def let_go(self) -> None:
        """Ends hold()."""
        with self._engine.condition:
            self._leading = False
            self._engine.condition.notify_all()

    def leave(self) -> None:
        """For who has just been served for the last time: nobody need wait for this thread."""
        with self._engine.condition:
            self._returning.leaves(threading.get_ident())
            self._engine.condition.notify_all()

    @property
    def n_waiting(self) -> int:
        """Calls whose tokens are not all computed."""
        return len(self._requests)

    def wake(self) -> None:
        """Something was cancelled: stops the computation if nobody else waits for it."""
        engine = self._engine
        with engine.condition:
            if self._current and all(request.cancelled for request in self._current):
                self._interrupted = True
                engine.native.interrupt(engine.ctx, True)
            engine.condition.notify_all()

    # On the caller's thread ----------------------------------------------------------------------

    def _enter(self, request: Request) -> None:
        """Promises the cells and puts the request in the queue, when there is room."""
        books = self._engine.cells
        needs = [books.beyond_promise(run.seq, len(run.tokens)) for run in request.runs]

        def fits() -> bool:
            if sum(needs) > books.free():
                return False
            for run, n in zip(request.runs, needs, strict=True):
                if n:
                    books.promise(run.seq, n)
            self._requests.append(request)
            self._engine.condition.notify_all()  # somebody may be waiting for it
            return True

        room = self._engine.admission
        room.admit(fits, lambda: room.no_cells(sum(needs)), request.cancel)

    def _see_through(self, request: Request, progress: Progress | None) -> None:
        """Computes or waits until the request is done."""
        desk, reported = self._engine.condition, 0
        while True:
            lead = False
            try:
                with desk:
                    while not request.done and request.n_read == reported:
                        seconds = None if self._leading else self._seconds_to_wait()
                        if seconds == 0:
                            break
                        desk.wait(seconds)
                    if not request.done and not self._leading:
                        lead = True
                        self._leading = True
                if lead:
                    self._compute()
            finally:
                if lead:
                    with desk:
                        self._leading = False
                        desk.notify_all()
            if request.error is None and request.n_read > reported:
                reported = request.n_read
                if progress is not None:
                    progress(reported, request.total)
            if request.done:
                return

    def _seconds_to_wait(self) -> float:
        """For those who will probably be back at once; 0 to go on without them."""
        return self._returning.wait_for({request.thread for request in self._requests})

    def _withdraw(self, request: Request) -> None:
        """Takes a request out of the queue and its tokens out of the cache."""
        engine = self._engine
        if engine.closed:
            return
        with engine.lock, engine.condition:
            if request.error is None:
                self._undo(request)
            self._finish(request)

    # On the leader's thread ----------------------------------------------------------------------

    def _compute(self) -> None:
        """Composes a batch of what waits, computes it, and hands out what came of it."""
        engine = self._engine
        with engine.lock:
            with engine.condition:
                work = self._compose()
                if not work.pieces:
                    return
                self._current = work.requests
                if self._interrupted:
                    engine.native.interrupt(engine.ctx, False)
                    self._interrupted = False
            started = time.monotonic()
            try:
                status = engine.llama.llama_decode(engine.ctx, self._batch.struct())
                with engine.condition:
                    self._current = []
                    threads = {request.thread for request in work.requests}
                    self._returning.served(threads, time.monotonic() - started)
                    if status:
                        self._failed(work, status)
                    else:
                        self._deliver(work)
            except BaseException:  # an interrupt: the others' tokens are tried again
                with engine.condition:
                    self._current = []
                    self._take_back(work)
                raise
        engine.lock.give_way()

    def _deliver(self, work: Work) -> None:
        engine = self._engine
        for index, row in work.wanted:
            source = engine.llama.llama_get_logits_ith(engine.ctx, index)
            if not source:
                raise DecodeError(f"{engine.path}: llama.cpp gave no logits for a token")
            ctypes.memmove(row.ctypes.data, source, row.nbytes)
        for piece in work.pieces:
            piece.request.read[piece.index] = piece.end
        for request in work.requests:
            if request.n_read == request.total:
                self._finish(request)

    def _failed(self, work: Work, status: int) -> None:
        """Finds out whose fault it was: several requests are tried again one by one, one fails."""
        self._take_back(work)
        requests = [request for request in work.requests if not request.done]
        for request in requests:
            if request.cancelled:
                self._fail(request, CancelledError("the call was cancelled"))
            elif len(requests) > 1:
                request.alone = True
            else:
                self._fail(request, self._failure(status, request.total))

    def _failure(self, status: int, total: int) -> DecodeError:
        engine = self._engine
        if status == 1:
            return CacheFullError(
                f"{engine.path}: the KV cache is full: no cells for {total} more tokens (of "
                f"{engine.cells.n_cells}, {engine.cells.used()} are in use); close or rewind a "
                "session, or open the model with a larger n_ctx"
            )
        reason = _REASONS.get(status, "the computation failed")
        detail = engine.native.last_error()
        return DecodeError(
            f"{engine.path}: a batch could not be computed: {reason} (status {status})"
            f"{': ' + detail if detail else ''}{engine.native.log.tail()}"
        )

    def _take_back(self, work: Work) -> None:
        """Removes a batch's tokens from the cache and puts its requests back to before it."""
        for piece in reversed(work.pieces):
            if piece.request.done:
                continue
            left = self._engine.remove_from(piece.run.seq, piece.length)
            piece.request.read[piece.index] = piece.begin
            if left < piece.length and not piece.request.done:
                reason = "this model's memory cannot rewind, and the batch was interrupted"
                self._fail(piece.request, DecodeError(f"{self._engine.path}: {reason}"))

    # Tickets; the caller holds both locks --------------------------------------------------------

    def _fail(self, request: Request, error: AloraError) -> None:
        self._undo(request)
        request.error = error
        self._finish(request)

    def _undo(self, request: Request) -> None:
        for run, start in zip(request.runs, request.starts, strict=True):
            # a memory that cannot rewind would drop everything, also where there is nothing to undo
            if self._engine.cells.length(run.seq) > start:
                self._engine.remove_from(run.seq, start)

    def _finish(self, request: Request) -> None:
        request.done = True
        for run in request.runs:
            self._engine.cells.settle(run.seq)
        if request in self._requests:
            self._requests.remove(request)
        self._engine.condition.notify_all()

    def fail_all(self) -> None:
        """Ends all requests; for a context that is gone."""
        for request in tuple(self._requests):
            request.error = ClosedError(f"{self._engine.path}: the model was closed")
            request.done = True
        self._requests.clear()
        self._engine.condition.notify_all()

    # Composing a batch ---------------------------------------------------------------------------

    def _compose(self) -> Work:
        for request in tuple(self._requests):
            if request.cancelled:
                self._fail(request, CancelledError("the call was cancelled"))
        self._engine.native.log.clear()
        self._batch.n = 0
        work, rows = Work(), self._n_outputs
        for request, n in self._shares():
            for piece in pieces_of(request, n):
                rows = self._add(work, piece, rows)
                if piece.end < piece.begin + 1 or rows <= 0:
                    break
        return work

    def _shares(self) -> Iterator[tuple[Request, int]]:
        """Which requests the next batch reads how many tokens of: all of the short ones, and equal
        shares of the long ones.
        """
        waiting = self._requests
        if any(request.alone for request in waiting):
            waiting = [next(request for request in waiting if request.alone)]
        if len(waiting) == 1:
            yield waiting[0], self._n_batch
            return
        room = self._n_batch
        share = max(1, room // max(1, len(waiting)))
        takes = []
        for request in waiting:
            takes.append(min(request.total - request.n_read, share, _MIXED_PIECE, room))
            room -= takes[-1]
        for i, request in enumerate(waiting):
            more = min(request.total - request.n_read, _MIXED_PIECE) - takes[i]
            more = max(0, min(more, room))
            room -= more
            yield request, takes[i] + more

    def _add(self, work: Work, piece: Piece, rows: int) -> int:
        """Puts a piece into the batch, shortened to the rows of logits that are left; returns how
        many are left then.
        """
        run, books = piece.run, self._engine.cells
        first = run.first_output
        piece.end = min(piece.end, max(first, piece.begin) + rows)
        if piece.end == piece.begin:
            return 0
        piece.length = books.length(run.seq)
        at = self._batch.add(run.tokens[piece.begin : piece.end], piece.length, run.seq)
        books.extend(run.seq, piece.end - piece.begin)
        work.pieces.append(piece)
        out = piece.request.rows[piece.index]
        for k in range(max(first, piece.begin), piece.end):
            if out is not None:
                index = at + k - piece.begin
                self._batch.logits[index] = 1
                work.wanted.append((index, out if out.ndim == 1 else out[k - first]))
                rows -= 1
        return rows


def pieces_of(request: Request, n: int) -> Iterator[Piece]:
    """The next `n` tokens of a request, run by run."""
    for index, run in enumerate(request.runs):
        begin = request.read[index]
        end = min(len(run.tokens), begin + n)
        if end > begin:
            n -= end - begin
            yield Piece(request, index, begin, end, 0)


class Barrier:
    """Nothing is computed until `n` calls wait in the engine's queue, or have ended without it, or
    half a second has gone by; made by Model.barrier().
    """

    def __init__(self, engine: Engine, n: int, cancel: CancelToken) -> None:
        self._queue, self._desk = engine.scheduler, engine.condition
        self._n, self._cancel = n, cancel
        self._closed = True
        self._queue.hold()
        threading.Thread(target=self._watch, daemon=True).start()

    def leave(self) -> None:
        """One of them needs not be waited for."""
        with self._desk:
            self._n -= 1
            self._desk.notify_all()

    def open(self) -> None:
        """Waits for nobody any more."""
        with self._desk:
            if self._closed:
                self._closed = False
                self._queue.let_go()

    def _watch(self) -> None:
        until = time.monotonic() + _PATIENCE
        with self._desk:  # who enters the queue does not say so
            while not self._is_enough() and time.monotonic() < until:
                self._desk.wait(_BARRIER_STEP)
        self.open()

    def _is_enough(self) -> bool:
        return not self._closed or self._cancel.cancelled or self._queue.n_waiting >= self._n
