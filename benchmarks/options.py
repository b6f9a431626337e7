"""What the commands' options have in common."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable, Collection
from typing import Any


def parser(module: str, text: str | None) -> argparse.ArgumentParser:
    """Of a command that ends at once at Ctrl-C, also where ctypes would swallow the exception."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return argparse.ArgumentParser(prog=f"python -m {module}", description=text)


def several(
    to: argparse.ArgumentParser,
    option: str,
    default: str,
    kind: Callable[[str], Any],
    known: Collection[str] = (),
) -> None:
    """Adds an option of values with commas between; `known`: the only ones there are."""

    def parse(text: str) -> list[Any]:
        parts = text.split(",")
        if unknown := [part for part in parts if known and part not in known]:
            raise argparse.ArgumentTypeError(
                f"{', '.join(unknown)} unknown; there are {', '.join(known)}"
            )
        return [kind(part) for part in parts]

    to.add_argument(option, type=parse, default=default, help="%(default)s")


def number(least: int = 1) -> Callable[[str], int]:
    """The type of a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
        return int(text)

    return parse
