"""What chat templates take for the present: when their conversation began, so that a date in what
is cached stays right over midnight.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final


class _Moment(threading.local):
    now: datetime | None = None


_moment: Final = _Moment()


def present() -> datetime:
    """The local date and time."""
    return datetime.fromtimestamp(time.time())


@contextmanager
def at(now: datetime) -> Iterator[None]:
    """Templates that are rendered meanwhile, on this thread, write this date."""
    before, _moment.now = _moment.now, now
    try:
        yield
    finally:
        _moment.now = before


def strftime_now(f: str) -> str:
    """Hugging Face's function for templates that write the date."""
    return (_moment.now or present()).strftime(f)
