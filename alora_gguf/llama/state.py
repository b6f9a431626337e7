"""A Llama's state in memory: what was read, who computed it, and the cells that hold it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from alora_gguf.engine.batch import Logits
from alora_gguf.errors import SavedSessionError
from alora_gguf.model import Model
from alora_gguf.saved.session_file import SavedSession, check_saved

from .options import TokenIds


@dataclass(frozen=True)
class LlamaState:
    """What Llama.save_state() gives and load_state() takes; for this process or, pickled by those
    who trust the file, another one.

    saved     the tokens that were read, their cells, and the base and adapters that computed them
    seed      the next sampler's
    settings  what else the cells' content depends on, such as RoPE scaling
    rows      float32 [n_tokens, n_vocab] logits, if the model keeps them (logits_all)
    """

    saved: SavedSession
    seed: int
    settings: str
    rows: Logits | None = field(default=None, repr=False)

    @property
    def n_tokens(self) -> int:
        """How many tokens were read."""
        return len(self.saved.tokens)

    @property
    def input_ids(self) -> TokenIds:
        """The tokens as an array."""
        return np.array(self.saved.tokens, np.intc)

    @property
    def llama_state_size(self) -> int:
        """Bytes it takes; llama_cpp's caches look at it."""
        return len(self.saved.state) + (0 if self.rows is None else self.rows.nbytes)

    def check(self, model: Model, settings: str) -> None:
        """Raises SavedSessionError unless its cells mean the same to `model`, opened with
        `settings`: the same base, and all adapters that computed any of them.
        """
        check_saved(
            self.saved,
            base=model._runtime.fingerprint,
            cache=model._runtime.layout,
            adapters_loaded={name: file.identity for name, file in model.adapters.items()},
            n_vocab=model.n_vocab,
        )
        if self.settings != settings:
            raise SavedSessionError(
                f"the state was saved with other settings of the context: {self.settings}, but "
                f"this model has {settings}"
            )
