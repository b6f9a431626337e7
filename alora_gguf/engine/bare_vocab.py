"""A base's vocabulary without its weights."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from . import native as _native
from .llama_context import Tuning, load_weights
from .vocab import Vocabulary


class BareVocabulary:
    """Its `vocab` is usable until close(); `rewinds` says whether the model's memory can be cut at
    any token.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Raises ModelError for a file that llama.cpp cannot load."""
        native = _native.load()
        with native.log.capture():
            model = load_weights(native, path, 0, tuning=Tuning(model={"vocab_only": True}))
        self._finalizer = weakref.finalize(self, _free, native.llama, model)
        llama = native.llama
        self.vocab = Vocabulary(llama, model, name)
        self.rewinds = not (
            llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)
        )

    def close(self) -> None:
        """Frees it; idempotent."""
        self.vocab.close()
        self._finalizer()


def _free(llama: Any, model: int) -> None:
    llama.llama_model_free(model)
