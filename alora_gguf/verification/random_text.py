"""Texts that mean nothing, for what is measured: speed, and what an adapter changes."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import Final

import numpy as np

from alora_gguf.errors import ModelError
from alora_gguf.model import Model

_KINDS: Final = 512  # different tokens that a text is made of


def random_text(model: Model, n: int, *, without: Collection[int], seed: int) -> list[int]:
    """`n` random tokens that read as text, as far as the model says how they read, and begin as its
    texts do; none of them is in `without`, nor ends a reply. Raises ModelError if there are none.
    """
    vocab, rng = model._runtime.engine.vocab, np.random.default_rng(seed)
    avoided = frozenset(without)
    kinds = [token for token in rng.permutation(model.n_vocab).tolist() if token not in avoided]
    if vocab.has_text:
        readable = (t for t in kinds if vocab.piece(t) and not vocab.is_end(t))
        kinds = list(islice(readable, _KINDS)) or kinds
    if not kinds:
        raise ModelError(f"{model.path}: has no tokens besides those of the invocation")
    kinds = kinds[:_KINDS]
    drawn: list[int] = [kinds[i] for i in rng.integers(0, len(kinds), n).tolist()]
    bos = vocab.bos_to_add()
    return drawn if bos is None else [bos, *drawn[1:]]
