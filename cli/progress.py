"""What a person sees while work takes its time: a bar on stderr, if that is a terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

_PATIENCE = 1.0  # seconds after which a bar is shown
_PARTS = 100


def hush_hub() -> None:
    """Keeps huggingface_hub from logging: what fails is said once, by us, and its own words quote
    addresses with signatures.
    """
    import logging

    from huggingface_hub.utils.logging import get_logger  # importing it sets a level of its own

    get_logger("huggingface_hub").setLevel(logging.ERROR)


class Progress:
    """Calls with (done, total) move a bar on the terminal, once the work takes long enough."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._start = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.render_finish()

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` are done."""
        if self._bar is None:
            if time.monotonic() - self._start < _PATIENCE or not sys.stderr.isatty():
                return
            self._bar = click.progressbar(length=total, label=self._label, file=sys.stderr)
        self._bar.update(done - self._bar.pos)

    def fraction(self, done: float) -> None:
        """The same for a part of 1."""
        self(int(done * _PARTS), _PARTS)
