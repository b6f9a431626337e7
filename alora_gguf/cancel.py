"""Cancelling a long call from another thread."""

from __future__ import annotations

from collections.abc import Callable

from .errors import CancelledError


class CancelToken:
    """Pass one to a call as `cancel=`; cancel() from any thread or signal handler then ends it.

    The call raises CancelledError and leaves the conversation as it was before it; a reply that is
    being generated ends where it is, with finish_reason "cancelled". On the CPU even a batch that
    is being computed stops, unless it serves another call too: then it is finished first. A token
    stays cancelled; take a new one for the next call.
    """

    def __init__(self) -> None:
        self._cancelled = False
        self._watchers: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """Ends the calls that were given this token. A second call does nothing."""
        self._cancelled = True
        for watcher in tuple(self._watchers):
            watcher()

    @property
    def cancelled(self) -> bool:
        """Whether cancel() was called."""
        return self._cancelled

    def check(self) -> None:
        """Raises CancelledError if cancel() was called."""
        if self._cancelled:
            raise CancelledError("the call was cancelled")

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher` at cancel(), until unwatch(). Not part of the public API."""
        self._watchers.append(watcher)
        if self._cancelled:
            watcher()

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Ends watch(). Not part of the public API."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)
