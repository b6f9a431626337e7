"""A machine whose threads and processes run when they like: `pytest -p tests.support.lagging`.

A test that works only while one thread is faster than another passes here and fails on somebody
else's machine. ALORA_TEST_LAG says who is late: `watchers`, tests after they were told or had
started something; `workers`, what tests start. `make test-lagging` runs both. Only what is called
from tests lags: the code that they test waits for nothing here.
"""

from __future__ import annotations

import functools
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

LAG: Final = 0.4  # of a second: a tiny model answers in a few thousandths
KINDS: Final = ("watchers", "workers")
TESTS: Final = str(Path(__file__).parents[1])


def _from_tests() -> bool:
    """Whether a wrapped method was called by a test or what supports it."""
    return sys._getframe(2).f_code.co_filename.startswith(TESTS)


def _late_after(owner: type, name: str) -> None:
    """Whoever calls a method goes on a while after it has returned."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        late, result = _from_tests(), method(*args, **kwargs)
        if late:
            time.sleep(LAG)
        return result

    setattr(owner, name, wrapped)


def _late_start(work: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        time.sleep(LAG)
        return work(*args, **kwargs)

    return wrapped


def _late_workers() -> None:
    """Threads that tests start begin a while after."""
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit

    def started(self: threading.Thread) -> None:
        if _from_tests():
            self.run = _late_start(self.run)  # type: ignore[method-assign]
        start(self)

    def submitted(self: Executor, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return submit(self, _late_start(work) if _from_tests() else work, *args, **kwargs)

    threading.Thread.start = started  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = submitted  # type: ignore[method-assign,assignment]


def pytest_configure() -> None:
    kind = os.environ.get("ALORA_TEST_LAG")
    if kind == "workers":
        _late_workers()
    elif kind == "watchers":
        for owner, name in (
            (threading.Event, "wait"),
            (threading.Barrier, "wait"),
            (threading.Thread, "start"),
            (ThreadPoolExecutor, "submit"),
            (queue.Queue, "get"),
            (subprocess.Popen, "__init__"),
        ):
            _late_after(owner, name)
    else:
        raise ValueError(f"ALORA_TEST_LAG is {kind!r}, expected one of {', '.join(KINDS)}")
