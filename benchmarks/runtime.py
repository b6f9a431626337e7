"""llama.cpp and the adapter bank without anything above them: contexts, batches, decode calls.

The rows are measured here, at the C API, so that a binding's costs are neither hidden in them nor
blamed on the engine.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alora_gguf.options import CACHE_TYPES, CacheType

Rows = Sequence[tuple[int, int, int, bool]]
"""Rows of a batch: (token, position, sequence, whether its logits are wanted)."""


class Library:
    """A loaded libllama: ours, with `alora`, or in a worker a stock one, without."""

    def __init__(self, stock_dir: Path | None = None) -> None:
        self.alora: Any = None  # alora_gguf's binding of alora.h
        if stock_dir is None:
            from alora_gguf.engine import native as _native

            self.alora = _native.load()
            self.llama: Any = self.alora.llama
            return
        os.environ["LLAMA_CPP_LIB_PATH"] = str(stock_dir)
        self.llama = importlib.import_module("llama_cpp.llama_cpp")
        self._log = self.llama.llama_log_callback(_log_errors)
        self.llama.llama_log_set(self._log, None)
        self.llama.llama_backend_init()

    @property
    def ggml_base(self) -> str:
        """The path of libggml-base."""
        path = Path(self.llama._lib._name)
        return str(path.with_name(path.name.replace("llama", "ggml-base")))


def _log_errors(level: int, text: bytes | None, _user_data: object) -> None:
    if level == 4:
        sys.stderr.write((text or b"").decode("utf-8", "replace"))


@dataclass(frozen=True)
class ContextSize:
    """A context's sizes; everything else is the same for all sides."""

    n_ctx: int
    n_seq: int = 1
    n_threads: int = 1
    n_outputs: int = 16
    cells: CacheType = "f16"


class Weights:
    """A loaded base model on the CPU."""

    def __init__(self, library: Library, path: Path) -> None:
        self.library, self.path = library, path
        params = library.llama.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = library.llama.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise RuntimeError(f"{path}: could not be loaded")
        vocab = library.llama.llama_model_get_vocab(self.model)
        self.n_vocab = int(library.llama.llama_vocab_n_tokens(vocab))

    def stock_adapter(self, path: Path) -> Any:
        """An adapter for Context.set_stock; freed with the weights."""
        adapter = self.library.llama.llama_adapter_lora_init(self.model, str(path).encode())
        if not adapter:
            raise RuntimeError(f"{path}: could not be loaded (ALORA_VERBOSE=1 shows why)")
        return adapter

    def close(self) -> None:
        self.library.llama.llama_model_free(self.model)


class Batch:
    """A llama_batch over numpy arrays, so that filling it costs next to nothing."""

    def __init__(self, llama: Any, capacity: int) -> None:
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._counts = np.ones(capacity, np.int32)
        self._seqs = np.zeros(capacity, np.int32)
        self._outputs = np.zeros(capacity, np.int8)
        addresses = self._seqs.ctypes.data + 4 * np.arange(capacity, dtype=np.uint64)
        self._pointers = addresses.astype(np.uint64)
        kinds = {name: kind for name, kind, *_ in llama.llama_batch._fields_}

        def pointer(name: str, array: NDArray[Any]) -> Any:
            return ctypes.cast(array.ctypes.data, kinds[name])

        self.capacity = capacity
        self.struct = llama.llama_batch(
            n_tokens=0,
            token=pointer("token", self._tokens),
            pos=pointer("pos", self._positions),
            n_seq_id=pointer("n_seq_id", self._counts),
            seq_id=pointer("seq_id", self._pointers),
            logits=pointer("logits", self._outputs),
        )

    def fill(self, rows: Rows) -> None:
        n = len(rows)
        columns = np.array(rows, dtype=np.int32)
        self._tokens[:n] = columns[:, 0]
        self._positions[:n] = columns[:, 1]
        self._seqs[:n] = columns[:, 2]
        self._outputs[:n] = columns[:, 3]
        self.struct.n_tokens = n


