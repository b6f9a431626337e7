"""One step: the loss of a batch of replies, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from .attention import attend
from .prefixes import Prefixes, SharedPrefixes, Tokens, padded

WEIGHT_OF_FORCED: Final = 0.1
"""How much a reply's first tokens count that its contract leaves no choice about: at run time
nothing is sampled there, but the adapter learns where it is.
"""


@dataclass(frozen=True)
class Row:
    """An example in tokens.

    prefix   before the adapter acts; of a plain LoRA, which acts on everything, all but the
             prompt's last token
    asked    the adapter acts on, and is not trained to write: the invocation, and what comes after
             it in the prompt; at least one token
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


Prefixed = Prefixes | SharedPrefixes


def losses(model: Any, prefixes: Prefixed | None, rows: Sequence[Row]) -> Losses:
    """Of replies, given what comes before them. Without `prefixes` everything is computed for each
    row, as PEFT does it: for models whose layers keep more than keys and values.
    """
    if prefixes is None:
        attend(model)
        ids, mask = padded([(*row.prefix, *row.asked, *row.reply) for row in rows])
        asked = [len(row.prefix) + len(row.asked) for row in rows]
        keep = min(asked) - 1
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            use_cache=False,
            logits_to_keep=ids.shape[1] - keep,
        ).logits
    else:
        before, known = prefixes.before([row.prefix for row in rows])
        left = [(*row.prefix[n:], *row.asked) for row, n in zip(rows, known, strict=True)]
        ids, mask = padded([(*a, *row.reply) for a, row in zip(left, rows, strict=True)])
        asked = list(map(len, left))
        keep = min(asked) - 1
        logits = before.go_on(model, ids, mask, keep)
    return _compared(logits[:, :-1], ids[:, keep + 1 :], rows, [n - 1 - keep for n in asked])


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
