"""What conversations come to in tokens, before a model is opened: a base's vocabulary and chat
template, without its weights.
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from alora_gguf.engine import native as _native
from alora_gguf.engine.llama_context import Tuning, load_weights
from alora_gguf.engine.vocab import Vocabulary
from alora_gguf.errors import ModelError
from alora_gguf.gguf.base import BaseFile
from alora_gguf.gguf.header import read_header

from .template import ChatTemplate


class Tokenizer:
    """A base's vocabulary, also a context manager. Not part of the public API.

    base      its file
    vocab     usable until close()
    template  the chat template
    n_trained the context length that the file says it was trained for; None if it does not say
    rewinds   whether the model's memory can be cut at any token
    """

    def __init__(self, path: str | os.PathLike[str], template: str | None = None) -> None:
        """`template` is Jinja text to use instead of the base's own. Raises ModelError if the file
        is no base, or there is no template that can be parsed.
        """
        native = _native.load()
        self.base = BaseFile.read(path)
        self.n_trained = _context_length(self.base)
        native.log.clear()
        tuning = Tuning(model={"vocab_only": True})
        model = load_weights(native, self.base.path, 0, tuning=tuning)
        self._finalizer = weakref.finalize(self, _free, native.llama, model)
        llama = native.llama
        self.vocab = Vocabulary(llama, model, str(path))
        self.rewinds = not (
            llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model)
        )
        own = self.base.chat_template
        if template is None and own is None:
            self.close()
            raise ModelError(
                f"{path}: has no chat template, so it does not say how a conversation is written; "
                "give one, or use a base that was tuned to chat"
            )
        name = str(path) if template in (None, own) else "template"  # as Model names it
        self.template = ChatTemplate(template or own or "", self.vocab, name)

    def close(self) -> None:
        """Frees the vocabulary; a second call does nothing."""
        self.vocab.close()
        self._finalizer()

    def __enter__(self) -> Tokenizer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _context_length(base: BaseFile) -> int | None:
    found = read_header(Path(base.path)).metadata.get(f"{base.architecture}.context_length")
    whole = isinstance(found, int) and not isinstance(found, bool) and found > 0
    return found if whole and isinstance(found, int) else None


def _free(llama: Any, model: int) -> None:
    llama.llama_model_free(model)
