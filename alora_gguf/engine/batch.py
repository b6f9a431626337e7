"""Runs of tokens, and the llama_batch that carries pieces of them to llama_decode."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
"""One row of logits, [n_vocab]; or several, [n, n_vocab]."""


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens to append to a sequence, and which of them to give logits for: of the last one as a
    row, of all or of the last so many (at least 1) as a matrix.
    """

    seq: int
    tokens: Sequence[int]
    outputs: Literal["none", "last", "all"] | int = "last"

    @property
    def first_output(self) -> int:
        """The index of the first token that logits are given for."""
        n = len(self.tokens)
        if isinstance(self.outputs, int):
            return max(0, n - self.outputs)
        return {"none": n, "last": n - 1, "all": 0}[self.outputs]

    def rows(self, n_vocab: int) -> Logits | None:
        """Where its logits will lie."""
        if self.outputs == "none":
            return None
        if self.outputs == "last":
            return np.empty(n_vocab, np.float32)
        return np.empty((len(self.tokens) - self.first_output, n_vocab), np.float32)


class Batch:
    """A llama_batch over arrays that are made once, for up to `size` tokens."""

    def __init__(self, llama: Any, size: int) -> None:
        self.n = 0
        self.tokens = np.zeros(size, np.int32)
        self.positions = np.zeros(size, np.int32)
        self.logits = np.zeros(size, np.int8)
        self._seqs = np.zeros(size, np.int32)
        self._n_seqs = np.ones(size, np.int32)
        # seq_id[i] points at the i-th entry of _seqs: every token belongs to one sequence
        self._seq_pointers = self._seqs.ctypes.data + 4 * np.arange(size, dtype=np.uintp)
        i32 = ctypes.POINTER(ctypes.c_int32)
        self._struct = llama.llama_batch(
            0,
            self.tokens.ctypes.data_as(i32),
            None,
            self.positions.ctypes.data_as(i32),
            self._n_seqs.ctypes.data_as(i32),
            self._seq_pointers.ctypes.data_as(ctypes.POINTER(i32)),
            self.logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def add(self, tokens: Sequence[int], position: int, seq: int) -> int:
        """Appends tokens without logits; returns the index of the first."""
        at, end = self.n, self.n + len(tokens)
        self.tokens[at:end] = tokens
        self.positions[at:end] = np.arange(position, position + len(tokens), dtype=np.int32)
        self._seqs[at:end] = seq
        self.logits[at:end] = 0
        self.n = end
        return at

    def struct(self) -> Any:
        """The llama_batch."""
        self._struct.n_tokens = self.n
        return self._struct
