"""One llama.cpp context: its weights, its sequences, and who may use them when.

Knows nothing of conversations: tokens go in by sequence, rows of logits come out, and a call that
fails leaves no cells behind. Calls of several threads share batches (decoding.py); when cells or
sequences run short they wait for what others are about to give back (room.py).
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alora_gguf.errors import ClosedError, DecodeError, InputError, ModelError
from alora_gguf.options import CancelToken, ContextOptions, Progress

from . import native as _native
from .admission import AdmissionQueue
from .batch import Logits, Run
from .cells import CellAllocator
from .layout import Memory
from .loading import Tuning, load_weights, open_context
from .scheduler import FairLock, Scheduler
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
        tuning: Tuning | None = None,
        cancel: CancelToken | None = None,
        progress: Callable[[float], None] | None = None,
        adopt: tuple[int, int] | None = None,
    ) -> None:
        """With `adopt`, a llama_model and a llama_context on it that the caller made from `path`
        and `options` and frees after close(), nothing is loaded.
        """
        self.native = native = _native.load()
        self.lock = FairLock()
        self.condition = threading.Condition()
        self.path, self.options, self.tuning = path, options, tuning or Tuning()
        native.log.verbose = native.log.verbose or verbose
        native.log.clear()
        self.llama = llama = native.llama
        if adopt is not None:
            model, ctx = adopt
            self._read_model(model)
        else:
            model = load_weights(
                native, path, n_gpu_layers, tuning=self.tuning, cancel=cancel, progress=progress
            )
            try:
                self._read_model(model)
                ctx = open_context(native, path, model, options, self.tuning)
            except BaseException:
                llama.llama_model_free(model)
                raise
        self._ctx = ctx
        self._memory = llama.llama_get_memory(ctx)
        # freed at exit if not before; refers to nothing that refers back to us
        free = _free if adopt is None else _leave
        self._finalizer = weakref.finalize(self, free, llama, ctx, model)
        native.interrupt(ctx, False)  # installs the callback
        self.n_batch: int = llama.llama_n_batch(ctx)
        self.cells = CellAllocator(llama.llama_n_seq_max(ctx), llama.llama_n_ctx(ctx))
        self.scheduler = Scheduler(self, self.n_batch, min(self.n_batch, options.rows))
        self.admission = AdmissionQueue(self, self.scheduler.wake)
        self._abandoned: deque[int] = deque()

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

    def close(self) -> None:
        """Frees context and weights; a second call does nothing."""
        with self.lock, self.condition:
            self.vocab.close()
            self._finalizer()
            self.scheduler.fail_all()

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
        books, found = self.cells, list[int]()

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
                self.admission.owe(seq)
            found.append(seq)
            return True

        if n and not self.rewinds and n != books.length(source):
            raise InputError(
                f"{self.path}: its recurrent memory can be forked only as a whole "
                f"({books.length(source)} tokens), not at {n}"
            )
        try:
            self.admission.admit(fits, lambda: self.admission.no_sequence(promise), cancel)
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

    def share(self, seq: int, source: int, n: int) -> None:
        """Makes `seq` share the first `n` cells of `source` in place of its own."""
        with self.lock, self.condition:
            _ = self.ctx
            self.remove_from(seq, 0)
            self.cells.share(source, seq, n)
            end = n if self.rewinds else -1
            self.llama.llama_memory_seq_cp(self._memory, source, seq, 0, end)

    def truncate(self, seq: int, n: int) -> int:
        """Removes the cells from position `n` on and returns how many are left: `n`, or 0 where the
        memory cannot rewind. After close() it only keeps the books.
        """
        with self.lock:
            if not self.closed:
                self.collect()
            with self.condition:
                if n < self.cells.length(seq):
                    self.remove_from(seq, n)
                return self.cells.length(seq)

    def remove_from(self, seq: int, n: int) -> int:
        """truncate() for callers that hold both locks, whatever the books say of the cells."""
        if self.closed:
            n = 0  # they went with the context
        elif not self.llama.llama_memory_seq_rm(self._memory, seq, n, -1):
            self.llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
            n = 0
        self.cells.truncate(seq, n)
        self.admission.gave_back()
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

    def collect(self) -> bool:
        """Gives abandoned sequences' activations, cells and ids back; says if there were any."""
        if not self._abandoned:
            return False
        with self.lock, self.condition:
            ctx = self.ctx
            while self._abandoned:
                seq = self._abandoned[0]  # stays in the list until it is really gone
                self.native.deactivate(ctx, seq)
                self.llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
                self.cells.release(seq)
                self.admission.repaid(seq)
                self._abandoned.popleft()
            self.admission.gave_back()
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
            if n > self.cells.free():
                return False
            self.cells.extend(seq, n)
            return True

        # the bytes themselves, without a copy
        buffer = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        self.admission.admit(fits, lambda: self.admission.no_cells(n))
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
                with self.condition:
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
        return self.scheduler.decode(runs, cancel, progress)


def _free(llama: Any, ctx: int, model: int) -> None:
    llama.llama_free(ctx)  # before its weights
    llama.llama_model_free(model)


def _leave(_llama: Any, _ctx: int, _model: int) -> None:
    """They are the caller's."""
