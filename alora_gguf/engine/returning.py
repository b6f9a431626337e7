"""Callers that were just served together and will probably be back at once, one token later: who is
back first waits a moment for the others, or they would take turns from then on.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

_LONGEST: Final = 0.02  # seconds; sampling from a large vocabulary takes some milliseconds


class Returning:
    """Whom the next batch may wait for, and how long; the caller holds the engine's desk.

    That is never longer than the last batch took, which is what sharing one saves; and a caller who
    was served alone is waited for by nobody and waits for nobody.
    """

    def __init__(self) -> None:
        self._threads: frozenset[int] = frozenset()
        self._until = 0.0

    def served(self, threads: Collection[int], seconds: float) -> None:
        """A batch that took so long was computed for these threads."""
        self._threads = frozenset(threads)
        self._until = time.monotonic() + min(seconds, _LONGEST)

    def leaves(self, thread: int) -> None:
        """It has all that it wanted, and will not be back at once."""
        self._threads -= {thread}

    def wait_for(self, here: Collection[int]) -> float:
        """Seconds that those who are `here` may still wait; 0 if nobody is missing."""
        if self._threads.issubset(here):
            return 0.0
        return max(0.0, self._until - time.monotonic())
