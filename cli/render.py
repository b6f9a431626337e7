"""How commands print: safe text, sizes, counts, durations, wrapped text and tables.

Knows what a terminal can show, and nothing of what is shown.
"""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import Final

_NARROWEST: Final = 40
_WIDEST: Final = 100  # longer lines are hard to read
_USUAL: Final = 80  # of what is not a terminal
_SECONDS: Final = 9.9995  # from here on milliseconds are too many to read

# what a terminal acts on, and what turns the direction of text; all else is what was written
_ACTS: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_HALVES: Final = re.compile("[\ud800-\udfff]")

# Text that is safe to print, or to tokenize ------------------------------------------------------


def printable(text: str) -> str:
    """`text` with everything that a terminal might act on, or not show, as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """The same, with its line breaks kept."""
    return "\n".join(printable(line) for line in text.split("\n"))


def visible(text: str) -> str:
    """`text` with everything that a terminal would act on as an escape; line breaks and tabs stay,
    and so do the joiners that emoji and many scripts need.
    """
    return _ACTS.sub(lambda found: repr(found[0])[1:-1], text.replace("\r", ""))


def whole(text: str) -> str:
    """`text` without halves of characters, which come from bytes that are not UTF-8 and cannot be
    tokenized.
    """
    return _HALVES.sub("\ufffd", text)


# Numbers ----------------------------------------------------------------------------------------


def size_text(nbytes: int) -> str:
    """In decimal units: "512 B", "1.2 MB"."""
    number, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 999.95:
            break
        number, unit = number / 1000, larger
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"


def plural(n: int, noun: str) -> str:
    """1 turn, 2 turns."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def duration(seconds: float) -> str:
    """43 ms, 1200 ms, 12.3 s."""
    return f"{seconds * 1000:.0f} ms" if seconds < _SECONDS else f"{seconds:.1f} s"


def with_spread(mean: str, spread: float | None) -> str:
    """0.986±.002: a mean as it is shown, and its standard deviation in as many decimals; the mean
    alone if there is none.
    """
    if spread is None:
        return mean
    digits, e, exponent = mean.partition("e")
    decimals = len(digits.partition(".")[2])
    size = spread / 10 ** int(exponent) if e else spread
    shown = f"{size:.{decimals}f}"
    return f"{digits}±{shown.removeprefix('0') if decimals else shown}{e}{exponent}"


# Widths -----------------------------------------------------------------------------------------


def colour() -> bool | None:
    """For click.echo: False if the user wants none (https://no-color.org) or the terminal has none,
    else None, which asks whether the output is a terminal.
    """
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return False if plain else None


def columns() -> int:
    """How wide a text may be."""
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((_USUAL, 24)).columns))


def shortened(line: str, width: int) -> str:
    """The line, or what fits of it; characters of two columns count as two."""
    from rich.cells import cell_len

    if cell_len(line) <= width:
        return line
    end, room = 0, width - 1
    while end < len(line) and (room := room - cell_len(line[end])) >= 0:
        end += 1
    return f"{line[:end].rstrip()}…"


def wrapped(
    text: str, width: int, start: str = "", *, hang: str | None = None, long_words: bool = False
) -> list[str]:
    """`text` behind `start`; further lines begin with `hang`, or below the text. Words longer than
    a line, such as paths, stay whole unless `long_words` are to be broken.
    """
    return textwrap.wrap(
        printable(text),
        width,
        initial_indent=start,
        subsequent_indent=" " * len(start) if hang is None else hang,
        break_long_words=long_words,
        break_on_hyphens=False,
    )


def aligned(
    rows: Sequence[Sequence[str]], align: str, *, indent: int = 0, gap: int = 2
) -> list[str]:
    """A line for each row, columns as wide as what is in them; `align` has "<" or ">" for each."""
    from rich.cells import cell_len

    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(align))]
    lines = []
    for row in rows:
        cells = []
        for cell, side, width in zip(row, align, widths, strict=True):
            space = " " * (width - cell_len(cell))
            cells.append(cell + space if side == "<" else space + cell)
        lines.append((" " * indent + (" " * gap).join(cells)).rstrip())
    return lines
