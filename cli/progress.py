"""What a person sees while work takes its time: a bar on stderr, if that is a terminal."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import click

_PATIENCE = 1.0  # seconds after which a bar is shown
_INTERVAL = 30.0  # seconds between two lines where there is no terminal
_PARTS = 100


def hush_hub() -> None:
    """Keeps huggingface_hub from logging: what fails is said once, by us, and its own words quote
    addresses with signatures.
    """
    import logging

    from huggingface_hub.utils.logging import get_logger  # importing it sets a level of its own

    get_logger("huggingface_hub").setLevel(logging.ERROR)


class Progress:
    """Calls with (done, total) move a bar on the terminal, once the work takes long enough. Where
    things are `counted`, it shows how many, and how many a second; and without a terminal a line
    says so now and then.
    """

    def __init__(self, label: str, *, counted: bool = False) -> None:
        self._label, self._counted = label, counted
        self._start = self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.render_finish()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Shows that `done` of `total` are done, and a note."""
        now = time.monotonic()
        rate = done / max(now - self._start, 1e-9)
        if not sys.stderr.isatty():
            if self._counted and now - self._said >= _INTERVAL:
                self._said = now
                left = timedelta(seconds=round((total - done) / max(rate, 1e-9)))
                speed = f"{rate:.3g} a second, {left} left"
                said = f", {note}" if note else ""
                click.echo(f"{self._label}: {done} of {total}, {speed}{said}", err=True)
            return
        if self._bar is None:
            if now - self._start < _PATIENCE:
                return
            self._bar = click.progressbar(
                length=total,
                label=self._label,
                file=sys.stderr,
                show_pos=self._counted,
                item_show_func=str,
            )
        speed = f"{rate:.3g}/s" if rate and self._counted else ""
        self._bar.update(done - self._bar.pos, f"{speed}  {note}".strip())

    def fraction(self, done: float) -> None:
        """The same for a part of 1."""
        self(int(done * _PARTS), _PARTS)
