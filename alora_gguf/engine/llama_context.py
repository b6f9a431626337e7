"""A llama_context: its cells, the locks that guard both, and the llama_batch that carries pieces of
what waits to llama_decode.

Who may use it when is decided above (scheduler.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from alora_gguf.errors import AloraError, ClosedError, DecodeError, ModelError
from alora_gguf.options import CancelToken, ContextOptions
from alora_gguf.threads import FreeCores, default_threads

from . import native as _native
from .cells import CellAllocator
from .loading import Tuning, load_weights, memory_of, open_context
from .tokens import Vocabulary

_GIVE_WAY: Final = 0.02  # seconds
_STEP: Final = 50e-6
# While others wait, a long text is prefilled in pieces of this many tokens, so that they need not
# wait long; on a CPU longer pieces are hardly faster per token.
_MIXED_PIECE: Final = 128

Logits = NDArray[np.float32]
"""One row of logits, [n_vocab]; or several, [n, n_vocab]."""


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

    def after_fork(self) -> None:
        """Makes it free again in a child process: its holder may not be there."""
        self._lock._at_fork_reinit()  # type: ignore[attr-defined]
        self._waiting.clear()

    def give_way(self) -> None:
        """For who has just released it: returns when those who were waiting have had it, or some
        milliseconds later.
        """
        waiting = self._waiting.copy()
        until = time.monotonic() + _GIVE_WAY
        while waiting & self._waiting and time.monotonic() < until:
            time.sleep(_STEP)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class LlamaContext:
    """A loaded model, one context on it, and which sequence has which cells.

    `lock` guards the context and is held over each C call. `condition` guards `cells` and whatever
    waits for them; it is held for moments only, and notified when something is given back. Who
    needs both takes the lock first. Refers to nothing that refers back to it, so that the weights
    are freed as soon as nobody uses them.
    """

    def __init__(
        self,
        path: Path,
        options: ContextOptions,
        *,
        verbose: bool = False,
        tuning: Tuning | None = None,
        cancel: CancelToken | None = None,
        progress: Callable[[float], None] | None = None,
        adopt: tuple[int, int] | None = None,
    ) -> None:
        """Loads the weights and opens a context, or takes those in `adopt`: a llama_model and a
        llama_context on it that the caller made from `path` and `options`, and frees after close().

        Raises LibraryError, ModelError, RpcError, CancelledError.
        """
        self.native = native = _native.load()
        self.llama = llama = native.llama
        self.path, self.options, self.verbose = path, options, verbose
        self.lock = FairLock()
        self.condition = threading.Condition()
        with self.logged():
            if adopt is not None:
                model, ctx = adopt
                self._read_model(model)
            else:
                tuning = tuning or Tuning()
                model = load_weights(
                    native, path, options.offloaded, rpc=options.servers,
                    tuning=tuning, cancel=cancel, progress=progress,
                )  # fmt: skip
                try:
                    self._read_model(model)
                    ctx = open_context(native, path, model, options, tuning)
                except BaseException:
                    llama.llama_model_free(model)
                    raise
        self._ctx = ctx
        self.model = model
        self.others: list[int] = []  # contexts that somebody has on the model, to go before it
        self.memory = llama.llama_get_memory(ctx)
        # freed at exit if not before
        free = _free if adopt is None else _leave
        self._finalizer = weakref.finalize(self, free, llama, self.vocab, ctx, model, self.others)
        native.interrupt(ctx, False)  # installs the callback
        native.keep_cells(ctx)
        native.set_attention(ctx, options.attention)
        self._forked = False
        _CONTEXTS.add(self)
        self.n_batch: int = llama.llama_n_batch(ctx)
        self.n_threads: int = llama.llama_n_threads(ctx)
        self._computing = self.n_threads
        self._shows_states = False
        fixed = options.n_threads or options.attention == "upstream" or adopt
        self._cores = None if fixed else FreeCores(self.n_threads, default_threads())
        self.cells = CellAllocator(llama.llama_n_seq_max(ctx), llama.llama_n_ctx(ctx))
        self._abandoned: deque[int] = deque()

    def _read_model(self, model: int) -> None:
        llama = self.llama
        if llama.llama_model_has_encoder(model) or not llama.llama_model_has_decoder(model):
            raise ModelError(
                f"{self.path}: is an encoder or encoder-decoder model; only decoder models can "
                "hold a conversation"
            )
        self.vocab = Vocabulary(self.native, model, str(self.path))
        self.memory_kind = memory_of(llama, model)
        self.rewinds = self.memory_kind == "attention"
        self.window: int = llama.llama_model_n_swa(model)
        self.n_embd: int = llama.llama_model_n_embd(model)
        self.n_ctx_train: int | None = llama.llama_model_n_ctx_train(model) or None

    def free(self) -> None:
        """Frees context and weights; idempotent. The caller holds both locks."""
        self.vocab.close()
        self._finalizer()

    @property
    def closed(self) -> bool:
        """Whether the context is gone; true after free(), and while the interpreter exits."""
        return not self._finalizer.alive

    @property
    def ctx(self) -> int:
        """The llama_context. Raises ClosedError when it is gone."""
        if self.closed:
            if self._forked:
                raise ClosedError(
                    f"{self.path}: the model was opened before this process was forked, and its "
                    "threads stayed in the parent; open it in the child, or start the child with "
                    'multiprocessing\'s "spawn"'
                )
            raise ClosedError(f"{self.path}: the model was closed")
        return self._ctx

    def _after_fork(self) -> None:
        """In the child, where the threads that compute are missing, and those that held a lock."""
        self._forked = self._finalizer.detach() is not None or self._forked
        self.lock.after_fork()
        self.condition._at_fork_reinit()  # type: ignore[attr-defined]

    def logged(self) -> AbstractContextManager[None]:
        """Keeps what llama.cpp logs on this thread meanwhile for errors, and shows it if the model
        is verbose.
        """
        return self.native.log.capture(verbose=self.verbose)

    def check_servers(self) -> None:
        """After a call that read from devices: raises RpcError if the server of one was lost. What
        was read may be zeros then, and so may all that the context holds.
        """
        if self.options.rpc:  # mostly not, and this is asked for every batch
            self.native.rpc_check(self.options.servers, str(self.path))

    @contextlib.contextmanager
    def on_devices(self) -> Iterator[None]:
        """Around calls that may fail where a server was lost, or not notice: RpcError says it."""
        try:
            yield
        except AloraError:
            self.check_servers()
            raise
        self.check_servers()

    @property
    def n_threads_now(self) -> int:
        """How many threads are to compute what comes next: the number that was given, or as many as
        there are cores that others leave free.
        """
        return self.n_threads if self._cores is None else self._cores()

    def choose_threads(self) -> None:
        """Before a batch: has so many threads compute it. The caller holds the lock."""
        if (n := self.n_threads_now) != self._computing:
            self.llama.llama_set_n_threads(self.ctx, n, n)
            self._computing = n

    def show_states(self, wanted: bool) -> None:
        """Before a batch: whether state_at() will be asked. The caller holds the lock."""
        if wanted != self._shows_states:
            self.llama.llama_set_embeddings(self.ctx, wanted)
            self._shows_states = wanted

    def state_at(self, index: int) -> NDArray[np.float32]:
        """The state [n_embd] after the last norm, of a token of the last batch that has an output;
        to be read before the next batch. The caller holds the lock.
        """
        state = self.llama.llama_get_embeddings_ith(self.ctx, index)
        if not state:
            raise DecodeError(f"{self.path}: llama.cpp gave no state for a token")
        return np.ctypeslib.as_array(state, (self.n_embd,))

    # Sequences -----------------------------------------------------------------------------------

    def copy(self, source: int, target: int, n: int) -> None:
        """Lets `target` see the first `n` cells of `source`; the caller holds the lock."""
        end = n if self.rewinds else -1
        self.llama.llama_memory_seq_cp(self.memory, source, target, 0, end)

    def remove_from(self, seq: int, n: int) -> int:
        """Removes the cells from position `n` on and returns how many are left: `n`, or 0 where the
        memory cannot rewind. The caller holds both locks.
        """
        if self.closed:
            n = 0  # they went with the context
        elif not self.llama.llama_memory_seq_rm(self.memory, seq, n, -1):
            self.llama.llama_memory_seq_rm(self.memory, seq, -1, -1)
            n = 0
        self.cells.truncate(seq, n)
        self.condition.notify_all()
        return self.cells.length(seq)

    def drop(self, seq: int) -> None:
        """Gives a sequence back: its activations, its cells, its id."""
        self.abandon(seq)
        if not self.closed:
            self.collect()

    def abandon(self, seq: int) -> None:
        """Marks a sequence for dropping at the next call. Takes no lock and calls no C, so that
        garbage collection may do it at any moment on any thread.
        """
        self._abandoned.append(seq)

    @property
    def abandoned(self) -> bool:
        """Whether there is something to collect()."""
        return bool(self._abandoned)

    def collect(self) -> bool:
        """Gives abandoned sequences' activations, cells and ids back; says if there were any."""
        if not self._abandoned:
            return False
        with self.lock, self.condition:
            ctx = self.ctx
            while self._abandoned:
                seq = self._abandoned[0]  # stays in the list until it is really gone
                self.native.deactivate(ctx, seq)
                self.llama.llama_memory_seq_rm(self.memory, seq, -1, -1)
                self.cells.release(seq)
                self._abandoned.popleft()
            self.condition.notify_all()
        return True


