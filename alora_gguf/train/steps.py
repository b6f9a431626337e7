"""One step: the loss of a batch of replies, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from .attention import attend
from .prefixes import Prefixes, Tokens, padded

WEIGHT_OF_FORCED: Final = 0.1
"""How much a reply's first tokens count that its contract leaves no choice about: at run time
nothing is sampled there, but the adapter learns where it is.
"""


@dataclass(frozen=True)
class Row:
    """An example in tokens.

    prefix   before the adapter acts
    asked    the adapter acts on, and is not trained to write: the invocation, and what comes after
             it in the prompt
    reply    what it is trained to write
    n_forced of the reply's first tokens that are no choice
    """

    prefix: Tokens
    asked: Tokens
    reply: Tokens
    n_forced: int = 0

    @property
    def weights(self) -> list[float]:
        """How much each token of the reply counts."""
        return [WEIGHT_OF_FORCED if i < self.n_forced else 1.0 for i in range(len(self.reply))]


@dataclass(frozen=True)
class Losses:
    """Of a batch: the weighted sum of all tokens' cross-entropies, the weights' sum, and for each
    row whether every token of its reply is the likeliest one.
    """

    total: Tensor
    weight: float
    right: tuple[bool, ...]


def losses(model: Any, prefixes: Prefixes | None, rows: Sequence[Row]) -> Losses:
    """Of replies, given what comes before them. Without `prefixes` everything is computed, as PEFT
    does it: for a plain LoRA, which acts on all of it.
    """
    if prefixes is None:
        return _whole(model, rows)
    before = prefixes.of([row.prefix for row in rows])
    ids, mask = padded([(*row.asked, *row.reply) for row in rows])
    keep = min(len(row.asked) for row in rows) - 1
    logits = before.go_on(model, ids, mask, keep)[:, :-1]
    return _compared(logits, ids[:, keep + 1 :], rows, [len(row.asked) - 1 - keep for row in rows])


def _whole(model: Any, rows: Sequence[Row]) -> Losses:
    attend(model)
    asked = [len(row.prefix) + len(row.asked) for row in rows]
    ids, mask = padded([(*row.prefix, *row.asked, *row.reply) for row in rows])
    keep = min(asked) - 1
    logits = model(
        input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=ids.shape[1] - keep
    ).logits[:, :-1]
    return _compared(logits, ids[:, keep + 1 :], rows, [n - 1 - keep for n in asked])


def _compared(logits: Tensor, wanted: Tensor, rows: Sequence[Row], starts: Sequence[int]) -> Losses:
    """Logits [n, t, n_vocab] for tokens [n, t], of which each row's reply begins at its start."""
    weight = torch.zeros(wanted.shape)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        weight[i, start : start + len(row.reply)] = torch.tensor(row.weights)
    there = weight > 0
    chosen = logits[there].float()
    each = torch.nn.functional.cross_entropy(chosen, wanted[there], reduction="none")
    wrong = torch.zeros(wanted.shape, dtype=torch.bool)
    wrong[there] = chosen.argmax(-1) != wanted[there]
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        wrong[i, start : start + row.n_forced] = False
    right = (~wrong.any(1)).tolist()
    return Losses((each * weight[there]).sum(), float(weight.sum()), tuple(right))
