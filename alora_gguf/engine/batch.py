"""Runs of tokens, the requests they wait in, and the llama_batch that carries pieces of them to
llama_decode.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from alora_gguf.errors import AloraError
from alora_gguf.options import CancelToken

from .cells import CellAllocator

Logits = NDArray[np.float32]
"""One row of logits, [n_vocab]; or several, [n, n_vocab]."""

# While others wait, a long text is prefilled in pieces of this many tokens, so that they need not
# wait long; on a CPU longer pieces are hardly faster per token.
_MIXED_PIECE: Final = 128


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


@dataclass(slots=True, eq=False)
class Request:
    """One call's runs in the queue.

    rows    where each run's logits go
    starts  the length of each run's sequence before
    read    tokens of each run that are in the cache
    alone   after a batch failed, each of its requests is tried by itself
    """

    runs: Sequence[Run]
    rows: list[Logits | None]
    starts: list[int]
    cancel: CancelToken | None = None
    read: list[int] = field(init=False)
    total: int = field(init=False)
    thread: int = field(default_factory=threading.get_ident)
    alone: bool = False
    done: bool = False
    error: AloraError | None = None

    def __post_init__(self) -> None:
        self.read = [0] * len(self.runs)
        self.total = sum(len(run.tokens) for run in self.runs)

    @property
    def n_read(self) -> int:
        """Tokens of all runs that are in the cache."""
        return sum(self.read)

    @property
    def n_left(self) -> int:
        """Tokens that are not."""
        return self.total - self.n_read

    @property
    def cancelled(self) -> bool:
        """Whether its caller gave up."""
        return self.cancel is not None and self.cancel.cancelled

    def pieces(self, n: int) -> Iterator[Piece]:
        """Its next `n` tokens, run by run."""
        for index, run in enumerate(self.runs):
            begin = self.read[index]
            end = min(len(run.tokens), begin + n)
            if end > begin:
                n -= end - begin
                yield Piece(self, index, begin, end)


@dataclass(slots=True)
class Piece:
    """Tokens [begin, end) of a request's run; `length` is that of the sequence before it."""

    request: Request
    index: int
    begin: int
    end: int
    length: int = 0

    @property
    def run(self) -> Run:
        """The run it is of."""
        return self.request.runs[self.index]


class Batch:
    """A llama_batch over arrays that are made once, for up to `size` tokens and `n_outputs` rows of
    logits.

    `pieces` is what it holds; `wanted` has, for each row of logits, the token's index in the batch
    and where the row goes.
    """

    def __init__(self, llama: Any, size: int, n_outputs: int | None = None) -> None:
        self._size, self._n_outputs = size, n_outputs or size
        self.n = 0
        self.pieces: list[Piece] = []
        self.wanted: list[tuple[int, Logits]] = []
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

    @property
    def requests(self) -> list[Request]:
        """Whose pieces it holds."""
        return list({id(piece.request): piece.request for piece in self.pieces}.values())

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

    def compose(self, waiting: Sequence[Request], cells: CellAllocator) -> None:
        """Fills it with the next pieces of those who wait, and gives these their cells."""
        self.n, self.pieces, self.wanted = 0, [], []
        for request, n in self._shares(waiting):
            for piece in request.pieces(n):
                if not self._add(piece, cells):
                    break

    def _shares(self, waiting: Sequence[Request]) -> Iterator[tuple[Request, int]]:
        """How many tokens of whom: all of the short requests, equal shares of the long ones."""
        alone = next((request for request in waiting if request.alone), None)
        if alone is not None or len(waiting) == 1:
            yield alone or waiting[0], self._size
            return
        space = self._size
        share = max(1, space // max(1, len(waiting)))
        takes = []
        for request in waiting:
            takes.append(min(request.n_left, share, _MIXED_PIECE, space))
            space -= takes[-1]
        for request, take in zip(waiting, takes, strict=True):
            more = max(0, min(min(request.n_left, _MIXED_PIECE) - take, space))
            space -= more
            yield request, take + more

    def _add(self, piece: Piece, cells: CellAllocator) -> bool:
        """Adds a piece, shortened to the rows of logits that are left; says if any are then."""
        run, rows = piece.run, self._n_outputs - len(self.wanted)
        first = max(run.first_output, piece.begin)
        piece.end = min(piece.end, first + rows)
        n = piece.end - piece.begin
        if n <= 0:
            return False
        piece.length = cells.length(run.seq)
        cells.extend(run.seq, n)
        at = self.add(run.tokens[piece.begin : piece.end], piece.length, run.seq)
        self.pieces.append(piece)
        out = piece.request.rows[piece.index]
        for k in range(first, piece.end):
            if out is not None:
                index = at + k - piece.begin
                self.logits[index] = 1
                self.wanted.append((index, out if out.ndim == 1 else out[k - run.first_output]))
        return len(self.wanted) < self._n_outputs