class Context:
    """A llama_context with a unified cache; with our library it attends as models do by default.
    `watch` is called with each tensor of each graph.
    """

    def __init__(
        self, weights: Weights, size: ContextSize, watch: Callable[..., bool] | None = None
    ) -> None:
        self.weights, self.size = weights, size
        self.llama, self.alora = weights.library.llama, weights.library.alora
        params = self.llama.llama_context_default_params()
        params.n_ctx = size.n_ctx
        params.n_batch = min(size.n_ctx, 2048)
        params.n_ubatch = min(size.n_ctx, 512)
        params.n_seq_max = size.n_seq
        params.n_outputs_max = size.n_outputs
        params.n_threads = params.n_threads_batch = size.n_threads
        params.type_k = params.type_v = CACHE_TYPES[size.cells]
        params.kv_unified = True
        params.no_perf = True
        if watch is not None:
            self._watch = self.llama.ggml_backend_sched_eval_callback(watch)
            params.cb_eval = self._watch
        self.ctx = self.llama.llama_init_from_model(weights.model, params)
        if not self.ctx:
            raise RuntimeError(f"{weights.path}: no context of {size.n_ctx} cells")
        self.memory = self.llama.llama_get_memory(self.ctx)
        self.batch = Batch(self.llama, params.n_batch)
        if self.alora is not None:
            self.attend("auto")

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.llama.llama_free(self.ctx)

    # decoding

    def decode(self, rows: Rows) -> None:
        self.batch.fill(rows)
        status = self.llama.llama_decode(self.ctx, self.batch.struct)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def prefill(self, tokens: Sequence[int], seq: int = 0, first: int = 0) -> None:
        """Appends tokens, n_batch at a time; the last one's logits are wanted."""
        step, end = self.batch.capacity, first + len(tokens)
        rows = [(t, first + i, seq, first + i == end - 1) for i, t in enumerate(tokens)]
        for i in range(0, len(rows), step):
            self.decode(rows[i : i + step])

    def logits(self, index: int = -1) -> NDArray[np.float32]:
        source = self.llama.llama_get_logits_ith(self.ctx, index)
        return np.ctypeslib.as_array(source, (self.weights.n_vocab,))

    def greedy(self, index: int = -1) -> int:
        return int(self.logits(index).argmax())

    def digest(self, index: int = -1) -> str:
        return hashlib.sha256(self.logits(index).tobytes()).hexdigest()

    # cells

    def clear(self) -> None:
        self.llama.llama_memory_clear(self.memory, False)

    def truncate(self, seq: int, n: int) -> None:
        self.llama.llama_memory_seq_rm(self.memory, seq, n, -1)

    def drop(self, seq: int) -> None:
        self.llama.llama_memory_seq_rm(self.memory, seq, -1, -1)

    def fork(self, source: int, seq: int) -> None:
        self.llama.llama_memory_seq_cp(self.memory, source, seq, -1, -1)

    def save(self, seq: int = 0) -> bytes:
        size = self.llama.llama_state_seq_get_size(self.ctx, seq)
        buffer = (ctypes.c_uint8 * size)()
        n = self.llama.llama_state_seq_get_data(self.ctx, buffer, size, seq)
        return bytes(memoryview(buffer)[:n])

    def restore(self, state: bytes, seq: int = 0) -> None:
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if not self.llama.llama_state_seq_set_data(self.ctx, buffer, len(state), seq):
            raise RuntimeError("a saved sequence could not be restored")

    # adapters

    def add(self, paths: Sequence[Path], rank: int = 32) -> list[int]:
        """Puts adapters into the bank and returns their slots."""
        self.alora.bank_reserve(self.ctx, len(paths), rank)
        return [self.alora.adapter_add(self.ctx, p.read_bytes(), str(p)) for p in paths]

    def activate(self, seq: int, first: int, slot: int) -> None:
        self.alora.activate(self.ctx, seq, first, slot, 1.0)

    def deactivate(self, seq: int = -1) -> None:
        self.alora.deactivate(self.ctx, seq)

    def attend(self, mode: str) -> None:
        """Whose attention: a mode of Native.set_attention()."""
        self.alora.set_attention(self.ctx, mode)

    def set_stock(self, adapter: Any | None) -> None:
        """Stock switching: `adapter` for every token from now on, or none, and its attention."""
        self.attend("upstream")
        array = (self.llama.llama_adapter_lora_p_ctypes * 1)(adapter)
        scales = (ctypes.c_float * 1)(1.0)
        n = 0 if adapter is None else 1
        if self.llama.llama_set_adapters_lora(self.ctx, array, n, scales):
            raise RuntimeError("llama_set_adapters_lora failed")

    def stats(self) -> Any:
        return self.alora.stats(self.ctx)
