"""Text from files and people's names, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with everything that a terminal might act on, or not show, as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """The same, with its line breaks kept."""
    return "\n".join(printable(line) for line in text.split("\n"))
