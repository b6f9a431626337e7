"""Attention of new tokens over a prefix whose keys and values are known already.

transformers' caches join old and new keys in a copy for every layer and repeat them for every query
head; a training step would spend its time on that, and keep the copies for the way back. Here what
is known stays where it is, once for the heads that share it, and no gradient goes into it.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import eager_mask

NAME: Final = "alora_gguf"
_prefix: Final = ContextVar[Any]("prefix")  # transformers hands an attention function no cache


class PrefixLayer(CacheLayerMixin):  # type: ignore[no-untyped-call] # transformers has no types
    """A layer's keys and values of the prefixes, [n, heads, length, width]; `new` gets those of the
    tokens after them.
    """

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.new: tuple[Tensor, Tensor] | None = None
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: a prefix is there from the start, if only of no tokens."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Notes what is new and hands it on alone."""
        self.new = (key_states, value_states)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys a mask is for, and where they begin."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """The prefixes' length, padding included."""
        return int(self.keys.shape[-2])

    def get_max_length(self) -> int:
        """There is none."""
        return -1


@dataclass(frozen=True)
class Prefix:
    """Prefixes of several rows, padded on the left to one length, so that distances are what they
    are in each row alone: sliding windows go by them.

    layers   by their number in the model
    lengths  of the rows' prefixes, in tokens: [n]
    """

    layers: tuple[PrefixLayer, ...]
    lengths: Tensor

    @property
    def length(self) -> int:
        """Of all of them, padding included."""
        return self.layers[0].get_seq_length()

    def go_on(self, model: Any, ids: Tensor, mask: Tensor, keep: int = 0) -> Tensor:
        """Logits [n, s - keep, n_vocab] of the tokens `ids` [n, s] after the prefixes, from the one
        at `keep` on (s: none); `mask` [n, s] is 0 for padding, on the right. Gradients end at the
        prefixes.
        """
        attend(model, NAME)
        before = torch.arange(self.length) >= self.length - self.lengths[:, None]
        token = _prefix.set(self)
        try:
            return model(  # type: ignore[no-any-return]
                input_ids=ids,
                attention_mask=torch.cat([before.to(mask.dtype), mask], 1),
                position_ids=self.lengths[:, None] + torch.arange(ids.shape[1]),
                past_key_values=Cache(layers=list(self.layers)),
                use_cache=True,
                logits_to_keep=torch.arange(keep, ids.shape[1]),  # as a number, 0 would be all
            ).logits
        finally:
            _prefix.reset(token)


def attend(model: Any, implementation: str | None = None) -> None:
    """Has a transformers model compute attention by an `implementation`, ours (NAME) for suffixes;
    None: transformers' own, for whole conversations.
    """
    config = model.config.get_text_config()
    if implementation is None:  # scaled_dot_product_attention() caps no scores
        capped = getattr(config, "attn_logit_softcapping", None) is not None
        implementation = "eager" if capped else "sdpa"
    if config._attn_implementation != implementation:
        if implementation == NAME:
            AttentionInterface.register(NAME, _attention)
            AttentionMaskInterface.register(NAME, eager_mask)
        model.set_attn_implementation(implementation)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """As transformers wants it: query [n, heads, s, width] and the new keys and values to
    [n, s, heads, width]; the mask is added to scores and covers the prefix.
    """
    known: PrefixLayer = _prefix.get().layers[module.layer_idx]
    n, heads, s, width = query.shape
    shared = key.shape[1]  # heads of keys and values, each for as many neighbours
    rows = query.reshape(n, shared, heads // shared * s, width)
    rows = rows * (width**-0.5 if scaling is None else scaling)
    scores = torch.cat([rows @ known.keys.mT, rows @ key.mT], -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores.view(n, heads, s, -1) + attention_mask
    weights = (
        scores.softmax(-1, torch.float32).to(query.dtype).view(n, shared, -1, scores.shape[-1])
    )
    before, after = weights.tensor_split([known.get_seq_length()], -1)
    found = before @ known.values + after @ value
    return found.view(n, heads, s, -1).transpose(1, 2), None
