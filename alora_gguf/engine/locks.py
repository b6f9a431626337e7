"""A lock that a busy thread can hand to those who wait for it."""

from __future__ import annotations

import threading
import time
from typing import Final

_LONGEST: Final = 0.02  # seconds
_STEP: Final = 50e-6


class YieldingLock:
    """A reentrant lock. Python's own may be taken again by the thread that just released it, time
    after time; give_way() lets those who wait for it come first.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: set[int] = set()  # threads; changed by single atomic operations only

    def acquire(self, blocking: bool = True) -> bool:
        """Takes the lock; says whether it did, which it may not have if not `blocking`."""
        if self._lock.acquire(blocking=False):
            return True
        if not blocking:
            return False
        me = threading.get_ident()
        self._waiting.add(me)
        try:
            return self._lock.acquire()
        finally:
            self._waiting.discard(me)

    def release(self) -> None:
        """Gives it back."""
        self._lock.release()

    def give_way(self) -> None:
        """For who has just released it: returns when those who were waiting have had it, or some
        milliseconds later.
        """
        waiting = self._waiting.copy()
        until = time.monotonic() + _LONGEST
        while waiting & self._waiting and time.monotonic() < until:
            time.sleep(_STEP)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
