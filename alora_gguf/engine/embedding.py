"""Vectors of texts: a second context on a model's weights, so that what was read stays."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from alora_gguf.errors import DecodeError, InputError, ModelError, NotFiniteError
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.vector import VectorFile
from alora_gguf.options import CancelToken

from .llama_context import Batch, LlamaContext
from .tokens import BASE, Provenance

Pooling = Literal["mean", "cls", "last"]
"""How one vector is made of a text's: their mean, the first, or the last."""

POOLING: Final = {"none": 0, "mean": 1, "cls": 2, "last": 3}  # LLAMA_POOLING_TYPE_*
UNSPECIFIED: Final = -1  # what the model's file says
_RANKS: Final = 4  # of which there is one for a text, and not n_embd

Vectors = NDArray[np.float32]


class Embedder:
    """Makes vectors [n_embd] of texts in tokens, many in a batch; where nothing is pooled, one for
    each token. For any thread. Freed with `context`, whose model it uses.

    n_tokens  the most of one text: vectors are pooled within one graph
    pooling   llama.cpp's number of how it pools
    """

    def __init__(self, context: LlamaContext, params: Any, n_tokens: int) -> None:
        """`params` are llama_context_params as the model's context has them, with the pooling.
        Raises ModelError where no context can be made, InputError for one that pools into ranks.
        """
        self._context = context
        self._native, self._llama = context.native, context.llama
        self.n_tokens = n_tokens
        params.n_ctx = params.n_batch = params.n_ubatch = n_tokens
        params.n_seq_max = min(n_tokens, self._llama.llama_max_parallel_sequences())
        params.n_outputs_max = 0  # all
        params.embeddings = params.kv_unified = True
        self._lock = threading.Lock()
        self._slots: dict[str, int] = {}
        self._mixed: list[int] = []  # slots of several together
        with context.logged(), context.vocab.opened(), context.on_devices():
            ctx = self._llama.llama_init_from_model(context.model, params)
            if not ctx:
                raise ModelError(
                    f"{context.path}: no context for embeddings of {n_tokens} tokens could be made"
                    f"{self._native.log.tail()}; a smaller n_batch may help"
                )
            self._ctx = int(ctx)
            context.others.append(self._ctx)
            self._native.interrupt(self._ctx, False)  # installs the callback
            self._native.set_attention(self._ctx, context.options.attention)
        self.pooling: int = self._llama.llama_pooling_type(ctx)
        if self.pooling == _RANKS:
            self.free()
            raise InputError(
                f"{context.path}: pools into ranks, which are not embeddings; choose another "
                "pooling, such as mean (LLAMA_POOLING_TYPE_MEAN)"
            )
        self._width: int = self._llama.llama_model_n_embd(context.model)
        self._n_seqs = params.n_seq_max if self.pooling != POOLING["none"] else 1
        self._batch = Batch(self._llama, n_tokens)

    def free(self) -> None:
        """Frees it before its model is."""
        with self._lock:
            if self._ctx in self._context.others:
                self._context.others.remove(self._ctx)
                self._llama.llama_free(self._ctx)

    def embed(
        self,
        texts: Sequence[Sequence[int]],
        adapted: Sequence[Sequence[tuple[int, int, float]]] = (),
        cancel: CancelToken | None = None,
    ) -> list[Vectors]:
        """A vector for each text, of 1 to `n_tokens` tokens; for each token of it, [n, n_embd],
        where nothing is pooled. `adapted` says of each text from which positions on it is computed
        with which slots of slots_for() at which scales. Raises CancelledError, NotFiniteError,
        DecodeError.
        """
        out = list[Vectors]()
        with self._lock:
            for begin, end in self._batches(texts):
                if cancel is not None:
                    cancel.check()
                uses = adapted[begin:end]
                with self._context.vocab.opened():  # the model is not freed meanwhile
                    out += self._compute(texts[begin:end], uses, cancel)
        return out

    def slots_for(
        self,
        wanted: Collection[Provenance],
        file_of: Callable[[str], AdapterFile | VectorFile],
        known: Collection[str],
    ) -> dict[Provenance, tuple[int, float]]:
        """The slot and the scale of each that is `wanted`; `file_of` reads what computes as an
        identity says, and `known` are those of the adapters that are loaded: others are dropped.
        """
        found, what = {BASE: (0, 1.0)}, "embeddings"
        with self._lock, self._context.vocab.opened(), self._context.on_devices():
            for slot in self._mixed:  # of the call before
                self._native.adapter_remove(self._ctx, slot, what)
            self._mixed.clear()
            for gone in [each for each in self._slots if each not in known]:
                self._native.adapter_remove(self._ctx, self._slots.pop(gone), what)
            for by in wanted:
                slots = [self._slot_of(identity, file_of) for identity, _ in by.acting]
                if by.parts:
                    scales = [scale for _, scale in by.parts]
                    self._mixed.append(self._native.combine(self._ctx, slots, scales))
                    found[by] = self._mixed[-1], 1.0
                elif slots:
                    found[by] = slots[0], by.scale
        return found

    def _slot_of(self, identity: str, file_of: Callable[[str], AdapterFile | VectorFile]) -> int:
        if identity not in self._slots:
            file = file_of(identity)
            if isinstance(file, VectorFile):
                slot = self._native.vector_add(self._ctx, file.parts, file.n_embd, str(file.path))
            else:
                self._native.bank_reserve(self._ctx, len(self._slots) + 1, 1)
                slot = self._native.adapter_add(self._ctx, file.weights_alone, str(file.path))
            self._slots[identity] = slot
        return self._slots[identity]

    def _batches(self, texts: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
        """Which texts share a batch, in order."""
        begin = n = 0
        for i, text in enumerate(texts):
            if i > begin and (n + len(text) > self.n_tokens or i - begin == self._n_seqs):
                yield begin, i
                begin, n = i, 0
            n += len(text)
        if begin < len(texts):
            yield begin, len(texts)

    def _compute(
        self,
        texts: Sequence[Sequence[int]],
        uses: Sequence[Sequence[tuple[int, int, float]]],
        cancel: CancelToken | None,
    ) -> list[Vectors]:
        ctx, llama, batch = self._ctx, self._llama, self._batch
        batch.n = 0
        for seq, text in enumerate(texts):
            batch.add(text, 0, seq)
        batch.logits[: batch.n] = 1  # llama.cpp pools outputs
        wake = self._interrupt
        if cancel is not None:
            cancel._watch(wake)
        try:
            with self._context.logged(), self._context.on_devices():
                for seq, stages in enumerate(uses):
                    for first, slot, scale in stages:
                        self._native.activate(ctx, seq, first, slot, scale)
                n_threads = self._context.n_threads_now
                llama.llama_set_n_threads(ctx, n_threads, n_threads)
                status = llama.llama_decode(ctx, batch.struct())
                if status and cancel is not None:
                    cancel.check()
                if status:
                    raise DecodeError(
                        f"{self._context.path}: texts could not be embedded (status {status})"
                        f"{self._native.log.tail()}"
                    )
                return self._vectors(texts)
        finally:
            if cancel is not None:
                cancel._unwatch(wake)
            self._native.interrupt(ctx, False)
            for seq, _ in enumerate(uses):
                self._native.deactivate(ctx, seq)
            llama.llama_memory_clear(llama.llama_get_memory(ctx), True)

    def _interrupt(self) -> None:
        self._native.interrupt(self._ctx, True)

    def _vectors(self, texts: Sequence[Sequence[int]]) -> list[Vectors]:
        llama, ctx = self._llama, self._ctx
        if self.pooling == POOLING["none"]:
            rows = [llama.llama_get_embeddings_ith(ctx, i) for i in range(len(texts[0]))]
        else:
            rows = [llama.llama_get_embeddings_seq(ctx, seq) for seq in range(len(texts))]
        if not all(rows):
            raise DecodeError(f"{self._context.path}: llama.cpp gave no vector for a text")
        found = np.stack([np.ctypeslib.as_array(row, (self._width,)) for row in rows]).copy()
        if not np.isfinite(found).all():
            raise NotFiniteError(
                f"{self._context.path}: the model computed vectors that are not finite; its "
                "weights or an adapter's scale are unusable"
            )
        return [found] if self.pooling == POOLING["none"] else list(found)


def normalized(vector: Vectors) -> Vectors:
    """Of length 1, the rows of a matrix each; zeros stay zeros."""
    length = np.linalg.norm(vector.astype(np.float64), axis=-1, keepdims=True)
    return (vector / np.where(length == 0, 1.0, length)).astype(np.float32)
