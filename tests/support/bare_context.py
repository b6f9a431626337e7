"""A context without llama.cpp: locks, cells, and sequences that can be dropped."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from alora_gguf.engine.cells import CellAllocator


@dataclass
class BareContext:
    """What admission and prefix cache see of a LlamaContext."""

    cells: CellAllocator
    rewinds: bool = True
    closed: bool = False
    path: str = "base.gguf"
    ctx: int = 1
    condition: threading.Condition = field(default_factory=threading.Condition)
    dropped: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)

    def sequence(self, n: int) -> int:
        """A new sequence of so many cells."""
        seq = self.cells.allocate()
        assert seq is not None
        self.cells.extend(seq, n)
        return seq

    def drop(self, seq: int) -> None:
        with self.condition:
            self.dropped.append(seq)
            self.cells.release(seq)
            self.condition.notify_all()

    def abandon(self, seq: int) -> None:
        """As garbage collection does: nobody is told."""
        self.left.append(seq)

    @property
    def abandoned(self) -> bool:
        return bool(self.left)

    def collect(self) -> bool:
        left = self.left.copy()
        self.left.clear()
        for seq in left:
            self.drop(seq)
        return bool(left)
