"""Embeddings: a second context on the same weights, for texts that are read and forgotten."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from alora_gguf.engine.batch import Batch
from alora_gguf.engine.context import Engine
from alora_gguf.errors import DecodeError, InputError, ModelError
from alora_gguf.options import CACHE_TYPES, FLASH_ATTENTION

_NO_POOLING: Final = 0  # LLAMA_POOLING_TYPE_NONE

Vector = list[float]


class Embedder:
    """A context that gives embeddings. It must be closed before its model; it keeps the engine
    alive until then.
    """

    def __init__(self, engine: Engine) -> None:
        """With the sizes, cache types and tuning of the engine's own context.

        Raises ModelError if there is no room for it.
        """
        llama, options = engine.native.llama, engine.options
        params = engine.tuning.context_params(llama)
        params.n_ctx = options.n_ctx or 0
        params.n_batch, params.n_ubatch = options.n_batch, options.n_ubatch
        params.n_seq_max = min(options.n_batch, llama.llama_max_parallel_sequences())
        params.n_threads = llama.llama_n_threads(engine.ctx)
        params.n_threads_batch = llama.llama_n_threads_batch(engine.ctx)
        params.type_k, params.type_v = CACHE_TYPES[options.type_k], CACHE_TYPES[options.type_v]
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attn]
        params.kv_unified = params.embeddings = params.no_perf = True
        with engine.lock:
            ctx = llama.llama_init_from_model(llama.llama_get_model(engine.ctx), params)
        if not ctx:
            raise ModelError(
                f"{engine.path}: no context for embeddings could be made"
                f"{engine.native.log.tail()}; a smaller n_ctx may help"
            )
        self._engine, self._llama, self._ctx = engine, llama, int(ctx)
        # the engine as an argument: its model must outlive this context
        self._finalizer = weakref.finalize(self, _free, llama, self._ctx, engine)
        self.n_batch = int(llama.llama_n_batch(ctx))
        self.pools = int(llama.llama_pooling_type(ctx)) != _NO_POOLING
        self._n_seqs = int(params.n_seq_max)
        model = llama.llama_get_model(ctx)
        self._n_embd = int(llama.llama_model_n_embd(model))
        self._batch = Batch(llama, self.n_batch)

    def close(self) -> None:
        """Frees the context; a second call does nothing."""
        self._finalizer()

    def embed(self, texts: Sequence[Sequence[int]]) -> list[Vector] | list[list[Vector]]:
        """One vector [n_embd] per text in tokens; without pooling, one per token of each.

        Raises InputError for a text of more than n_batch tokens, DecodeError.
        """
        pooled: list[Vector] = []
        by_token: list[list[Vector]] = []
        for group in self._groups(texts):
            self._decode(group)
            at = 0
            for seq, tokens in enumerate(group):
                if self.pools:
                    pooled.append(self._pooled(seq))
                else:
                    by_token.append([self._row(at + i) for i in range(len(tokens))])
                at += len(tokens)
        return pooled if self.pools else by_token

    def _groups(self, texts: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """The texts of one batch each."""
        group: list[Sequence[int]] = []
        total = 0
        for tokens in texts:
            if not tokens:
                raise InputError("an empty text has no embedding")
            if len(tokens) > self.n_batch:
                raise InputError(
                    f"a text has {len(tokens)} tokens, at most n_batch = {self.n_batch} can be "
                    "embedded; shorten it, or open the model with larger n_batch and n_ubatch"
                )
            if group and (total + len(tokens) > self.n_batch or len(group) == self._n_seqs):
                yield group
                group, total = [], 0
            group.append(tokens)
            total += len(tokens)
        if group:
            yield group

    def _decode(self, group: Sequence[Sequence[int]]) -> None:
        memory = self._llama.llama_get_memory(self._ctx)
        self._batch.n = 0
        for seq, tokens in enumerate(group):
            at = self._batch.add(tokens, 0, seq)
            self._batch.logits[at : at + len(tokens)] = 1
        status = self._llama.llama_decode(self._ctx, self._batch.struct())
        if memory:
            self._llama.llama_memory_clear(memory, True)
        if status:
            raise DecodeError(
                f"{self._engine.path}: embeddings could not be computed (status {status})"
                f"{self._engine.native.log.tail()}"
            )

    def _row(self, index: int) -> Vector:
        return self._vector(self._llama.llama_get_embeddings_ith(self._ctx, index))

    def _pooled(self, seq: int) -> Vector:
        return self._vector(self._llama.llama_get_embeddings_seq(self._ctx, seq))

    def _vector(self, pointer: Any) -> Vector:
        if not pointer:
            raise DecodeError(f"{self._engine.path}: llama.cpp gave no embedding")
        values: Vector = pointer[: self._n_embd]
        return values


def normalized(vector: Vector) -> Vector:
    """`vector` at length 1; a zero vector as it is."""
    length = float(np.linalg.norm(vector))
    return [value / length for value in vector] if length else vector


def _free(llama: Any, ctx: int, _engine: Engine) -> None:
    llama.llama_free(ctx)
