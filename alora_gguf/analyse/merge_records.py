"""What merge() returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alora_gguf.gguf.inspection import plain


@dataclass(frozen=True)
class MergeCost:
    """How far a merged model is from the base with the adapter, on `n_tokens` tokens of texts.

    KL divergences are in nats, of what the base with the adapter says from what the merged model
    does; `kl_adapter` is that from the base alone, what the adapter does. `top_changed` is the part
    of tokens after which another is the likeliest. `largest` is the largest difference between
    logits, relative to the largest logit.
    """

    n_tokens: int
    kl: float
    kl_largest: float
    kl_adapter: float
    top_changed: float
    largest: float


@dataclass(frozen=True)
class Merging:
    """What merge() wrote: how many tensors of each type were changed, and what that cost."""

    path: Path
    nbytes: int
    types: dict[str, int]
    cost: MergeCost | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        shown: dict[str, Any] = plain(self)
        return shown
