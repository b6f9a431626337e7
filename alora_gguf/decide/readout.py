"""From log-probabilities of tokens to a probability for every option: summed over all ways in which
tokens spell a label, averaged over the orders that were asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from alora_gguf.options import ABOUT, TopLogprob

from .prompts import Prompt

FLOOR: Final = math.log(1e-9)
"""Log-probability of a label below which it does not matter how small it is; beyond 20 alternatives
the likelier ones alone are known.
"""
NEGLIGIBLE: Final = 1e-3
"""The share of probability below which what tokens leave open is not read, and counts for none."""
MAX_SPELLINGS: Final = 1000
"""The most tokens that are looked at: 255 labels, after a blank or not, whole or begun."""

Tokens = tuple[int, ...]


def schema(labels: Sequence[str]) -> dict[str, object]:
    """What an answer may be: a label, with a blank before it or not."""
    spelled = [spelling for label in labels for spelling in (label, f" {label}")]
    return {"enum": spelled, ABOUT: {"form": "text"}}


def weigh(
    prompt: Prompt, known: Mapping[Tokens, Sequence[TopLogprob]]
) -> tuple[list[float], list[Tokens]]:
    """Log-probabilities of the labels, in the order shown, by what is `known` to come after ways to
    begin, in tokens; and those that can begin several labels and are not known, the likeliest
    first.
    """
    found = [-math.inf] * len(prompt.labels)
    unread: dict[Tokens, float] = {}
    todo: list[tuple[Tokens, str, float, Sequence[TopLogprob]]] = [((), "", 0.0, known[()])]
    while todo:
        path, said, logprob, choices = todo.pop()
        for top in choices:
            text, total = (said + top.text).lstrip(), logprob + top.logprob
            fits = [i for i, label in enumerate(prompt.labels) if label.startswith(text)]
            if not fits or not top.text:
                continue
            after = (*path, top.token)
            if len(fits) == 1:
                found[fits[0]] = _plus(found[fits[0]], total)
            elif after in known:
                todo.append((after, said + top.text, total, known[after]))
            elif total > math.log(NEGLIGIBLE):
                unread[after] = total
    return found, sorted(unread, key=lambda path: -unread[path])


def _plus(a: float, b: float) -> float:
    """The logarithm of the sum of two probabilities."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def softmax(logits: Sequence[float]) -> list[float]:
    """Probabilities of logits; they sum to 1."""
    most = max(logits)
    weights = [math.exp(each - most) for each in logits]
    total = math.fsum(weights)
    return [each / total for each in weights]


def averaged(
    orders: Iterable[tuple[Prompt, Sequence[float]]], n: int, temperature: float
) -> list[float]:
    """The options' probabilities, in the question's own order: of the mean of the log-probabilities
    in all orders, divided by the temperature. Where a logit is what the option says plus what its
    place adds, all rotations together cancel the place.
    """
    totals, n_orders = [0.0] * n, 0
    for prompt, found in orders:
        n_orders += 1
        for index, logprob in zip(prompt.indices, found, strict=True):
            totals[index] += max(logprob, FLOOR)
    return softmax([total / n_orders / temperature for total in totals])
