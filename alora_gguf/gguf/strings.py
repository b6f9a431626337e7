"""Moves past arrays of GGUF strings (length u64, bytes) without making Python strings of them.

A vocabulary and its merges are some 400,000 strings, and finding their end is most of what reading
a header costs. Where numpy is loaded anyway, whole stretches are passed at once.
"""

from __future__ import annotations

import struct
import sys
from typing import Final

_STRETCH: Final = 1 << 20  # bytes looked at in one go
_STEPS: Final = 4096  # strings passed one by one after a stretch that numpy could not end


def skip_strings(data: memoryview, pos: int, count: int) -> int:
    """The position after `count` strings that begin at `pos`.

    It lies beyond the end of `data` if the strings do.
    """
    while count > _STEPS and "numpy" in sys.modules:
        pos, passed = _leap(data, pos, count)
        count -= passed
        steps = min(count, _STEPS) if passed < _STEPS else 0
        pos = _walk(data, pos, steps)
        count -= steps
    return _walk(data, pos, count)


def _walk(data: memoryview, pos: int, count: int) -> int:
    """One string after the other."""
    length = struct.Struct("<Q").unpack_from
    try:
        for _ in range(count):
            (n,) = length(data, pos)
            pos += 8 + n
    except (struct.error, OverflowError):  # the next length lies past the end
        return max(pos, len(data)) + 8
    return pos


def _leap(data: memoryview, pos: int, count: int) -> tuple[int, int]:
    """Passes the strings of a stretch; returns the new position and how many they were.

    Lengths from 1 to 255 stand out: a byte before seven zeros. Wherever one of these is as far from
    the next as it says, both are lengths; the first that is not ends the leap.
    """
    import numpy as np

    size = min(_STRETCH, len(data) - pos) // 8 * 8 - 8
    if size <= 0:
        return pos, 0
    stretch = np.frombuffer(data, np.uint8, size + 8, pos)
    small = np.empty(size, np.bool_)
    for shift in range(8):
        small[shift::8] = stretch[shift : shift + size].view("<u8") - 1 < 255  # 0 wraps around
    starts = np.flatnonzero(small)
    if not len(starts) or starts[0]:
        return pos, 0
    right = np.diff(starts) == stretch[starts[:-1]].astype(np.int64) + 8
    passed = int(right.argmin()) if not right.all() else len(right)
    passed = min(passed, count)
    return pos + int(starts[passed]), passed
