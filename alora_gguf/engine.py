"""One llama.cpp context: the only place that calls llama_decode.

Owns the weights, the context and its sequences. Knows nothing of conversations: tokens go in by
sequence, rows of logits come out, and a call that fails leaves no cells behind.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import _native
from .cells import CellBooks
from .errors import CacheFullError, ClosedError, DecodeError, InputError, ModelError
from .options import CACHE_TYPES, FLASH_ATTENTION, ContextOptions, default_threads
from .vocab import Vocabulary

Logits = NDArray[np.float32]
"""One row of logits, [n_vocab]."""

_REASONS = {
    2: "the computation was aborted",
    -1: "llama.cpp refused the batch",
    -2: "memory for the computation could not be allocated",
    -3: "the computation failed",
}


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens to append to a sequence, and which of them to give logits for."""

    seq: int
    tokens: Sequence[int]
    outputs: Literal["none", "last", "all"] = "last"


class Engine:
    """A loaded base model and one context on it.

    `lock` serializes all use: hold it over calls that belong together. Every method raises
    ClosedError after close().
    """

    def __init__(
        self, path: Path, options: ContextOptions, *, n_gpu_layers: int, verbose: bool
    ) -> None:
        self.native = native = _native.load()
        self.lock = threading.RLock()
        self.path = path
        native.log.verbose = native.log.verbose or verbose
        native.log.clear()
        self._llama = llama = native.llama
        model = _open_model(native, path, n_gpu_layers)
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
        self.n_batch: int = llama.llama_n_batch(ctx)
        self._n_outputs = min(self.n_batch, max(options.n_outputs or 0, options.n_seq_max))
        self.books = CellBooks(llama.llama_n_seq_max(ctx), llama.llama_n_ctx(ctx))
        self._batch = _Batch(llama, self.n_batch)
        self._abandoned: deque[int] = deque()

    def _read_model(self, model: int) -> None:
        llama = self._llama
        if llama.llama_model_has_encoder(model) or not llama.llama_model_has_decoder(model):
            raise ModelError(
                f"{self.path}: is an encoder or encoder-decoder model; only decoder models can "
                "hold a conversation"
            )
        self.vocab = Vocabulary(llama, model, str(self.path))
        self.rewinds = not (
            llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)
        )

    def _open_context(self, model: int, options: ContextOptions) -> int:
        llama = self._llama
        params = llama.llama_context_default_params()
        trained = llama.llama_model_n_ctx_train(model)
        params.n_ctx = options.n_ctx or min(trained or 4096, 4096)
        params.n_batch = min(options.n_batch, params.n_ctx)
        params.n_ubatch = min(options.n_ubatch, params.n_batch)
        params.n_seq_max = options.n_seq_max
        # rows of logits are what makes the worst-case compute buffer large: n_batch of them would
        # take 260 MB for a vocabulary of 128k; llama.cpp wants one per sequence at least
        params.n_outputs_max = max(options.n_outputs or 0, options.n_seq_max)
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
        with self.lock:
            self._finalizer()

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
        with self.lock:
            self.collect()
            seq = self.books.allocate()
            if seq is None:
                raise CacheFullError(
                    f"{self.path}: all {self.books.n_seqs} sequences are in use; close a session, "
                    "or open the model with a larger n_seq_max"
                )
            return seq

    def fork(self, source: int, n: int) -> int:
        """A new sequence that shares the first `n` cells of `source`; `n` must be all of them, or
        0, where the memory cannot be split (`rewinds` is false).
        """
        with self.lock:
            if n and not self.rewinds and n != self.books.length(source):
                raise InputError(
                    f"{self.path}: its recurrent memory can be forked only as a whole "
                    f"({self.books.length(source)} tokens), not at {n}"
                )
            seq = self.allocate()
            if n:
                self.books.share(source, seq, n)
                end = n if self.rewinds else -1
                self._llama.llama_memory_seq_cp(self._memory, source, seq, 0, end)
            return seq

    def truncate(self, seq: int, n: int) -> int:
        """Removes the cells from position `n` on and returns how many are left: `n`, or 0 where the
        memory cannot rewind.
        """
        with self.lock:
            self.collect()
            if n < self.books.length(seq):
                if not self._llama.llama_memory_seq_rm(self._memory, seq, n, -1):
                    n = 0
                    self._llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
                self.books.truncate(seq, n)
            return self.books.length(seq)

    def drop(self, seq: int) -> None:
        """Gives a sequence back: its activations, its cells, its id."""
        self.abandon(seq)
        with self.lock:
            if not self.closed:
                self.collect()

    def abandon(self, seq: int) -> None:
        """Marks a sequence for dropping at the next call. Takes no lock and calls no C, so that
        garbage collection may do it at any moment on any thread.
        """
        self._abandoned.append(seq)

    def collect(self) -> None:
        """Gives abandoned sequences' activations, cells and ids back."""
        ctx = self.ctx
        while self._abandoned:
            seq = self._abandoned[0]  # stays in the list until it is really gone
            self.native.deactivate(ctx, seq)
            self._llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
            self.books.release(seq)
            self._abandoned.popleft()

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
            size = self._llama.llama_state_seq_get_size(self.ctx, seq)
            buffer = (ctypes.c_uint8 * size)()
            n = self._llama.llama_state_seq_get_data(self.ctx, buffer, size, seq)
            return bytes(memoryview(buffer)[:n])

    def set_state(self, seq: int, state: bytes, n: int) -> None:
        """Fills `seq`, which is empty, with the `n` cells that state() gave earlier. The bytes must
        be known to be whole: llama.cpp checks little. Raises CacheFullError, DecodeError.
        """
        with self.lock:
            self.collect()
            self.require_room(n)
            self.native.log.clear()
            buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
            try:
                read = self._llama.llama_state_seq_set_data(self.ctx, buffer, len(state), seq)
                last = self._llama.llama_memory_seq_pos_max(self._memory, seq)
                if read != len(state) or last != n - 1:
                    raise DecodeError(
                        f"{self.path}: llama.cpp did not take the saved cells: {read} of "
                        f"{len(state)} bytes read, the last position is {last}, expected {n - 1}"
                        f"{self.native.log.tail()}"
                    )
                self.books.extend(seq, n)
            except BaseException:
                self._undo(seq, 0)
                raise

    # Decoding ------------------------------------------------------------------------------------

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        """Appends each run's tokens to its sequence, all runs together, in as few calls as n_batch
        and n_outputs allow. No two runs may name the same sequence.

        Returns one entry per run: the logits after its last token, [n_vocab]; for "all" those
        after every token, [n_tokens, n_vocab]; None for "none". If it raises, interrupts included,
        none of the tokens are in the cache: CacheFullError when there is no room, else DecodeError.
        """
        with self.lock:
            self.collect()
            self.native.log.clear()
            total = sum(len(run.tokens) for run in runs)
            starts = [self.books.length(run.seq) for run in runs]
            if total > self.books.n_seqs:  # too dear to ask before every single token
                self.require_room(total)
            out: list[Logits | None] = [_rows_for(run, self.vocab.n_tokens) for run in runs]
            try:
                for pieces in self._chunks(runs):
                    self._decode_chunk(runs, pieces, out, total)
            except BaseException:
                for run, start in zip(runs, starts, strict=True):
                    self._undo(run.seq, start)
                raise
            return out

    def require_room(self, n: int, freed: int = 0) -> None:
        """Raises CacheFullError unless `n` more cells fit once `freed` ones are given back."""
        free = self.books.free() + freed
        if n > free:
            raise CacheFullError(
                f"{self.path}: the KV cache is full: {n} cells needed, {free} of "
                f"{self.books.n_cells} free; close or rewind a session, or open the model with a "
                "larger n_ctx"
            )

    def _chunks(self, runs: Sequence[Run]) -> Iterator[list[tuple[int, int, int]]]:
        """Cuts the runs into batches: lists of (run, first token, end)."""
        pieces: list[tuple[int, int, int]] = []
        room, rows = self.n_batch, self._n_outputs
        for i, run in enumerate(runs):
            at, n = 0, len(run.tokens)
            while at < n:
                take = min(n - at, room)
                if run.outputs == "all":
                    take = min(take, rows)
                last = run.outputs == "last" and at + take == n
                if take == 0 or (last and rows == 0):
                    yield pieces
                    pieces, room, rows = [], self.n_batch, self._n_outputs
                    continue
                pieces.append((i, at, at + take))
                rows -= take if run.outputs == "all" else int(last)
                room -= take
                at += take
        if pieces:
            yield pieces

    def _decode_chunk(
        self,
        runs: Sequence[Run],
        pieces: list[tuple[int, int, int]],
        out: list[Logits | None],
        total: int,
    ) -> None:
        batch, books = self._batch, self.books
        batch.n = 0
        wanted: list[tuple[int, Logits]] = []  # batch index, where its logits go
        for i, begin, end in pieces:
            run, row = runs[i], out[i]
            at = batch.add(run.tokens[begin:end], books.length(run.seq), run.seq)
            books.extend(run.seq, end - begin)
            if row is None:
                continue
            if run.outputs == "all":
                wanted += [(at + k, row[begin + k]) for k in range(end - begin)]
            elif end == len(run.tokens):
                wanted.append((at + end - begin - 1, row))
        for index, _ in wanted:
            batch.logits[index] = 1
        status = self._llama.llama_decode(self._ctx, batch.struct())
        if status:
            raise self._failure(status, total)
        for index, row in wanted:
            source = self._llama.llama_get_logits_ith(self._ctx, index)
            if not source:
                raise DecodeError(f"{self.path}: llama.cpp gave no logits for a token")
            ctypes.memmove(row.ctypes.data, source, row.nbytes)

    def _failure(self, status: int, total: int) -> DecodeError:
        if status == 1:
            return CacheFullError(
                f"{self.path}: the KV cache is full: no cells for {total} more tokens (of "
                f"{self.books.n_cells}, {self.books.used()} would be in use); close or rewind a "
                "session, or open the model with a larger n_ctx"
            )
        reason = _REASONS.get(status, "the computation failed")
        detail = self.native.last_error()
        return DecodeError(
            f"{self.path}: a batch could not be computed: {reason} (status {status})"
            f"{': ' + detail if detail else ''}{self.native.log.tail()}"
        )

    def _undo(self, seq: int, n: int) -> None:
        """Removes what a failed call may have written, whatever the books think of it."""
        if not self._llama.llama_memory_seq_rm(self._memory, seq, n, -1):
            self._llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
            n = 0
        self.books.truncate(seq, n)


class _Batch:
    """A llama_batch over arrays that are made once."""

    def __init__(self, llama: Any, size: int) -> None:
        self.n = 0
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
        self._struct.n_tokens = self.n
        return self._struct


def _rows_for(run: Run, n_vocab: int) -> Logits | None:
    if run.outputs == "none":
        return None
    if run.outputs == "all":
        return np.empty((len(run.tokens), n_vocab), np.float32)
    return np.empty(n_vocab, np.float32)


def _open_model(native: _native.Native, path: Path, n_gpu_layers: int) -> int:
    llama = native.llama
    params = llama.llama_model_default_params()
    params.n_gpu_layers = n_gpu_layers
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise ModelError(f"{path}: llama.cpp cannot load this model{native.log.tail()}")
    return int(model)


def _free(llama: Any, ctx: int, model: int) -> None:
    llama.llama_free(ctx)  # before its weights
    llama.llama_model_free(model)
