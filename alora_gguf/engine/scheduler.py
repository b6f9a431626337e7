"""The queue in front of llama_decode, the only place that calls it: whoever comes first computes
for all who wait, so that the calls of several threads share batches.

Locks: `engine.lock` guards the context and is held over each C call; `engine.desk` guards the
books and the queue and is only ever held for moments. Who needs both takes the lock first. A thread
that waits here holds neither.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from alora_gguf.errors import AloraError, CacheFullError, CancelledError, ClosedError, DecodeError
from alora_gguf.options import CancelToken, Progress

from .batch import Batch, Logits, Run
from .returning import Returning

if TYPE_CHECKING:
    from .context import Engine

# While others wait, a long text is read in pieces of this many tokens, so that they need not wait
# long; on a CPU longer pieces are hardly faster per token.
_MIXED_PIECE: Final = 128

_REASONS: Final = {
    2: "the computation was aborted",
    -1: "llama.cpp refused the batch",
    -2: "memory for the computation could not be allocated",
    -3: "the computation failed",
}


@dataclass(slots=True, eq=False)
class _Ticket:
    """One call's tokens in the queue."""

    runs: Sequence[Run]
    rows: list[Logits | None]
    starts: list[int]  # length of each run's sequence before
    read: list[int]  # tokens of each run that are in the cache
    total: int
    cancel: CancelToken | None
    thread: int = field(default_factory=threading.get_ident)
    alone: bool = False  # after a batch failed, each of its tickets is tried by itself
    done: bool = False
    error: AloraError | None = None

    @property
    def n_read(self) -> int:
        return sum(self.read)

    @property
    def cancelled(self) -> bool:
        return self.cancel is not None and self.cancel.cancelled


@dataclass(slots=True)
class _Piece:
    """Tokens [begin, end) of a ticket's run, which are in the batch that is being computed."""

    ticket: _Ticket
    index: int
    begin: int
    end: int
    length: int  # of the sequence before it

    @property
    def run(self) -> Run:
        return self.ticket.runs[self.index]


@dataclass(slots=True)
class _Work:
    """A batch: its pieces, and for each row of logits the index in the batch and where it goes."""

    pieces: list[_Piece] = field(default_factory=list)
    wanted: list[tuple[int, Logits]] = field(default_factory=list)

    @property
    def tickets(self) -> list[_Ticket]:
        return list({id(p.ticket): p.ticket for p in self.pieces}.values())


