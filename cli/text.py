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


def size_text(nbytes: int) -> str:
    """In decimal units: "512 B", "1.2 MB"."""
    size, unit = float(nbytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.95:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
