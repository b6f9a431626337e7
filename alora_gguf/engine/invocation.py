"""Where in a prompt an adapter begins: at the first token of its invocation's last occurrence.

PEFT is the reference for this rule; the first token is adapted itself.
"""

from __future__ import annotations

from collections.abc import Sequence


def find_last(tokens: Sequence[int], invocation: Sequence[int]) -> int | None:
    """The position of the last occurrence of `invocation` in `tokens`, or None."""
    n, wanted = len(invocation), list(invocation)
    for at in range(len(tokens) - n, -1, -1):
        if tokens[at] == wanted[0] and list(tokens[at : at + n]) == wanted:
            return at
    return None


def nearest_miss(tokens: Sequence[int], invocation: Sequence[int]) -> tuple[int, int]:
    """(position, length) of the longest beginning of `invocation` in `tokens`, the last such one;
    length 0 if not even its first token occurs.
    """
    best_at, best = 0, 0
    for at, token in enumerate(tokens):
        if token != invocation[0]:
            continue
        n = 0
        while n < len(invocation) and at + n < len(tokens) and tokens[at + n] == invocation[n]:
            n += 1
        if n >= best:
            best_at, best = at, n
    return best_at, best
