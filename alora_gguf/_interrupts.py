"""Signals whose handlers raise, Ctrl-C above all, amid a call: kept until the call can end.

Python runs handlers between any two instructions of the main thread. One that raises between taking
a sequence and noting that it was taken, say, would leave cells that nobody ever gives back.
"""

from __future__ import annotations

import functools
import inspect
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, TypeVar, cast

_T = TypeVar("_T")
_NAMES: Final = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGBREAK")
_SIGNALS: Final = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
_PATIENCE: Final = 2.0  # seconds; who presses Ctrl-C again after that means it
_METHODS: Final = ("__init__", "__next__", "__exit__")

# signal's own turn numbers into enums and back, which takes as long as all the rest here
_get: Final = inspect.unwrap(signal.getsignal)
_set: Final = inspect.unwrap(signal.signal)


class _Deferred:
    """Around what must not end half-way; may be nested, and does nothing on other threads than the
    main one, which alone has signals.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._pending: list[int] = []
        self._since = 0.0

    def _keep(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self._pending:
            self._since = now
        elif now > self._since + _PATIENCE:
            self._handlers[number](number, frame)
        self._pending.append(number)

    def __enter__(self) -> None:
        if not _is_main():
            return
        if self._depth == 0:
            self._pending.clear()
            self._handlers.clear()
            for number in _SIGNALS:
                handler = _get(number)
                if callable(handler) and handler != self._keep:
                    self._handlers[number] = handler
                    _set(number, self._keep)
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        if not _is_main():
            return
        self._depth -= 1
        if self._depth == 0:
            self.give_back()
            self.check()

    def check(self) -> None:
        """Hands the signals that came to their handlers."""
        while self._pending and _is_main():
            number = self._pending.pop(0)
            self._handlers[number](number, None)

    def pending(self) -> bool:
        """Whether check() would call a handler."""
        return bool(self._pending) and _is_main()

    def give_back(self) -> None:
        """Signals reach their handlers at once again."""
        for number, handler in self._handlers.items():
            if _get(number) == self._keep:  # else the program has set another one meanwhile
                _set(number, handler)

    def take(self) -> None:
        """Undoes give_back()."""
        for number, handler in self._handlers.items():
            if _get(number) == handler:
                _set(number, self._keep)


class _Allowed:
    """Around a callback of the program's, amid a deferred call: it may be interrupted anywhere."""

    def __enter__(self) -> None:
        if deferred._depth and _is_main():
            deferred.check()
            deferred.give_back()

    def __exit__(self, *_: object) -> None:
        if deferred._depth and _is_main():
            deferred.take()


def _is_main() -> bool:
    return threading.get_ident() == threading.main_thread().ident


deferred: Final = _Deferred()
allowed: Final = _Allowed()
pending: Final = deferred.pending
check_interrupts: Final = deferred.check
"""Where a call can end: hands the signals that came to their handlers, which may raise."""


def uninterrupted(target: _T) -> _T:
    """A function, or a class with its public methods, inside which signals wait for
    check_interrupts(), or the end.
    """
    if not isinstance(target, type):
        return cast(_T, _wrapped(cast("Callable[..., Any]", target)))
    for name, member in list(vars(target).items()):
        if inspect.isfunction(member) and (not name.startswith("_") or name in _METHODS):
            setattr(target, name, _wrapped(member))
    return cast(_T, target)


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with deferred:
            return function(*args, **kwargs)

    return call
