"""Text for a terminal that comes in pieces, or in parts that stay whole: broken between words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len
from rich.text import Text

_TAB: Final = 4
_EMOJI_FORM: Final = "\ufe0f"  # makes the character before it as wide as an emoji


class Flow:
    """What to write for each piece, and how many `lines` it is so far.

    The output is the same however the text is split into pieces. A line is never wider than
    `width`, which has to have room for a wide character.
    """

    def __init__(self, width: int) -> None:
        self._width = max(width, 2)
        self._column = self._spaces = 0  # the word begins behind so many spaces
        self._word = ""
        self.lines = 1

    def add(self, text: str) -> str:
        """What to write for a further piece. The last word waits until it is whole."""
        return "".join(map(self._add, text))

    def end(self) -> str:
        """The rest, and a line break."""
        return f"{self._place()}\n"

    def _add(self, char: str) -> str:
        if char == "\n":
            return self._place() + self._new_line()
        if char.isspace():
            out = self._place()
            column = self._column + self._spaces
            self._spaces += _TAB - column % _TAB if char == "\t" else 1
            return out
        if _size(char) > 1:  # Chinese, say, has no spaces that could be waited for
            out = self._place()
            self._word = char
            return out + self._place()
        out = ""
        if _size(self._word + char) > self._width:  # fits on no line
            out = self._place() + self._new_line()
        self._word += char
        return out

    def _place(self) -> str:
        """The word behind its spaces, or on the next line."""
        word, self._word = self._word, ""
        if not word:
            return ""
        size, out = _size(word), ""
        if self._column and self._column + self._spaces + size > self._width:
            out = self._new_line()
        spaces = min(self._spaces, self._width - self._column - size)
        self._column, self._spaces = self._column + spaces + size, 0
        return out + " " * spaces + word

    def _new_line(self) -> str:
        self._column = self._spaces = 0
        self.lines += 1
        return "\n"


def _size(text: str) -> int:
    """In columns, at most: of a sequence that is shown as one character, all its parts count."""
    return sum(1 if char == _EMOJI_FORM else cell_len(char) for char in text)


def side_by_side(parts: Sequence[tuple[str, str]], width: int) -> list[Text]:
    """Texts with their styles, as many on a line as fit, none of them broken if it fits alone."""
    lines = [Text()]
    for text, style in parts:
        if lines[-1] and lines[-1].cell_len + 3 + cell_len(text) > width:
            lines.append(Text())
        if lines[-1]:
            lines[-1].append(" · ", style="dim")
        lines[-1].append(text, style=style)
    return lines
