"""Where llama.cpp keeps a weight's rows, or columns, in another order than transformers does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Order:
    """The first `kept` values stay. The others are `runs` runs of `groups` groups, each of parts of
    these `sizes`; within its run, every group's first part comes before any group's second one.
    """

    groups: int
    sizes: tuple[int, ...]
    runs: int = 1
    kept: int = 0

    @property
    def n(self) -> int:
        """The values that are put into order."""
        return self.kept + self.runs * self.groups * sum(self.sizes)

    def index(self) -> NDArray[np.intp]:
        """[n]: which of transformers' values comes where llama.cpp has its first one, second one,
        and so on.
        """
        return _index(self)

    def inverse(self) -> NDArray[np.intp]:
        """[n]: the way back, which of llama.cpp's values comes where transformers has its first."""
        return np.argsort(self.index())


@lru_cache(maxsize=8)  # the same for all layers
def _index(order: Order) -> NDArray[np.intp]:
    moved = np.arange(order.kept, order.n).reshape(order.runs, order.groups, sum(order.sizes))
    parts = np.split(moved, np.cumsum(order.sizes)[:-1], axis=2)
    runs = np.concatenate([part.reshape(order.runs, -1) for part in parts], axis=1)
    return np.concatenate([np.arange(order.kept), runs.reshape(-1)])


def rotary_order(rows: int, heads: int) -> Order:
    """The rows of a query or key projection where the rotary embedding turns neighbours.

    Row i of the first half of a head goes to 2i, row i of the second half to 2i + 1, as `permute`
    in upstream's conversion/llama.py has it for the base. `heads` must share the rows evenly, and
    each have an even number of them.
    """
    return Order(2, (1,) * (rows // heads // 2), runs=heads)


@dataclass(frozen=True)
class DeltaHeads:
    """The heads of a gated delta net: how many keys and values it has, and how wide they are."""

    keys: int
    values: int
    key_width: int
    value_width: int

    @property
    def per_key(self) -> int:
        """The value heads that share a key head."""
        return self.values // self.keys

    def tiled(self, width: int, kept: int = 0) -> Order | None:
        """Value heads of `width` rows each, behind `kept` others, as Qwen3.5's graph wants them:
        transformers has the heads of one key together, llama.cpp the first ones of all keys.
        (`_reorder_v_heads` in upstream's conversion/qwen.py.) None if the two are the same.
        """
        return None if self.per_key == 1 else Order(self.keys, (width,) * self.per_key, kept=kept)

    def joined(self) -> Order:
        """The rows of Qwen3-Next's in_proj_qkvz, which transformers has by key head: queries, keys,
        values and gates, for each of them, become those of all heads.
        """
        values = self.per_key * self.value_width
        return Order(self.keys, (self.key_width, self.key_width, values, values))


def in_turns(rows: int) -> Order:
    """Gate and up projections whose rows take turns, as in gpt-oss, become one after the other."""
    return Order(rows // 2, (1, 1))


def by_head(rows: int, heads: int) -> Order:
    """Query, key and value of each head together, as in GPT-NeoX, become those of all heads."""
    return Order(heads, (rows // heads // 3,) * 3)
