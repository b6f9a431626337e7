"""What is done with one llama.cpp context, by its sequences: forked, cut, decoded.

Knows nothing of conversations: tokens go in by sequence, rows of logits come out, and a call that
fails leaves no cells behind. Calls of several threads share batches (scheduler.py); when cells or
sequences run short they wait for what others are about to give back (admission.py).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from alora_gguf.errors import DecodeError, InputError
from alora_gguf.options import CancelToken, ContextOptions, Progress

from .admission import AdmissionQueue
from .batch import Logits, Run
from .llama_context import LlamaContext, Tuning
from .prefix_cache import PrefixCache
from .scheduler import Scheduler


class Engine:
    """A loaded base model and one context on it.

    A sequence belongs to whoever allocated it: no two threads may work on the same one at a time.
    `lock` and `condition` are the context's (llama_context.py says what they guard). Every method
    raises ClosedError after close().
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
        self.context = context = LlamaContext(
            path,
            options,
            n_gpu_layers=n_gpu_layers,
            verbose=verbose,
            tuning=tuning or Tuning(),
            cancel=cancel,
            progress=progress,
            adopt=adopt,
        )
        self.path, self.options, self.tuning = path, options, context.tuning
        self.native, self.llama, self.vocab = context.native, context.llama, context.vocab
        self.lock, self.condition, self.cells = context.lock, context.condition, context.cells
        self.memory_kind, self.rewinds = context.memory_kind, context.rewinds
        self.window, self.n_batch = context.window, context.n_batch
        self.prefix_cache = PrefixCache(context, options.n_pooled)
        self.admission = AdmissionQueue(context, self.prefix_cache)
        self.scheduler = Scheduler(context, self.admission)

    def close(self) -> None:
        """Frees context and weights; idempotent."""
        with self.lock, self.condition:
            self.context.free()
            self.scheduler.fail_all()

    @property
    def closed(self) -> bool:
        """Whether the context is gone; true after close(), and while the interpreter exits."""
        return self.context.closed

    @property
    def ctx(self) -> int:
        """The llama_context, for the native functions."""
        return self.context.ctx

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
        cells, found = self.cells, list[int]()

        def fits() -> bool:
            if promise is not None and promise > cells.free():
                return False
            seq = cells.allocate()
            if seq is None:
                return False
            if n:
                cells.share(source, seq, n)
            if promise is not None:
                cells.promise(seq, promise, holder=threading.get_ident())
            found.append(seq)
            return True

        if n and not self.rewinds and n != cells.length(source):
            raise InputError(
                f"{self.path}: its recurrent memory can be forked only as a whole "
                f"({cells.length(source)} tokens), not at {n}"
            )
        try:
            self.admission.admit(
                fits, lambda: self.admission.no_sequence(promise), cancel, n=promise or 0
            )
            if n:
                with self.lock:
                    _ = self.ctx
                    self.context.copy(source, found[0], n)
        except BaseException:
            for seq in found:  # or others would wait for what it was promised
                self.abandon(seq)
            raise
        return found[0]

    def share(self, seq: int, source: int, n: int) -> None:
        """Makes `seq` share the first `n` cells of `source` in place of its own."""
        with self.lock, self.condition:
            _ = self.ctx
            self.context.remove_from(seq, 0)
            self.cells.share(source, seq, n)
            self.context.copy(source, seq, n)

    def truncate(self, seq: int, n: int) -> int:
        """Removes the cells from position `n` on and returns how many are left: `n`, or 0 where the
        memory cannot rewind. After close() only the allocator knows of it.
        """
        with self.lock:
            if not self.closed:
                self.collect()
            with self.condition:
                if n < self.cells.length(seq):
                    self.context.remove_from(seq, n)
                return self.cells.length(seq)

    def drop(self, seq: int) -> None:
        """Gives a sequence back: its activations, its cells, its id."""
        self.context.drop(seq)

    def abandon(self, seq: int) -> None:
        """Marks a sequence for dropping at the next call, at any moment on any thread."""
        self.context.abandon(seq)

    def collect(self) -> bool:
        """Gives back what was abandoned; says if there was anything."""
        return self.context.collect()

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
        self.admission.admit(fits, lambda: self.admission.no_cells(n), n=n)
        with self.lock, self.context.logged():
            try:
                read = self.llama.llama_state_seq_set_data(self.ctx, buffer, len(state), seq)
                last = self.llama.llama_memory_seq_pos_max(self.context.memory, seq)
                if read != len(state) or last != n - 1:
                    raise DecodeError(
                        f"{self.path}: llama.cpp did not take the saved cells: {read} of "
                        f"{len(state)} bytes read, the last position is {last}, expected {n - 1}"
                        f"{self.native.log.tail()}"
                    )
            except BaseException:
                with self.condition:
                    self.context.remove_from(seq, 0)
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
        same sequence. The caller must not hold `lock` or `condition`.

        Returns one entry per run: the logits after its last token, [n_vocab]; for "all" those
        after every token, [n_tokens, n_vocab]; for a number k those after the last k; None for
        "none". If it raises, interrupts included, none of the tokens are in the cache:
        CacheFullError when there is no room, CancelledError, else DecodeError.
        """
        self.collect()
        return self.scheduler.decode(runs, cancel, progress)
