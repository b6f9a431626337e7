"""Log-probabilities of tokens, reduced from rows of logits as soon as there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alora_gguf.engine.batch import Logits


@dataclass(frozen=True, slots=True)
class Scored:
    """A token, the natural logarithm of its probability, and the likeliest (token, logarithm) pairs
    in descending order.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def log_softmax(logits: NDArray[np.float32] | Sequence[float], axis: int = -1) -> Logits:
    """Natural logarithms of the probabilities that logits stand for, along `axis`; float32."""
    values = np.asarray(logits, np.float32)
    most = np.amax(values, axis=axis, keepdims=True)
    shifted = values - np.where(np.isfinite(most), most, np.float32(0))
    with np.errstate(divide="ignore"):
        total: Logits = np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
    result: Logits = shifted - total
    return result


def score(row: Logits, token: int, n_top: int) -> Scored:
    """`token` as the row of logits [n_vocab] before it has it. Of equals, the higher ids come first
    among the top, as in llama-cpp-python.
    """
    logprobs = log_softmax(row)
    n_top = min(n_top, len(logprobs))
    top: tuple[tuple[int, float], ...] = ()
    if n_top > 0:
        least = np.partition(logprobs, -n_top)[-n_top]
        (found,) = np.nonzero(logprobs >= least)
        order = np.lexsort((found, logprobs[found]))[::-1][:n_top]
        top = tuple((int(i), float(logprobs[i])) for i in found[order])
    return Scored(token, float(logprobs[token]), top)
