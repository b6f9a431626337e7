"""What is done with one llama.cpp context: its sequences are forked, cut, decoded, and adapters
loaded for them.

Knows nothing of conversations: tokens go in by sequence, rows of logits come out, and a call that
fails leaves no cells behind. Calls of several threads share batches, and when cells or sequences
run short they wait for what others are about to give back (scheduler.py).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Final

from alora_gguf._calls import uninterrupted
from alora_gguf.errors import (
    AdapterInUseError,
    AdapterMismatchError,
    DecodeError,
    InputError,
    NotFiniteError,
    UnknownAdapterError,
    did_you_mean,
)
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.base import BaseFile
from alora_gguf.options import MAX_SCALE, CancelToken, Progress, check_number

from .cells import NOBODY
from .llama_context import LlamaContext, Logits, Run
from .prefix_cache import PrefixCache
from .scheduler import AdmissionQueue, Scheduler
from .tokens import ActiveAdapter, Vocabulary

_BASE: Final = nullcontext(ActiveAdapter(None, None, 0, 1.0))


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
        CacheFullError when there is no room, CancelledError, else DecodeError.
        """
        self.collect()
        return self.scheduler.decode(runs, cancel, progress)


def _check_vocabulary(file: AdapterFile, base: BaseFile, vocab: Vocabulary) -> None:
    """Raises AdapterMismatchError if the invocation's ids read otherwise in this base than they did
    in the one that the adapter was converted for.
    """
    text, invocation = file.invocation_text, file.invocation
    if not invocation or text is None or not vocab.has_text:
        return
    reads = vocab.detokenize(invocation, special=True)
    # spaces do not count: some vocabularies put one before a text that had none
    if reads.replace(" ", "") == text.replace(" ", ""):
        return
    # the text may have more spellings in tokens than one
    if tuple(vocab.tokenize(text, add_special=False, parse_special=True)) != invocation:
        raise AdapterMismatchError(
            f"{file.path}: its invocation {list(invocation)} reads {text!r}, but {reads!r} in "
            f"{base.path}, which has another vocabulary; use the base it was trained on"
        )


MAX_NAME: Final = 256  # characters of an adapter's name, which stands in messages and tables


@uninterrupted
class Bank(Mapping[str, AdapterFile]):
    """The loaded adapters by name; for any thread."""

    def __init__(self, engine: Engine, base: BaseFile, max_adapters: int) -> None:
        self._engine = engine
        self._base = base
        self._max_adapters = max_adapters
        self._loaded: dict[str, tuple[AdapterFile, int]] = {}
        self._in_use: Counter[int] = Counter()  # slots; guarded by the engine's condition

    def __getitem__(self, name: str) -> AdapterFile:
        return self._loaded[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._loaded))

    def __len__(self) -> int:
        return len(self._loaded)

    def load(
        self, paths: Mapping[str, str | os.PathLike[str]], *, from_start: bool = False
    ) -> None:
        """Reads, checks and adds adapters; all of them or, if one fails, none. `from_start` takes
        activated LoRAs for plain ones.
        """
        files = {}
        for name, path in paths.items():
            self._check_name(name)
            files[name] = AdapterFile.read(path)
            files[name].check_base(self._base, self._engine.vocab.n_tokens)
            _check_vocabulary(files[name], self._base, self._engine.vocab)
            if from_start:
                files[name] = replace(files[name], invocation=(), invocation_text=None)
        if not files:
            return
        native, slots = self._engine.native, dict[str, int]()
        with self._engine.lock:
            ctx = self._engine.ctx
            for name in files:
                self._check_name(name)  # another thread may have been faster
            # Room for all slots at once, but for no rank: that would be every target's, so that one
            # of rank 4096 would multiply all the others. The largest adapter comes first instead:
            # the next ones fit then, and the context reserves once and not once each.
            native.bank_reserve(ctx, self._max_adapters, 1)
            try:
                for name, file in sorted(files.items(), key=lambda item: -item[1].rank):
                    slots[name] = native.adapter_add(ctx, file.data, str(file.path))
            except BaseException:
                for slot in slots.values():
                    native.adapter_remove(ctx, slot, "an adapter that was added before")
                raise
            for name, file in files.items():
                self._loaded[name] = (file.without_data(), slots[name])

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
            wanted = f"1 to {MAX_NAME} printable characters"
            raise InputError(f"an adapter's name must be {wanted}, got {ascii(name)[:80]}")
        if name in self._loaded:
            raise AdapterInUseError(
                f"an adapter named '{name}' is loaded already "
                f"({self._loaded[name][0].path}); unload it first or choose another name"
            )

    def unload(self, name: str) -> None:
        """Frees an adapter's slot. Raises AdapterInUseError while a call or reply uses it."""
        engine, what = self._engine, f"adapter '{name}' cannot be unloaded now"
        with engine.lock:
            engine.collect()
            with engine.condition:
                _, slot = self._find(name)
                if self._in_use[slot]:
                    raise AdapterInUseError(f"{what}: a call on another thread is using it")
                engine.native.adapter_remove(engine.ctx, slot, what)
                del self._loaded[name]

    def using(self, name: str | None, scale: float) -> AbstractContextManager[ActiveAdapter]:
        """Resolves an adapter's name (None: the base), and keeps it loaded meanwhile. Raises
        UnknownAdapterError, InputError.
        """
        check_number(scale, "scale", -MAX_SCALE, MAX_SCALE)
        return _BASE if name is None else self._using(name, scale)

    @contextmanager
    def _using(self, name: str, scale: float) -> Iterator[ActiveAdapter]:
        with self._engine.condition:
            file, slot = self._find(name)
            self._in_use[slot] += 1
        try:
            yield ActiveAdapter(name, file, slot, float(scale))
        finally:
            with self._engine.condition:
                self._in_use[slot] -= 1

    def find(self, name: str) -> AdapterFile:
        """The adapter of that name. Raises UnknownAdapterError."""
        return self._find(name)[0]

    def _find(self, name: str) -> tuple[AdapterFile, int]:
        try:
            return self._loaded[name]
        except (KeyError, TypeError):
            known = ", ".join(f"'{n}'" for n in self._loaded) or "none"
            raise UnknownAdapterError(
                f"no adapter named {name!r} is loaded; loaded: {known}"
                f"{did_you_mean(name, self._loaded)}"
            ) from None
