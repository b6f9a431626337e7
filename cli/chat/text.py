"""Text as it comes from models and people, made safe for a terminal and for a tokenizer."""

from __future__ import annotations

import re
from typing import Final

# what a terminal acts on, and what turns the direction of text; all else is what was written
_ACTS: Final = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)

_SECONDS: Final = 9.9995  # from here on milliseconds are too many to read
_HALVES: Final = re.compile("[\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with everything that a terminal would act on as an escape; line breaks and tabs stay,
    and so do the joiners that emoji and many scripts need.
    """
    return _ACTS.sub(lambda found: repr(found[0])[1:-1], text.replace("\r", ""))


def whole(text: str) -> str:
    """`text` without halves of characters, which come from bytes that are no UTF-8 and cannot be
    tokenized.
    """
    return _HALVES.sub("\ufffd", text)


def duration(seconds: float) -> str:
    """43 ms, 1200 ms, 12.3 s."""
    return f"{seconds * 1000:.0f} ms" if seconds < _SECONDS else f"{seconds:.1f} s"


def plural(n: int, noun: str) -> str:
    """1 turn, 2 turns."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
