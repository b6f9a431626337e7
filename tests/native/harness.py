"""The C API without the binding: contexts, batches, and random adapters on the tiny models."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from alora_gguf.engine.native import Native, Stats, load
from alora_gguf.gguf.header import read_header
from tests.backends import NAME as BACKEND
from tests.backends import ON_DEVICE
from tests.support.make_gguf import adapter_keys, make_gguf
from tests.support.tiny_families import N_VOCAB
from tests.support.tiny_models import TinyModel

Logits = NDArray[np.float32]
Token = tuple[int, int, tuple[int, ...]]  # id, position, sequences

F32 = 0  # ggml_type
FLASH_ATTENTION_OFF, FLASH_ATTENTION_ON = 0, 1
N_GPU_LAYERS = 99 if ON_DEVICE else 0

# for tests of what only some backends do
on_the_cpu = pytest.mark.skipif(
    ON_DEVICE, reason="products are fused, and base and adapted tokens attended apart, by the CPU"
)
own_threads = pytest.mark.skipif(
    BACKEND == "blas", reason="OpenBLAS divides a product by its threads, and so rounds otherwise"
)


class Base:
    """A loaded base model."""

    def __init__(self, path: Path, stock: Any = None, *, n_gpu_layers: int = N_GPU_LAYERS) -> None:
        """Loads `path` with our library, or with the one that `stock`, llama_cpp's module, has."""
        self._native: Native | None = None if stock else load()
        self.llama: Any = stock or self._native.llama
        params = self.llama.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        self.handle = self.llama.llama_model_load_from_file(str(path).encode(), params)
        assert self.handle

    @property
    def native(self) -> Native:
        assert self._native, "the stock library has no bank"
        return self._native

    def context(
        self,
        *,
        n_batch: int = 256,
        n_seq_max: int = 8,
        n_threads: int = 1,
        flash_cells: int | None = None,
        cells_on_device: bool = True,
    ) -> Context:
        """One thread unless told otherwise: the models are too small to share.

        `flash_cells`: flash attention, with cells of this ggml_type. `cells_on_device`: a layer's
        cells lie where its weights do, else in the host's memory.
        """
        return Context(self, n_batch, n_seq_max, n_threads, flash_cells, cells_on_device)

    def close(self) -> None:
        self.llama.llama_model_free(self.handle)


class Context:
    """A context with F32 cells, so that only the order of additions differs between graphs."""

    def __init__(
        self,
        base: Base,
        n_batch: int,
        n_seq_max: int,
        n_threads: int,
        flash_cells: int | None = None,
        cells_on_device: bool = True,
    ) -> None:
        self.base, self.llama = base, base.llama
        params = self.llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 1024, n_batch, n_batch
        params.n_seq_max, params.kv_unified = n_seq_max, True
        params.n_threads = params.n_threads_batch = n_threads
        params.type_k = params.type_v = F32 if flash_cells is None else flash_cells
        params.flash_attn_type = FLASH_ATTENTION_OFF if flash_cells is None else FLASH_ATTENTION_ON
        params.offload_kqv = cells_on_device
        self.handle = self.llama.llama_init_from_model(base.handle, params)
        assert self.handle

    @property
    def native(self) -> Native:
        return self.base.native

    def close(self) -> None:
        if self.base._native:
            assert self.stats().n_skipped == 0
        self.llama.llama_free(self.handle)

    def clear(self) -> None:
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.handle), True)

    def add(self, adapter: Path) -> int:
        return self.native.adapter_add(self.handle, adapter.read_bytes(), str(adapter))

    def activate(self, seq: int, first: int, slot: int, scale: float = 1.0) -> None:
        self.native.activate(self.handle, seq, first, slot, scale)

    def deactivate(self, seq: int = -1) -> None:
        self.native.deactivate(self.handle, seq)

    def stats(self) -> Stats:
        return self.native.stats(self.handle)

    def stock_lora(self, adapter: Path, scale: float) -> None:
        """Attaches an adapter the way stock llama.cpp does; it lives as long as the model."""
        lora = self.llama.llama_adapter_lora_init(self.base.handle, str(adapter).encode())
        assert lora
        array = (self.llama.llama_adapter_lora_p_ctypes * 1)(lora)
        self.llama.llama_set_adapters_lora(self.handle, array, 1, (ctypes.c_float * 1)(scale))

    def decode(
        self, tokens: Iterable[Token], want: Callable[[Token], bool] = lambda _: True
    ) -> Logits:
        """The logits [n_wanted, n_vocab] of the tokens that are wanted, in order."""
        status, rows = self.try_decode(tokens, want)
        assert status == 0, status
        return rows

    def try_decode(
        self, tokens: Iterable[Token], want: Callable[[Token], bool] = lambda _: True
    ) -> tuple[int, Logits]:
        tokens = list(tokens)
        batch = self.llama.llama_batch_init(len(tokens), 0, 8)
        try:
            batch.n_tokens = len(tokens)
            for i, (token, position, seqs) in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, len(seqs)
                for k, seq in enumerate(seqs):
                    batch.seq_id[i][k] = seq
                batch.logits[i] = want(tokens[i])
            status = self.llama.llama_decode(self.handle, batch)
            rows = [
                np.ctypeslib.as_array(
                    self.llama.llama_get_logits_ith(self.handle, i), (N_VOCAB,)
                ).copy()
                for i in range(len(tokens))
                if status == 0 and batch.logits[i]
            ]
            return status, np.array(rows, np.float32)
        finally:
            self.llama.llama_batch_free(batch)


def sequence(tokens: Iterable[int], seq: int = 0, start: int = 0) -> list[Token]:
    return [(token, start + i, (seq,)) for i, token in enumerate(tokens)]


def difference(ours: Logits, theirs: Logits) -> float:
    """The largest difference, relative to the largest logit."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


_LINEAR = {
    *("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output"),
    *("ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp"),
    *("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    *("ssm_in", "ssm_out", "output"),
}


def write_adapter(
    path: Path,
    model: TinyModel,
    *,
    rank: int,
    seed: int = 0,
    alpha: float = 16.0,
    only: str = "",
    embedding: bool = False,
    gain: float = 0.2,
    dtype: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    dtype_b: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """A random adapter on all of a tiny model's linear layers whose names contain `only`; values of
    B, of a type of their own if `dtype_b` is given, are about gain/sqrt(rank).
    """
    rng = np.random.default_rng(seed)
    header = read_header(model.gguf)
    tensors = {}

    def add(name: str, *shape: int, gain: float = 1.0) -> None:
        values = rng.standard_normal(shape, dtype="float32") * np.float32(gain * shape[-1] ** -0.5)
        kind = dtype if dtype_b is None or name.endswith("lora_a") else dtype_b
        tensors[name] = (gguf.quants.quantize(values, kind), kind)

    for name, tensor in header.tensors.items():
        layer = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if name == "token_embd.weight" and embedding:
            add(f"{name}.lora_a", tensor.shape[1], rank, gain=rank**0.5)
            add(f"{name}.lora_b", tensor.shape[0], rank, gain=0.2 * tensor.shape[0] ** -0.5)
        elif layer in _LINEAR and only in name and name.endswith(".weight"):
            experts = tensor.shape[2:]
            add(f"{name}.lora_a", *experts, rank, tensor.shape[0])
            add(f"{name}.lora_b", *experts, tensor.shape[1], rank, gain=gain)
    return make_gguf(path, adapter_keys(alpha), tensors, architecture=header.architecture)
