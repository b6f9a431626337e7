"""A Llama's state in memory: what was read, who computed it, and the cells that hold it."""

from __future__ import annotations

from typing import Any

import numpy as np
from llama_cpp import LlamaState as StockState

from alora_gguf.engine.llama_context import Logits
from alora_gguf.engine.provenance import CachedTokens, Spans
from alora_gguf.engine.runtime import Runtime
from alora_gguf.errors import SavedSessionError
from alora_gguf.saved.session_file import SavedSession
from alora_gguf.saved.snapshot import check


class LlamaState(StockState):
    """What Llama.save_state() gives and load_state() takes; for this process or, pickled by those
    who trust the file, another one.

    saved     the tokens that were read, their cells, and the base and adapters that computed them
    seed      the next sampler's
    settings  what else the cells' content depends on, such as RoPE scaling
    scores    float32 [n_tokens, n_vocab] logits, if the model keeps them (logits_all)
    """

    def __init__(self, saved: SavedSession, seed: int, settings: str, scores: Logits) -> None:
        super().__init__(
            input_ids=np.array(saved.tokens, np.intc),
            scores=scores,
            n_tokens=len(saved.tokens),
            llama_state=saved.state,
            llama_state_size=len(saved.state) + scores.nbytes,
            seed=seed,
        )
        self.saved = saved
        self.settings = settings

    def check(self, runtime: Runtime, settings: str, *, logits_all: bool) -> None:
        """Raises SavedSessionError unless a model with such settings can go on from here."""
        check(runtime, self.saved)
        if self.settings != settings:
            raise SavedSessionError(
                f"the state was saved with other settings of the context: {self.settings}, but "
                f"this model has {settings}"
            )
        if logits_all and len(self.scores) < self.n_tokens:
            raise SavedSessionError("the state was saved without logits_all=True")

    def common_prefix(self, tokens: list[int], spans: Spans) -> int:
        """How many of `tokens`, computed as `spans` say, its cells hold."""
        cached = CachedTokens()
        cached.extend(self.saved.tokens[: self.saved.n_cached], self.saved.spans)
        return cached.common_prefix(tokens, spans)


def settings_of_cells(params: Any, kv_overrides: object) -> str:
    """What a cell's content depends on besides the base, the adapter and the layout; `params` are
    llama_context_params.
    """
    names = (
        "rope_scaling_type", "attention_type", "rope_freq_base", "rope_freq_scale",
        "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx",
    )  # fmt: skip
    return repr(
        [("kv_overrides", kv_overrides), *((name, getattr(params, name)) for name in names)]
    )
