"""One llama.cpp context: its weights, its sequences, and who may use them when.

Knows nothing of conversations: tokens go in by sequence, rows of logits come out, and a call that
fails leaves no cells behind. Calls of several threads share batches (decoding.py); when cells or
sequences run short they wait for what others are about to give back.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import _native
from .batch import Logits, Run
from .cancel import CancelToken
from .cells import CellBooks
from .decoding import DecodeQueue, Progress
from .errors import (
    AloraError,
    CacheFullError,
    CancelledError,
    ClosedError,
    DecodeError,
    InputError,
    ModelError,
)
from .locks import YieldingLock
from .options import CACHE_TYPES, FLASH_ATTENTION, ContextOptions, default_threads
from .saved_layout import Memory
from .vocab import Vocabulary


class Engine:
    """A loaded base model and one context on it.

    `lock` guards the context, `desk` the books and all that waits (decoding.py says more). A
    sequence belongs to whoever allocated it: no two threads may work on the same one at a time.
    Every method raises ClosedError after close().
    """

    def __init__(
        self,
        path: Path,
        options: ContextOptions,
        *,
        n_gpu_layers: int,
        verbose: bool,
        cancel: CancelToken | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        self.native = native = _native.load()
        self.lock = YieldingLock()
        self.desk = threading.Condition()
        self.path = path
        native.log.verbose = native.log.verbose or verbose
        native.log.clear()
        self.llama = llama = native.llama
        model = _open_model(native, path, n_gpu_layers, cancel, progress)
        try:
            self._read_model(model)
            ctx = self._open_context(model, options)
        except BaseException:
            llama.llama_model_free(model)
            raise
        self._ctx = ctx
        self._memory = llama.llama_get_memory(ctx)
        # freed at exit if not before; refers to nothing that refers back to us
        self._finalizer = weakref.finalize(self, _free, llama, ctx, model)
        native.interrupt(ctx, False)  # installs the callback
        self.n_batch: int = llama.llama_n_batch(ctx)
        self.books = CellBooks(llama.llama_n_seq_max(ctx), llama.llama_n_ctx(ctx))
        self._queue = DecodeQueue(self, self.n_batch, min(self.n_batch, options.rows))
        self._abandoned: deque[int] = deque()
        self._transients: dict[int, int] = {}  # sequences that are given back soon: whose thread
        self._line: deque[object] = deque()  # who waits for room, in order
        self._given_back = 0  # counts what those who wait should look at
        self.reclaim: Callable[[], bool] = lambda: False

    def _read_model(self, model: int) -> None:
        llama = self.llama
        if llama.llama_model_has_encoder(model) or not llama.llama_model_has_decoder(model):
            raise ModelError(
                f"{self.path}: is an encoder or encoder-decoder model; only decoder models can "
                "hold a conversation"
            )
        self.vocab = Vocabulary(llama, model, str(self.path))
        recurrent = llama.llama_model_is_recurrent(model)
        hybrid = llama.llama_model_is_hybrid(model)
        self.memory_kind: Memory = "recurrent" if recurrent else "hybrid" if hybrid else "attention"
        self.rewinds = self.memory_kind == "attention"
        self.window: int = llama.llama_model_n_swa(model)

    def _open_context(self, model: int, options: ContextOptions) -> int:
        llama = self.llama
        params = llama.llama_context_default_params()
        trained = llama.llama_model_n_ctx_train(model)
        params.n_ctx = options.n_ctx or min(trained or 4096, 4096)
        params.n_batch = min(options.n_batch, params.n_ctx)
        params.n_ubatch = min(options.n_ubatch, params.n_batch)
        params.n_seq_max = options.n_seq_max
        # rows of logits are what makes the worst-case compute buffer large: n_batch of them would
        # take 260 MB for a vocabulary of 128k; llama.cpp wants one per sequence at least
        params.n_outputs_max = max(min(options.rows, params.n_batch), options.n_seq_max)
        params.n_threads = params.n_threads_batch = options.n_threads or default_threads()
        params.type_k, params.type_v = CACHE_TYPES[options.type_k], CACHE_TYPES[options.type_v]
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attn]
        params.kv_unified = True  # forks share cells only in a unified cache
        params.swa_full = True  # and a fork in the middle needs cells that a sliding window drops
        params.no_perf = True
        ctx = llama.llama_init_from_model(model, params)
        if not ctx:
            raise ModelError(
                f"{self.path}: no context of {params.n_ctx} cells (keys {options.type_k}, values "
                f"{options.type_v}) could be made{self.native.log.tail()}; a smaller n_ctx or "
                "other cache types may help"
            )
        return int(ctx)

    def close(self) -> None:
        """Frees context and weights; a second call does nothing."""
        with self.lock, self.desk:
            self.vocab.close()
            self._finalizer()
            self._queue.fail_all()

    @property
    def closed(self) -> bool:
        """Whether the context is gone; true after close(), and while the interpreter exits."""
        return not self._finalizer.alive

    @property
    def ctx(self) -> int:
        """The llama_context, for _native's functions."""
        if self.closed:
            raise ClosedError(f"{self.path}: the model was closed")
        return self._ctx

    # Sequences -----------------------------------------------------------------------------------

    def allocate(self) -> int:
        """An empty sequence. Raises CacheFullError if all n_seq_max are in use."""
        return self.fork(-1, 0)

    def fork(
        self,
        source: int,
        n: int,
        *,
        promise: int | None = None,
        cancel: CancelToken | None = None,
    ) -> int:
        """A new sequence that shares the first `n` cells of `source`; `n` must be all of them, or
        0, where the memory cannot be split (`rewinds` is false).

        With a `promise` of so many further cells it is there for a while only: others that find
        no room wait until it is dropped.
        """
        books, found = self.books, list[int]()

        def fits() -> bool:
            if promise is not None and promise > books.free():
                return False
            seq = books.allocate()
            if seq is None:
                return False
            if n:
                books.share(source, seq, n)
            if promise is not None:
                books.promise(seq, promise, lasting=True)
                self._transients[seq] = threading.get_ident()
            found.append(seq)
            return True

        if n and not self.rewinds and n != books.length(source):
            raise InputError(
                f"{self.path}: its recurrent memory can be forked only as a whole "
                f"({books.length(source)} tokens), not at {n}"
            )
        try:
            self.admit(fits, lambda: self._no_fork(promise), cancel)
            if n:
                with self.lock:
                    _ = self.ctx
                    end = n if self.rewinds else -1
                    self.llama.llama_memory_seq_cp(self._memory, source, found[0], 0, end)
        except BaseException:
            for seq in found:  # or others would wait for what it was promised
                self.abandon(seq)
            raise
        return found[0]

    def adopt(self, seq: int, source: int, n: int) -> None:
        """Makes `seq` share the first `n` cells of `source` in place of its own."""
        with self.lock, self.desk:
            _ = self.ctx
            self.remove_from(seq, 0)
            self.books.share(source, seq, n)
            end = n if self.rewinds else -1
            self.llama.llama_memory_seq_cp(self._memory, source, seq, 0, end)

    def truncate(self, seq: int, n: int) -> int:
        """Removes the cells from position `n` on and returns how many are left: `n`, or 0 where the
        memory cannot rewind.
        """
        with self.lock:
            self.collect()
            with self.desk:
                if n < self.books.length(seq):
                    self.remove_from(seq, n)
                return self.books.length(seq)

    def remove_from(self, seq: int, n: int) -> int:
        """truncate() for callers that hold both locks, whatever the books say of the cells."""
        if not self.llama.llama_memory_seq_rm(self._memory, seq, n, -1):
            self.llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
            n = 0
        self.books.truncate(seq, n)
        self.gave_back()
        return self.books.length(seq)

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

    def collect(self) -> bool:
        """Gives abandoned sequences' activations, cells and ids back; says if there were any."""
        if not self._abandoned:
            return False
        with self.lock, self.desk:
            ctx = self.ctx
            while self._abandoned:
                seq = self._abandoned[0]  # stays in the list until it is really gone
                self.native.deactivate(ctx, seq)
                self.llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
                self.books.release(seq)
                self._transients.pop(seq, None)
                self._abandoned.popleft()
            self.gave_back()
        return True

    def activate(self, seq: int, first: int, slot: int, scale: float) -> None:
        """From position `first` on, tokens of `seq` use `slot` at `scale`."""
        with self.lock:
            self.native.activate(self.ctx, seq, first, slot, scale)

    def deactivate(self, seq: int) -> None:
        """Ends all activations of `seq`; its cells stay as they are."""
        with self.lock:
            if not self.closed:
                self.native.deactivate(self.ctx, seq)

    def state(self, seq: int) -> bytes:
        """The cells of `seq` as llama.cpp saves them."""
        with self.lock:
            size = self.llama.llama_state_seq_get_size(self.ctx, seq)
            buffer = (ctypes.c_uint8 * size)()
            n = self.llama.llama_state_seq_get_data(self.ctx, buffer, size, seq)
            return bytes(memoryview(buffer)[:n])

    def set_state(self, seq: int, state: bytes, n: int) -> None:
        """Fills `seq`, which is empty, with the `n` cells that state() gave earlier. The bytes must
        be known to be whole: llama.cpp checks little. Raises CacheFullError, DecodeError.
        """

        def fits() -> bool:
            if n > self.books.free():
                return False
            self.books.extend(seq, n)
            return True

        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        self.admit(fits, lambda: self.no_room(n))
        with self.lock:
            try:
                self.native.log.clear()
                read = self.llama.llama_state_seq_set_data(self.ctx, buffer, len(state), seq)
                last = self.llama.llama_memory_seq_pos_max(self._memory, seq)
                if read != len(state) or last != n - 1:
                    raise DecodeError(
                        f"{self.path}: llama.cpp did not take the saved cells: {read} of "
                        f"{len(state)} bytes read, the last position is {last}, expected {n - 1}"
                        f"{self.native.log.tail()}"
                    )
            except BaseException:
                with self.desk:
                    self.remove_from(seq, 0)
                raise

    # Decoding ------------------------------------------------------------------------------------

    def decode(
        self,
        runs: Sequence[Run],
        *,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> list[Logits | None]:
        """Appends each run's tokens to its sequence, all runs together and together with what other
        threads decode, in as few calls as n_batch and n_outputs allow. No two runs may name the
        same sequence. The caller must not hold `lock` or `desk`.

        Returns one entry per run: the logits after its last token, [n_vocab]; for "all" those
        after every token, [n_tokens, n_vocab]; for a number k those after the last k; None for
        "none". If it raises, interrupts included, none of the tokens are in the cache:
        CacheFullError when there is no room, CancelledError, else DecodeError.
        """
        self.collect()
        return self._queue.decode(runs, cancel, progress)

    # Room ----------------------------------------------------------------------------------------

    def admit(
        self,
        fits: Callable[[], bool],
        full: Callable[[], AloraError],
        cancel: CancelToken | None = None,
    ) -> None:
        """Waits until `fits()`, which takes what it needs from the books and says if it could, as
        long as another thread is about to give something back; in the order of arrival. Raises
        `full()` when nobody is. A thread that is to give something back itself never waits.
        """
        me, place = threading.get_ident(), object()
        try:
            while True:
                with self.desk:
                    _ = self.ctx
                    owes = me in self._transients.values()
                    mine = owes or not self._line or self._line[0] is place
                    if mine and fits():
                        return
                    seen = self._given_back
                if mine and (self.collect() or self.reclaim()):
                    continue
                with self.desk:
                    if mine and (owes or not self._transients) and seen == self._given_back:
                        raise full()
                    self._wait_in_line(place, seen, cancel)
                if cancel is not None:
                    cancel.check()
        finally:
            if place in self._line:
                with self.desk:
                    self._line.remove(place)
                    self.gave_back()

    def _wait_in_line(self, place: object, seen: int, cancel: CancelToken | None) -> None:
        if place not in self._line:
            self._line.append(place)
        if cancel is not None:
            cancel.watch(self._queue.poke)
        try:
            while seen == self._given_back and not self.closed:
                if cancel is not None and cancel.cancelled:
                    return
                self.desk.wait()
        finally:
            if cancel is not None:
                cancel.unwatch(self._queue.poke)

    def gave_back(self) -> None:
        """Wakes those who wait for room; the caller holds `desk`."""
        self._given_back += 1
        self.desk.notify_all()

    def require_room(self, n: int, freed: int = 0) -> None:
        """Raises CacheFullError unless `n` more cells fit once `freed` ones are given back, now or
        soon.
        """
        self.admit(lambda: n <= self.books.free() + freed, lambda: self.no_room(n, freed))

    def no_room(self, n: int, freed: int = 0) -> CacheFullError:
        """The error for `n` cells that do not fit."""
        return CacheFullError(
            f"{self.path}: the KV cache is full: {n} cells needed, {self.books.free() + freed} of "
            f"{self.books.n_cells} free; close or rewind a session, or open the model with a "
            "larger n_ctx"
        )

    def _no_fork(self, promise: int | None) -> CacheFullError:
        if self.books.free_sequences and promise is not None:
            return self.no_room(promise)
        return CacheFullError(
            f"{self.path}: all {self.books.n_seqs} sequences are in use; close a session, or open "
            "the model with a larger n_seq_max"
        )


def _open_model(
    native: _native.Native,
    path: Path,
    n_gpu_layers: int,
    cancel: CancelToken | None,
    progress: Callable[[float], None] | None,
) -> int:
    llama = native.llama
    failed: list[BaseException] = []

    def on_progress(fraction: float, _user_data: object) -> bool:
        """llama.cpp's callback, on this thread; returning false ends the loading."""
        try:
            if progress is not None:
                progress(fraction)
        except BaseException as error:
            failed.append(error)
        return not failed and not (cancel is not None and cancel.cancelled)

    params = llama.llama_model_default_params()
    params.n_gpu_layers = n_gpu_layers
    callback = llama.llama_progress_callback(on_progress)
    if cancel is not None or progress is not None:
        params.progress_callback = callback
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    if failed:
        if model:
            llama.llama_model_free(model)
        raise failed[0]
    if not model and cancel is not None and cancel.cancelled:
        raise CancelledError(f"{path}: loading was cancelled")
    if not model:
        raise ModelError(f"{path}: llama.cpp cannot load this model{native.log.tail()}")
    return int(model)


def _free(llama: Any, ctx: int, model: int) -> None:
    llama.llama_free(ctx)  # before its weights
    llama.llama_model_free(model)
