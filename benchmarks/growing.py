"""Long cached conversations without the minutes of reading them: a short one's cells, repeated.

What attention takes depends on how many cells there are and who sees them, not on what is in them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .runtime import Context

N_READ = 64  # tokens of the short conversation


def conversation(context: Context, tokens: Sequence[int], n: int) -> bytes:
    """A saved sequence of `n` cells, for any context of the same base. Clears the context."""
    context.clear()
    context.prefill(tokens[:N_READ])
    state = context.save()
    context.clear()
    return grown(state, n)


def grown(state: bytes, n: int) -> bytes:
    """A saved sequence of N_READ cells as one of `n` cells, its rows repeated.

    Raises RuntimeError for states in another form than llama_kv_cache::state_write() has now.
    """
    known = struct.pack("<II", 1, N_READ) + _positions(N_READ)
    head, state = state[:8], state[8:]  # a magic number and the sequence
    if not state.startswith(known):
        raise RuntimeError("upstream saves sequences in another form than this benchmark knows")
    at = len(known)
    v_trans, n_layer = struct.unpack_from("<II", state, at)
    if v_trans:
        raise RuntimeError("the cache is not laid out for flash attention")
    parts = [head, struct.pack("<II", 1, n), _positions(n), state[at : at + 8]]
    at += 8
    for _ in range(2 * n_layer):
        _, row = struct.unpack_from("<iQ", state, at)
        head, rows = state[at : at + 12], state[at + 12 : at + 12 + N_READ * row]
        parts += [head, (rows * (n // N_READ + 1))[: n * row]]
        at += len(head) + len(rows)
    return b"".join(parts)


def _positions(n: int) -> bytes:
    return b"".join(struct.pack("<iIi", i, 1, 0) for i in range(n))