_CONTEXTS: Final = weakref.WeakSet[LlamaContext]()


def _after_fork() -> None:
    for context in list(_CONTEXTS):
        context._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _free(llama: Any, vocab: Vocabulary, ctx: int, model: int, others: list[int]) -> None:
    _leave(llama, vocab, ctx, model, others)
    llama.llama_free(ctx)  # before its weights
    llama.llama_model_free(model)


def _leave(llama: Any, vocab: Vocabulary, _ctx: int, _model: int, others: list[int]) -> None:
    """Context and model are the caller's."""
    vocab.forget()  # somebody may still hold it
    while others:
        llama.llama_free(others.pop())


# Batches -----------------------------------------------------------------------------------------


_NEVER: Final = -1e9  # the logit of what cannot be sampled; infinite ones are taken for a fault


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Scores a few tokens by a state of the last norm's: weight [n, n_embd] · h + bias [n]."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    tokens: tuple[int, ...]

    def write(self, state: NDArray[np.float32], row: Logits) -> None:
        """The logits [n_vocab] at a state: the scores, and of all other tokens that they are never
        sampled.
        """
        row.fill(_NEVER)
        row[list(self.tokens)] = self.weight @ state + self.bias


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens to append to a sequence, and which of them to give logits for: of the last one as a
    row, of all or of the last so many (at least 1) as a matrix. With a `head` the last token has
    that one's scores in place of logits, and only that token has any.
    """

    seq: int
    tokens: Sequence[int]
    outputs: Literal["none", "last", "all"] | int = "last"
    head: Head | None = None

    @property
    def first_output(self) -> int:
        """The index of the first token that logits are given for."""
        n = len(self.tokens)
        if isinstance(self.outputs, int):
            return max(0, n - self.outputs)
        return {"none": n, "last": n - 1, "all": 0}[self.outputs]

    def rows(self, n_vocab: int) -> Logits | None:
        """Where its logits will lie."""
        if self.outputs == "none":
            return None
        if self.outputs == "last":
            return np.empty(n_vocab, np.float32)
        return np.empty((len(self.tokens) - self.first_output, n_vocab), np.float32)


@dataclass(slots=True, eq=False)
class Request:
    """One call's runs in the queue.

    rows    where each run's logits go
    starts  the length of each run's sequence before
    read    tokens of each run that are in the cache
    alone   after a batch failed, each of its requests is tried by itself
    """

    runs: Sequence[Run]
    rows: list[Logits | None]
    starts: list[int]
    cancel: CancelToken | None = None
    read: list[int] = field(init=False)
    total: int = field(init=False)
    thread: int = field(default_factory=threading.get_ident)
    alone: bool = False
    done: bool = False
    error: AloraError | None = None

    def __post_init__(self) -> None:
        self.read = [0] * len(self.runs)
        self.total = sum(len(run.tokens) for run in self.runs)

    @property
    def n_read(self) -> int:
        """Tokens of all runs that are in the cache."""
        return sum(self.read)

    @property
    def n_left(self) -> int:
        """Tokens that are not."""
        return self.total - self.n_read

    @property
    def cancelled(self) -> bool:
        """Whether its caller gave up."""
        return self.cancel is not None and self.cancel.cancelled

    def pieces(self, n: int) -> Iterator[Piece]:
        """Its next `n` tokens, run by run."""
        for index, run in enumerate(self.runs):
            begin = self.read[index]
            end = min(len(run.tokens), begin + n)
            if run.head is not None and begin < len(run.tokens) - 1:
                end = min(end, len(run.tokens) - 1)  # what reads a state comes by itself
            if end > begin:
                n -= end - begin
                yield Piece(self, index, run, begin, end)


@dataclass(slots=True)
class Piece:
    """Tokens [begin, end) of a request's run; `length` is that of the sequence before it."""

    request: Request
    index: int
    run: Run
    begin: int
    end: int
    length: int = 0

    @property
    def scores(self) -> bool:
        """Whether it is the token whose state a head reads."""
        return self.run.head is not None and self.end == len(self.run.tokens)


