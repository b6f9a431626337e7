"""What the terminal can show, and what its user wants to see."""

from __future__ import annotations

import os
import shutil
from typing import Final

_NARROWEST: Final = 40
_WIDEST: Final = 100  # longer lines are hard to read
_USUAL: Final = 80  # of what is no terminal


def colour() -> bool | None:
    """For click.echo: False if the user wants none (https://no-color.org) or the terminal has none,
    else None, which asks whether the output is a terminal.
    """
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return False if plain else None


def columns() -> int:
    """How wide a text may be."""
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((_USUAL, 24)).columns))
