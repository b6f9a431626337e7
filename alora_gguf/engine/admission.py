"""Who gets cells and sequences when they run short: those who wait, in order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from alora_gguf.errors import AloraError, CacheFullError
from alora_gguf.options import CancelToken

if TYPE_CHECKING:
    from .context import Engine


class AdmissionQueue:
    """The waiting line of one engine, whose `desk` guards it; for any thread.

    `reclaim` gives something back that nobody needs, and says whether there was any; it is called
    before anybody waits.
    """

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        """`wake` is called when somebody who waits is cancelled, and must notify the desk."""
        self._engine = engine
        self._wake = wake
        self._transients: dict[int, int] = {}  # sequences that are given back soon: whose thread
        self._line: deque[object] = deque()
        self._given_back = 0  # counts what those who wait should look at
        self.reclaim: Callable[[], bool] = lambda: False

    # Waiting -------------------------------------------------------------------------------------

    def admit(
        self,
        fits: Callable[[], bool],
        full: Callable[[], AloraError],
        cancel: CancelToken | None = None,
    ) -> None:
        """Waits until `fits()`, which takes what it needs from the books and says if it could, as
        long as another thread is about to give something back. Raises `full()` when nobody is. A
        thread that is to give something back itself never waits.
        """
        engine = self._engine
        me, place = threading.get_ident(), object()
        try:
            while True:
                with engine.condition:
                    _ = engine.ctx
                    owes = me in self._transients.values()
                    mine = owes or not self._line or self._line[0] is place
                    if mine and fits():
                        return
                    seen = self._given_back
                if mine and (engine.collect() or self.reclaim()):
                    continue
                with engine.condition:
                    if mine and (owes or not self._transients) and seen == self._given_back:
                        raise full()
                    self._wait(place, seen, cancel)
                if cancel is not None:
                    cancel.check()
        finally:
            if place in self._line:
                with engine.condition:
                    self._line.remove(place)
                    self.gave_back()

    def _wait(self, place: object, seen: int, cancel: CancelToken | None) -> None:
        """Stands in line until something is given back."""
        if place not in self._line:
            self._line.append(place)
        if cancel is not None:
            cancel._watch(self._wake)
        try:
            while seen == self._given_back and not self._engine.closed:
                if cancel is not None and cancel.cancelled:
                    return
                self._engine.condition.wait()
        finally:
            if cancel is not None:
                cancel._unwatch(self._wake)

    def require(self, n: int, freed: int = 0) -> None:
        """Raises CacheFullError unless `n` more cells fit once `freed` ones are given back, now or
        soon.
        """
        books = self._engine.cells
        self.admit(lambda: n <= books.free() + freed, lambda: self.no_cells(n, freed))

    # Giving back; the caller holds the desk ------------------------------------------------------

    def owe(self, seq: int) -> None:
        """Notes that this thread gives `seq` back soon."""
        self._transients[seq] = threading.get_ident()

    def repaid(self, seq: int) -> None:
        """Notes that `seq` was given back, owed or not."""
        self._transients.pop(seq, None)

    def gave_back(self) -> None:
        """Wakes those who wait."""
        self._given_back += 1
        self._engine.condition.notify_all()

    # Errors --------------------------------------------------------------------------------------

    def no_cells(self, n: int, freed: int = 0) -> CacheFullError:
        """The error for `n` cells that do not fit."""
        engine, books = self._engine, self._engine.cells
        return CacheFullError(
            f"{engine.path}: the KV cache is full: {n} cells needed, {books.free() + freed} of "
            f"{books.n_cells} free; close or rewind a session, or open the model with a larger "
            "n_ctx"
        )

    def no_sequence(self, promise: int | None) -> CacheFullError:
        """The error for a sequence, with a `promise` of so many cells, that cannot be had."""
        books = self._engine.cells
        if books.free_sequences and promise is not None:
            return self.no_cells(promise)
        return CacheFullError(
            f"{self._engine.path}: all {books.n_seqs} sequences are in use; close a session, or "
            "open the model with a larger n_seq_max"
        )
