"""Texts as vectors, on a model's weights."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from alora_gguf.engine.activation import ActiveAdapter
from alora_gguf.engine.embedding import POOLING, UNSPECIFIED, Embedder, Pooling, Vectors, normalized
from alora_gguf.engine.loading import Tuning, context_params
from alora_gguf.engine.runtime import Runtime
from alora_gguf.errors import AdapterFormatError, InputError
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.vector import VectorFile
from alora_gguf.options import CancelToken


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of texts, in order: float32 [n_texts, n_embd], and how many tokens each text has."""

    vectors: Vectors = field(repr=False)
    n_tokens: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.n_tokens)

    def __iter__(self) -> Iterator[Vectors]:
        return iter(self.vectors)


class TextEmbedder:
    """What Model.embed() does, on a context that is made at the first call."""

    def __init__(self, runtime: Runtime, tuning: Tuning | None) -> None:
        self._runtime, self._tuning = runtime, tuning or Tuning()
        self._lock = threading.Lock()
        self._made: dict[str | None, Embedder] = {}  # one, by how it pools

    def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        use: ActiveAdapter,
        pooling: Pooling | None,
        *,
        normalize: bool,
        truncate: bool,
        cancel: CancelToken | None,
    ) -> Embeddings:
        """Model.embed()'s work."""
        with self._lock:
            embedder = self._embedder(pooling)
            n = embedder.n_tokens
            read = [self._tokens(text, i, n, truncate=truncate) for i, text in enumerate(texts)]
            found = embedder.embed(read, self._uses(embedder, use, read), cancel)
        width = self._runtime.engine.llama.llama_model_n_embd(self._runtime.engine.context.model)
        rows = np.stack(found) if found else np.empty((0, width), np.float32)
        return Embeddings(normalized(rows) if normalize else rows, tuple(map(len, read)))

    def _embedder(self, pooling: Pooling | None) -> Embedder:
        if pooling not in self._made:
            for other in self._made.values():  # each has buffers of its own
                other.free()
            self._made.clear()
            made = self._make(UNSPECIFIED if pooling is None else POOLING[pooling])
            if made.pooling == POOLING["none"]:  # the file does not say
                made.free()
                made = self._make(POOLING["mean"])
            self._made[pooling] = made
        return self._made[pooling]

    def _make(self, pooling: int) -> Embedder:
        engine = self._runtime.engine
        _ = engine.ctx  # raises ClosedError
        context = engine.context
        params = context_params(engine.llama, context.model, engine.options, self._tuning)
        params.n_threads = params.n_threads_batch = engine.n_threads
        params.pooling_type = pooling
        return Embedder(context, params, engine.n_batch)

    def _tokens(self, text: str | Sequence[int], i: int, most: int, *, truncate: bool) -> list[int]:
        vocab, what = self._runtime.vocab, f"texts[{i}]"
        if isinstance(text, str):
            vocab.check_fits(text)
            tokens = vocab.tokenize(text, add_special=True, parse_special=False)
        elif not hasattr(text, "__len__") or isinstance(text, (bytes, Mapping)):
            raise InputError(f"{what} is {text!r:.60}, expected text or token ids")
        else:
            tokens = vocab.check(text, what)
        tokens = tokens[:most] if truncate else tokens
        if not tokens:
            raise InputError(f"{what} has no tokens, so there is nothing to embed")
        if len(tokens) > most:
            raise InputError(
                f"{what} has {len(tokens)} tokens, expected at most {most}; split it, pass "
                "truncate=True, or open the model with a larger n_batch"
            )
        return tokens

    def _uses(
        self, embedder: Embedder, use: ActiveAdapter, texts: Sequence[Sequence[int]]
    ) -> list[list[tuple[int, int, float]]]:
        """From which positions on each text is computed with which slots at which scales: no reply
        follows it, so what begins at one begins at its first token.
        """
        vocab, names = self._runtime.vocab, self._runtime.names()
        all_stages = [use.over(each, vocab, reply=0).stages for each in texts]
        wanted = {stage.provenance for stages in all_stages for _, stage in stages}
        slots = embedder.slots_for(wanted, self._file_of, names)
        return [[(at, *slots[stage.provenance]) for at, stage in stages] for stages in all_stages]

    def _file_of(self, identity: str) -> AdapterFile | VectorFile:
        """What computes as an identity says, read anew: the bank keeps no weights."""
        loaded = self._runtime.bank.find(self._runtime.names()[identity])
        if isinstance(loaded, VectorFile):
            return loaded
        file = AdapterFile.read(str(loaded.path))
        if file.identity != identity:
            raise AdapterFormatError(
                f"{loaded.path}: was changed since it was loaded; unload it and load it again"
            )
        return file