class DecodeQueue:
    """The tickets of one engine. See decode()."""

    def __init__(self, engine: Engine, n_batch: int, n_outputs: int) -> None:
        self._engine = engine
        self._n_batch, self._n_outputs = n_batch, n_outputs
        self._batch = Batch(engine.native.llama, n_batch)
        self._tickets: list[_Ticket] = []
        self._leading = False
        self._current: list[_Ticket] = []
        self._returning = Returning()
        self._interrupted = False

    def decode(
        self,
        runs: Sequence[Run],
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> list[Logits | None]:
        """Engine.decode()'s work."""
        engine = self._engine
        books = engine.books
        total = sum(len(run.tokens) for run in runs)
        if not total:
            return [run.rows(engine.vocab.n_tokens) if run.tokens else None for run in runs]
        if cancel is not None:
            cancel.check()
            cancel._watch(self.poke)
        try:
            starts = [books.length(run.seq) for run in runs]
            rows = [run.rows(engine.vocab.n_tokens) for run in runs]
            ticket = _Ticket(runs, rows, starts, [0] * len(runs), total, cancel)
            try:
                self._enter(ticket)
                self._see_through(ticket, progress)
            except BaseException:
                self._withdraw(ticket)
                raise
        finally:
            if cancel is not None:
                cancel._unwatch(self.poke)
        if ticket.error is not None:
            raise ticket.error
        return ticket.rows

    def hold(self) -> None:
        """Waits until nobody computes, and keeps everybody from it until let_go(): who comes in the
        meantime shares the next batch. The caller must not hold the desk.
        """
        with self._engine.desk:
            while self._leading:
                self._engine.desk.wait()
            self._leading = True

    def let_go(self) -> None:
        """Ends hold()."""
        with self._engine.desk:
            self._leading = False
            self._engine.desk.notify_all()

    def leave(self) -> None:
        """For who has just been served for the last time: nobody need wait for this thread."""
        with self._engine.desk:
            self._returning.leaves(threading.get_ident())
            self._engine.desk.notify_all()

    @property
    def n_waiting(self) -> int:
        """Calls whose tokens are not all computed."""
        return len(self._tickets)

    def poke(self) -> None:
        """Something was cancelled: stops the computation if nobody else waits for it."""
        engine = self._engine
        with engine.desk:
            if self._current and all(ticket.cancelled for ticket in self._current):
                self._interrupted = True
                engine.native.interrupt(engine.ctx, True)
            engine.desk.notify_all()

    # On the caller's thread ----------------------------------------------------------------------

    def _enter(self, ticket: _Ticket) -> None:
        """Promises the cells and puts the ticket in the queue, when there is room."""
        books = self._engine.books
        needs = [books.beyond_promise(run.seq, len(run.tokens)) for run in ticket.runs]

        def fits() -> bool:
            if sum(needs) > books.free():
                return False
            for run, n in zip(ticket.runs, needs, strict=True):
                if n:
                    books.promise(run.seq, n)
            self._tickets.append(ticket)
            self._engine.desk.notify_all()  # somebody may be waiting for it
            return True

        room = self._engine.room
        room.admit(fits, lambda: room.no_cells(sum(needs)), ticket.cancel)

    def _see_through(self, ticket: _Ticket, progress: Progress | None) -> None:
        """Computes or waits until the ticket is done."""
        desk, reported = self._engine.desk, 0
        while True:
            lead = False
            try:
                with desk:
                    while not ticket.done and ticket.n_read == reported:
                        seconds = None if self._leading else self._seconds_to_wait()
                        if seconds == 0:
                            break
                        desk.wait(seconds)
                    if not ticket.done and not self._leading:
                        lead = True
                        self._leading = True
                if lead:
                    self._compute()
            finally:
                if lead:
                    with desk:
                        self._leading = False
                        desk.notify_all()
            if ticket.error is None and ticket.n_read > reported:
                reported = ticket.n_read
                if progress is not None:
                    progress(reported, ticket.total)
            if ticket.done:
                return

    def _seconds_to_wait(self) -> float:
        """For those who will probably be back at once; 0 to go on without them."""
        return self._returning.wait_for({ticket.thread for ticket in self._tickets})

    def _withdraw(self, ticket: _Ticket) -> None:
        """Takes a ticket out of the queue and its tokens out of the cache."""
        engine = self._engine
        if engine.closed:
            return
        with engine.lock, engine.desk:
            if ticket.error is None:
                self._undo(ticket)
            self._finish(ticket)

    # On the leader's thread ----------------------------------------------------------------------

    def _compute(self) -> None:
        """Composes a batch of what waits, computes it, and hands out what came of it."""
        engine = self._engine
        with engine.lock:
            with engine.desk:
                work = self._compose()
                if not work.pieces:
                    return
                self._current = work.tickets
                if self._interrupted:
                    engine.native.interrupt(engine.ctx, False)
                    self._interrupted = False
            started = time.monotonic()
            try:
                status = engine.llama.llama_decode(engine.ctx, self._batch.struct())
                with engine.desk:
                    self._current = []
                    threads = {ticket.thread for ticket in work.tickets}
                    self._returning.served(threads, time.monotonic() - started)
                    if status:
                        self._failed(work, status)
                    else:
                        self._deliver(work)
            except BaseException:  # an interrupt: the others' tokens are tried again
                with engine.desk:
                    self._current = []
                    self._take_back(work)
                raise
        engine.lock.give_way()

    def _deliver(self, work: _Work) -> None:
        engine = self._engine
        for index, row in work.wanted:
            source = engine.llama.llama_get_logits_ith(engine.ctx, index)
            if not source:
                raise DecodeError(f"{engine.path}: llama.cpp gave no logits for a token")
            ctypes.memmove(row.ctypes.data, source, row.nbytes)
        for piece in work.pieces:
            piece.ticket.read[piece.index] = piece.end
        for ticket in work.tickets:
            if ticket.n_read == ticket.total:
                self._finish(ticket)

    def _failed(self, work: _Work, status: int) -> None:
        """Finds out whose fault it was: several tickets are tried again one by one, one fails."""
        self._take_back(work)
        tickets = [ticket for ticket in work.tickets if not ticket.done]
        for ticket in tickets:
            if ticket.cancelled:
                self._fail(ticket, CancelledError("the call was cancelled"))
            elif len(tickets) > 1:
                ticket.alone = True
            else:
                self._fail(ticket, self._failure(status, ticket.total))

    def _failure(self, status: int, total: int) -> DecodeError:
        engine = self._engine
        if status == 1:
            return CacheFullError(
                f"{engine.path}: the KV cache is full: no cells for {total} more tokens (of "
                f"{engine.books.n_cells}, {engine.books.used()} are in use); close or rewind a "
                "session, or open the model with a larger n_ctx"
            )
        reason = _REASONS.get(status, "the computation failed")
        detail = engine.native.last_error()
        return DecodeError(
            f"{engine.path}: a batch could not be computed: {reason} (status {status})"
            f"{': ' + detail if detail else ''}{engine.native.log.tail()}"
        )

    def _take_back(self, work: _Work) -> None:
        """Removes a batch's tokens from the cache and puts its tickets back to before it."""
        for piece in reversed(work.pieces):
            if piece.ticket.done:
                continue
            left = self._engine.remove_from(piece.run.seq, piece.length)
            piece.ticket.read[piece.index] = piece.begin
            if left < piece.length and not piece.ticket.done:
                reason = "this model's memory cannot rewind, and the batch was interrupted"
                self._fail(piece.ticket, DecodeError(f"{self._engine.path}: {reason}"))

    # Tickets; the caller holds both locks --------------------------------------------------------

    def _fail(self, ticket: _Ticket, error: AloraError) -> None:
        self._undo(ticket)
        ticket.error = error
        self._finish(ticket)

    def _undo(self, ticket: _Ticket) -> None:
        for run, start in zip(ticket.runs, ticket.starts, strict=True):
            # a memory that cannot rewind would drop everything, also where there is nothing to undo
            if self._engine.books.length(run.seq) > start:
                self._engine.remove_from(run.seq, start)

    def _finish(self, ticket: _Ticket) -> None:
        ticket.done = True
        for run in ticket.runs:
            self._engine.books.settle(run.seq)
        if ticket in self._tickets:
            self._tickets.remove(ticket)
        self._engine.desk.notify_all()

    def fail_all(self) -> None:
        """Ends all tickets; for a context that is gone."""
        for ticket in tuple(self._tickets):
            ticket.error = ClosedError(f"{self._engine.path}: the model was closed")
            ticket.done = True
        self._tickets.clear()
        self._engine.desk.notify_all()

    # Composing a batch ---------------------------------------------------------------------------

    def _compose(self) -> _Work:
        for ticket in tuple(self._tickets):
            if ticket.cancelled:
                self._fail(ticket, CancelledError("the call was cancelled"))
        self._engine.native.log.clear()
        self._batch.n = 0
        work, rows = _Work(), self._n_outputs
        for ticket, n in self._shares():
            for piece in _pieces(ticket, n):
                rows = self._add(work, piece, rows)
                if piece.end < piece.begin + 1 or rows <= 0:
                    break
        return work

    def _shares(self) -> Iterator[tuple[_Ticket, int]]:
        """Which tickets the next batch reads how many tokens of: all of the short ones, and equal
        shares of the long ones.
        """
        waiting = self._tickets
        if any(ticket.alone for ticket in waiting):
            waiting = [next(ticket for ticket in waiting if ticket.alone)]
        if len(waiting) == 1:
            yield waiting[0], self._n_batch
            return
        room = self._n_batch
        share = max(1, room // max(1, len(waiting)))
        takes = []
        for ticket in waiting:
            takes.append(min(ticket.total - ticket.n_read, share, _MIXED_PIECE, room))
            room -= takes[-1]
        for i, ticket in enumerate(waiting):
            more = min(ticket.total - ticket.n_read, _MIXED_PIECE) - takes[i]
            more = max(0, min(more, room))
            room -= more
            yield ticket, takes[i] + more

    def _add(self, work: _Work, piece: _Piece, rows: int) -> int:
        """Puts a piece into the batch, shortened to the rows of logits that are left; returns how
        many are left then.
        """
        run, books = piece.run, self._engine.books
        first = run.first_output
        piece.end = min(piece.end, max(first, piece.begin) + rows)
        if piece.end == piece.begin:
            return 0
        piece.length = books.length(run.seq)
        at = self._batch.add(run.tokens[piece.begin : piece.end], piece.length, run.seq)
        books.extend(run.seq, piece.end - piece.begin)
        work.pieces.append(piece)
        out = piece.ticket.rows[piece.index]
        for k in range(max(first, piece.begin), piece.end):
            if out is not None:
                index = at + k - piece.begin
                self._batch.logits[index] = 1
                work.wanted.append((index, out if out.ndim == 1 else out[k - first]))
                rows -= 1
        return rows


def _pieces(ticket: _Ticket, n: int) -> Iterator[_Piece]:
    """The next `n` tokens of a ticket, run by run."""
    for index, run in enumerate(ticket.runs):
        begin = ticket.read[index]
        end = min(len(run.tokens), begin + n)
        if end > begin:
            n -= end - begin
            yield _Piece(ticket, index, begin, end, 0)