class Batch:
    """A llama_batch over arrays that are made once, for up to `size` tokens and `n_outputs` rows of
    logits.

    `pieces` is what it holds; `wanted` has, for each row of logits, the token's index in the batch,
    whose it is, where the row goes, and what makes it of the token's state, if something does. All
    do or none: where llama.cpp shows states it puts out every token of a batch.
    """

    def __init__(self, llama: Any, size: int, n_outputs: int | None = None) -> None:
        self._size, self._n_outputs = size, n_outputs or size
        self.n = 0
        self.pieces: list[Piece] = []
        self.wanted: list[tuple[int, Request, Logits, Head | None]] = []
        self.tokens = np.zeros(size, np.int32)
        self.positions = np.zeros(size, np.int32)
        self.logits = np.zeros(size, np.int8)
        self._seqs = np.zeros(size, np.int32)
        self._n_seqs = np.ones(size, np.int32)
        # seq_id[i] points at the i-th entry of _seqs: every token belongs to one sequence
        self._seq_pointers = self._seqs.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        i32 = ctypes.POINTER(ctypes.c_int32)
        self._struct = llama.llama_batch(
            0,
            self.tokens.ctypes.data_as(i32),
            None,
            self.positions.ctypes.data_as(i32),
            self._n_seqs.ctypes.data_as(i32),
            self._seq_pointers.ctypes.data_as(ctypes.POINTER(i32)),
            self.logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    @property
    def requests(self) -> list[Request]:
        """Whose pieces it holds."""
        return list({id(piece.request): piece.request for piece in self.pieces}.values())

    @property
    def scores(self) -> bool:
        """Whether it is tokens whose states are read."""
        return bool(self.pieces) and self.pieces[0].scores

    def add(self, tokens: Sequence[int], position: int, seq: int) -> int:
        """Appends tokens without logits; returns the index of the first."""
        at, end = self.n, self.n + len(tokens)
        self.tokens[at:end] = tokens
        self.positions[at:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._seqs[at:end] = seq
        self.logits[at:end] = 0
        self.n = end
        return at

    def struct(self) -> Any:
        """The llama_batch."""
        self._struct.n_tokens = self.n
        return self._struct

    def compose(self, waiting: Sequence[Request], cells: CellAllocator) -> None:
        """Fills it with the next pieces of those who wait, and gives these their cells."""
        self.n, self.pieces, self.wanted = 0, [], []
        for request, n in self._shares(waiting):
            for piece in request.pieces(n):
                if not self._add(piece, cells):
                    break

    def _shares(self, waiting: Sequence[Request]) -> Iterator[tuple[Request, int]]:
        """How many tokens of whom: all of the short requests, equal shares of the long ones."""
        alone = next((request for request in waiting if request.alone), None)
        if alone is not None or len(waiting) == 1:
            yield alone or waiting[0], self._size
            return
        space = self._size
        share = max(1, space // max(1, len(waiting)))
        takes = []
        for request in waiting:
            takes.append(min(request.n_left, share, _MIXED_PIECE, space))
            space -= takes[-1]
        for request, take in zip(waiting, takes, strict=True):
            more = max(0, min(min(request.n_left, _MIXED_PIECE) - take, space))
            space -= more
            yield request, take + more

    def _add(self, piece: Piece, cells: CellAllocator) -> bool:
        """Adds a piece, shortened to the rows of logits that are left, if it is of the kind here;
        says if any rows are left then.
        """
        if self.pieces and piece.scores != self.scores:
            return True
        run, rows = piece.run, self._n_outputs - len(self.wanted)
        first = max(run.first_output, piece.begin)
        piece.end = min(piece.end, first + rows)
        n = piece.end - piece.begin
        if n <= 0:
            return False
        piece.length = cells.length(run.seq)
        cells.extend(run.seq, n)
        at = self.add(run.tokens[piece.begin : piece.end], piece.length, run.seq)
        self.pieces.append(piece)
        out = piece.request.rows[piece.index]
        for k in range(first, piece.end):
            if out is not None:
                index = at + k - piece.begin
                self.logits[index] = 1
                row = out if out.ndim == 1 else out[k - run.first_output]
                head = run.head if k == len(run.tokens) - 1 else None
                self.wanted.append((index, piece.request, row, head))
        return len(self.wanted) < self._n_outputs
