"""What is done with one llama.cpp context: its sequences are forked, cut, decoded, and what
computes their tokens is chosen.

Knows nothing of conversations: tokens go in by sequence, rows of logits come out, and a call that
fails leaves no cells behind. Calls of several threads share batches, and when cells or sequences
run short they wait for what others are about to give back (scheduler.py).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

from alora_gguf._calls import uninterrupted
from alora_gguf.errors import DecodeError, InputError, NotFiniteError
from alora_gguf.options import CancelToken, Progress

from .cells import NOBODY
from .llama_context import LlamaContext, Logits, Run
from .prefix_cache import PrefixCache
from .scheduler import AdmissionQueue, Scheduler


@uninterrupted
class Engine:
    """A loaded base model and one context on it.

    A sequence belongs to whoever allocated it: no two threads may work on the same one at a time.
    `lock` and `condition` are the context's (llama_context.py says what they guard). Every method
    raises ClosedError after close().
    """

    def __init__(self, context: LlamaContext) -> None:
        self.context = context
        self.path, self.options = context.path, context.options
        self.native, self.llama, self.vocab = context.native, context.llama, context.vocab
        self.lock, self.condition, self.cells = context.lock, context.condition, context.cells
        self.memory_kind, self.rewinds = context.memory_kind, context.rewinds
        self.window, self.n_batch = context.window, context.n_batch
        self.n_ctx_train, self.n_threads = context.n_ctx_train, context.n_threads
        self.drop, self.abandon, self.collect = context.drop, context.abandon, context.collect
        self.prefix_cache = PrefixCache(context, context.options.n_pooled)
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
        evicts: bool = True,
    ) -> int:
        """A new sequence that shares the first `n` cells of `source`; `n` must be all of them, or
        0, where the memory cannot be split (`rewinds` is false).

        With a `promise` of so many further cells it is there for a while only: others that find
        no room wait until it is dropped. What `source` has reserved serves it too.
        Without `evicts` no conversation that is over gives way.
        """
        cells, found = self.cells, list[int]()
        lender = cells.lender(source)

        def fits() -> bool:
            lent = 0 if lender is None else cells.promised_to(lender)
            if promise is not None and promise > cells.free() + lent:
                return False
            seq = cells.allocate()
            if seq is None:
                return False
            if n:
                cells.share(source, seq, n)
            if promise is not None:
                of = NOBODY if lender is None else lender
                cells.promise(seq, promise, holder=threading.get_ident(), lender=of)
            found.append(seq)
            return True

        if n and not self.rewinds and n != cells.length(source):
            raise InputError(
                f"{self.path}: its recurrent memory can be forked only as a whole "
                f"({cells.length(source)} tokens), not at {n}"
            )
        try:
            self.admission.admit(
                fits,
                lambda: self.admission.no_sequence(promise),
                cancel,
                n=promise or 0,
                waits=promise is None or lender is None,
                evicts=evicts,
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

    def reserve(
        self, seq: int, n: int, *, cancel: CancelToken | None = None, waits: bool = True
    ) -> None:
        """Promises `seq` all of `n` more cells until it is dropped or waive() ends it: whoever
        finds no room meanwhile waits for that. Raises CacheFullError if they cannot be had, now or,
        where it `waits`, when others have given theirs back.
        """
        cells = self.cells

        def fits() -> bool:
            more = cells.beyond_promise(seq, n)
            if more > cells.free():
                return False
            cells.promise(seq, more, holder=threading.get_ident())
            return True

        more = cells.beyond_promise(seq, n)
        full = lambda: self.admission.no_cells(more)  # noqa: E731
        self.admission.admit(fits, full, cancel, n=more, waits=waits)

    def waive(self, seq: int) -> None:
        """Ends what reserve() promised."""
        with self.condition:
            self.cells.waive(seq)
            self.condition.notify_all()

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
        """The cells of `seq` as llama.cpp saves them. Raises RpcError."""
        with self.lock:
            state = bytes(self.llama.llama_state_seq_get_size(self.ctx, seq))
            # into the bytes themselves, which nobody has seen yet: a copy may be gigabytes
            buffer = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
            with self.context.on_devices():
                n = self.llama.llama_state_seq_get_data(self.ctx, buffer, len(state), seq)
            return state if n == len(state) else state[:n]

    def set_state(self, seq: int, state: bytes, n: int) -> None:
        """Fills `seq`, which is empty, with the `n` cells that state() gave earlier. The bytes must
        be known to be whole: llama.cpp checks little. Raises CacheFullError, DecodeError, RpcError.
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
                self.context.check_servers()
                last = self.llama.llama_memory_seq_pos_max(self.context.memory, seq)
                if read != len(state) or last != n - 1:
                    raise DecodeError(
                        f"{self.path}: llama.cpp did not take the saved cells: {read} of "
                        f"{len(state)} bytes read, the last position is {last}, expected {n - 1}"
                        f"{self.native.log.tail()}"
                    )
                first = self.llama.llama_memory_seq_pos_min(self.context.memory, seq)
                if self.rewinds and first != 0:
                    raise DecodeError(
                        f"{self.path}: the saved cells of its sliding window begin at position "
                        f"{first}, expected 0"
                    )
                if self.native.not_finite(self.ctx, [(seq, 0, n)]):
                    raise NotFiniteError(
                        f"{self.path}: a saved cell holds what is not finite, or is there twice"
                    )
            except BaseException:
                with self.condition:
                    self.context.remove_from(seq, 0)
                self.native.clear_free_cells(self.ctx)
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
        CacheFullError when there is no room, CancelledError, RpcError, else DecodeError.
        """
        self.collect()
        return self.scheduler.decode(runs, cancel, progress)
