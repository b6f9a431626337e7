"""Who gets cells and sequences when they run short: those who wait, in order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from alora_gguf.errors import AloraError, CacheFullError
from alora_gguf.options import CancelToken

from .llama_context import LlamaContext
from .prefix_cache import PrefixCache


class AdmissionQueue:
    """Lets calls in as soon as what they need is free; for any thread.

    What nobody needs, the prefix cache's entries, goes before anybody waits, unless the call could
    not be let in even then.
    """

    def __init__(self, context: LlamaContext, cache: PrefixCache) -> None:
        self._context, self._cells, self._condition = context, context.cells, context.condition
        self._cache = cache
        self._line: deque[object] = deque()

    def admit(
        self,
        fits: Callable[[], bool],
        full: Callable[[], AloraError],
        cancel: CancelToken | None = None,
        *,
        n: int = 0,
    ) -> None:
        """Waits until `fits()`, which takes what it needs from the allocator, `n` cells, and says
        if it could, as long as another thread is about to give something back. Raises `full()` when
        nobody is. A thread that is to give something back itself never waits.
        """
        me, place = threading.get_ident(), object()
        try:
            while True:
                with self._condition:
                    _ = self._context.ctx  # raises ClosedError
                    if n > self._cells.n_cells:
                        raise full()
                    holders = self._cells.holders
                    holds = me in holders.values()
                    first = holds or not self._line or self._line[0] is place
                    if first and fits():
                        return
                    seen = self._cells.version
                if first and self._context.collect():
                    continue
                if first and self._would_fit(n, me) and self._cache.evict():
                    continue
                with self._condition:
                    if first and (holds or not holders) and seen == self._cells.version:
                        raise full()
                    self._wait(place, seen, cancel)
                if cancel is not None:
                    cancel.check()
        finally:
            if place in self._line:
                with self._condition:
                    self._line.remove(place)
                    self._condition.notify_all()

    def _wait(self, place: object, seen: int, cancel: CancelToken | None) -> None:
        """Stands in line until something is given back, or the line has moved."""
        if place not in self._line:
            self._line.append(place)
        if cancel is not None:
            cancel._watch(self._wake)
        try:
            ahead = self._line.index(place)
            while seen == self._cells.version and ahead == self._line.index(place):
                if self._context.closed or (cancel is not None and cancel.cancelled):
                    return
                self._condition.wait()
        finally:
            if cancel is not None:
                cancel._unwatch(self._wake)

    def _would_fit(self, n: int, me: int) -> bool:
        """Whether `n` cells would be free with the prefix cache empty and all that other threads
        hold given back; if not, evicting is of no use.
        """
        with self._condition:
            soon = {seq for seq, holder in self._cells.holders.items() if holder != me}
            soon.update(self._cache.evictable())
            return n <= self._cells.n_cells - self._cells.used_without(soon)

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify_all()

    def require(self, n: int, freed: int = 0) -> None:
        """Raises CacheFullError unless `n` more cells fit once `freed` ones are given back, now or
        soon.
        """
        self.admit(
            lambda: n <= self._cells.free() + freed, lambda: self.no_cells(n, freed), n=n - freed
        )

    # Errors --------------------------------------------------------------------------------------

    def no_cells(self, n: int, freed: int = 0) -> CacheFullError:
        """The error for `n` cells that do not fit."""
        cells = self._cells
        evictable = cells.used() - cells.used_without(self._cache.evictable())
        return CacheFullError(
            f"{self._context.path}: the KV cache is full: {n} cells needed, "
            f"{cells.free() + freed + evictable} of {cells.n_cells} free; close or rewind a "
            "session, or open the model with a larger n_ctx"
        )

    def no_sequence(self, promise: int | None) -> CacheFullError:
        """The error for a sequence, with a `promise` of so many cells, that cannot be had."""
        if self._cells.free_sequences and promise is not None:
            return self.no_cells(promise)
        return CacheFullError(
            f"{self._context.path}: all {self._cells.n_seqs} sequences are in use; close a "
            "session, or open the model with a larger n_seq_max"
        )
