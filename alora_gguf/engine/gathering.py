"""Calls of several threads that share their first batch, though they do not begin at once."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from alora_gguf.options import CancelToken

if TYPE_CHECKING:
    from .context import Engine

_PATIENCE: Final = 0.5  # seconds that calls wait for one another at most
_STEP: Final = 0.0005


class Gathering:
    """Nothing is computed until `n` calls wait in the engine's queue, or have ended without it, or
    some time has gone by. Not part of the public API.
    """

    def __init__(self, engine: Engine, n: int, cancel: CancelToken) -> None:
        self._queue, self._desk = engine.queue, engine.desk
        self._n, self._cancel = n, cancel
        self._closed = True
        self._queue.hold()
        threading.Thread(target=self._watch, daemon=True).start()

    def leave(self) -> None:
        """One of them needs not be waited for."""
        with self._desk:
            self._n -= 1
            self._desk.notify_all()

    def open(self) -> None:
        """Waits for nobody any more."""
        with self._desk:
            if self._closed:
                self._closed = False
                self._queue.let_go()

    def _watch(self) -> None:
        until = time.monotonic() + _PATIENCE
        with self._desk:  # who enters the queue does not say so
            while not self._is_enough() and time.monotonic() < until:
                self._desk.wait(_STEP)
        self.open()

    def _is_enough(self) -> bool:
        return not self._closed or self._cancel.cancelled or self._queue.n_waiting >= self._n
