"""Looks at the front of the cells that llama.cpp saved, before llama.cpp is given them again.

llama.cpp itself refuses another layer count, key or value type, row size, stream count or value
transposition, and bytes that end early. It trusts counts and positions; of a recurrent memory, a
count other than 1 aborts the process. Layout (llama_kv_cache::state_write in
src/llama-kv-cache.cpp, llama_memory_recurrent::state_write, llama_context::state_seq_get_data):

    magic u32 | sequence i32, then for attention, and for the attention part of a hybrid, first:
    streams u32 = 1 | cells u32 | cells x (position i32 | 1 u32 | [x, y, token i32] | sequence i32)
        | values transposed u32 | layers u32 | keys and values by layer
    and for a recurrent memory:
    cells u32 = 1 | position i32 | 0 u32 | 0 u32 | layers u32 | states by layer

x, y, token are there for models with M-RoPE or with n-gram embeddings.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

_MAGIC: Final = 0xAF143CD8
_PLAIN, _EXTENDED = 3, 6  # words of 4 bytes per cell
# its cache begins with a header of its own, which it checks itself
UNCHECKED: Final = frozenset({"deepseek4"})


class CellsError(Exception):
    """The cells are not those of the tokens; the message says why. Internal to saved.py."""


@dataclass(frozen=True, slots=True)
class Cells:
    """What the front says: how many cells there are, and how values lie (None: there are none)."""

    count: int
    transposed: bool | None


def read_cells(state: bytes, n: int, *, recurrent: bool, window: int) -> Cells:
    """Checks that `state` begins as the cells of positions 0 to n-1 do; n is at least 1.

    With a sliding `window` of attention, llama.cpp may have left out what lies before it. Raises
    CellsError.
    """
    magic, _, first, second = _words(state, 0, 4)
    if magic != _MAGIC:
        raise CellsError(f"they begin with {magic:#x}, expected {_MAGIC:#x}")
    if recurrent:
        if (first, second) != (1, n - 1):
            raise CellsError(
                f"{first} recurrent states, of position {second}; expected 1, of {n - 1}"
            )
        return Cells(1, None)
    if first != 1:
        raise CellsError(f"they are of {first} streams, expected 1")
    if not (second == n or (window and 0 < second < n)):
        raise CellsError(f"they are {second}, expected {n}")
    for width in (_PLAIN, _EXTENDED):
        transposed = _transposed(state, second, n, width)
        if transposed is not None:
            return Cells(second, transposed)
    raise CellsError(f"their positions are not those before {n}, each once")


def _transposed(state: bytes, count: int, n: int, width: int) -> bool | None:
    """The flag after `count` entries of `width` words; None if these are not the entries."""
    end = 16 + 4 * width * count
    if len(state) < end + 8:
        return None
    table = np.frombuffer(state, "<i4", width * count, 16).reshape(count, width)
    flag, layers = _words(state, end, 2)
    if flag > 1 or layers == 0 or np.any(table[:, 1] != 1):
        return None
    if not np.array_equal(np.sort(table[:, 0]), np.arange(n - count, n)):
        return None
    return bool(flag)


def _words(state: bytes, offset: int, n: int) -> Iterator[int]:
    try:
        return iter(struct.unpack_from(f"<{n}I", state, offset))
    except struct.error:
        raise CellsError(f"they are {len(state)} bytes, too few for a single cell") from None
