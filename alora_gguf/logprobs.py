"""Log-probabilities of sampled tokens, as they are reported to callers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token that could have been chosen, and the natural logarithm of its probability."""

    token: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was chosen.

    `text` is what it adds to the reply's text: the texts of all tokens, one after the other, are
    the reply, letter by letter (a character split over several tokens belongs to the last of them).
    `logprob` is the natural logarithm of its probability, and `top` holds the likeliest tokens in
    descending order, the chosen one among them if it is one of these; both after the mask of a
    grammar or schema, before temperature and the like.
    """

    token: int
    text: str
    logprob: float
    top: tuple[TopLogprob, ...] = ()
