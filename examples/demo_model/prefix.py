"""Prompts that are read once and continued, several times each: what a KV cache is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True)
class Prefix:
    """Cached prompts of different lengths; on the right, padding that `mask` [n, length] hides."""

    cache: DynamicCache
    mask: Tensor
    lengths: Tensor


def read(model: Any, prompts: Sequence[Sequence[int]]) -> Prefix:
    """Reads `prompts` (token ids) with `model`, as it is, adapters included."""
    ids, mask = pad(prompts)
    cache = DynamicCache()
    model.model(input_ids=ids, past_key_values=cache, use_cache=True)
    return Prefix(cache, mask, mask.sum(1))


def fork(prefix: Prefix, rows: Sequence[int], lengths: Sequence[int]) -> Prefix:
    """For each of `rows`, that prompt's first so many tokens. `prefix` is used up."""
    chosen, kept = torch.tensor(rows), torch.tensor(lengths)
    prefix.cache.batch_select_indices(chosen)
    mask = (torch.arange(prefix.mask.shape[1]) < kept[:, None]).to(prefix.mask.dtype)
    return Prefix(prefix.cache, mask, kept)


def go_on(model: Any, prefix: Prefix, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits [n, s, vocabulary] of `ids` [n, s] after the prompts; the cache grows by s."""
    positions = prefix.lengths[:, None] + torch.arange(ids.shape[1])
    cached = prefix.cache.get_seq_length() - prefix.mask.shape[1]
    if cached:  # a continuation of a continuation
        positions = positions + cached
    seen = torch.ones(ids.shape[0], cached, dtype=mask.dtype)
    return model(  # type: ignore[no-any-return]
        input_ids=ids,
        attention_mask=torch.cat([prefix.mask, seen, mask], 1),
        position_ids=positions,
        past_key_values=prefix.cache,
        use_cache=True,
    ).logits


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids [n, longest] with zeros on the right, and the mask of what is not padding."""
    length = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask
