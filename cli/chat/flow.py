"""Text made to fit a width: a line cut off, or one that grows by pieces, broken between words."""

from __future__ import annotations

from typing import Final

from rich.cells import cell_len

_TAB: Final = 4
_EMOJI_FORM: Final = "\ufe0f"  # makes the character before it as wide as an emoji


class Flow:
    """What to write for each piece, and how many lines it is so far.

    The output is the same however the text is split into pieces. A line is never wider than
    `width`, which has to have room for a wide character.
    """

    def __init__(self, width: int) -> None:
        self._width = max(width, 2)
        self._column = 0
        self._word, self._word_size = "", 0
        self.lines = 1

    def add(self, text: str) -> str:
        """What to write for a further piece. The last word waits until it is whole."""
        out = []
        for char in text:
            if char == "\n":
                out.append(self._place_word() + self._new_line())
            elif char.isspace():
                out.append(self._place_word() + self._space(char))
            else:
                out.append(self._letter(char))
        return "".join(out)

    def end(self) -> str:
        """The rest, and a line break."""
        return self._place_word() + "\n"

    def _letter(self, char: str) -> str:
        """Wide characters, as of Chinese, are words of their own: between them there is no space
        that could be waited for.
        """
        size, out = _size(char), ""
        if size > 1:
            return self._place_word() + self._put(char, size)
        if self._word_size + size > self._width:  # fits on no line
            out = self._place_word() + self._new_line()
        self._word += char
        self._word_size += size
        return out

    def _space(self, space: str) -> str:
        n = _TAB - self._column % _TAB if space == "\t" else 1
        n = min(n, self._width - self._column)
        self._column += n
        return " " * n

    def _place_word(self) -> str:
        word, size = self._word, self._word_size
        self._word, self._word_size = "", 0
        return self._put(word, size)

    def _put(self, text: str, size: int) -> str:
        out = self._new_line() if self._column and self._column + size > self._width else ""
        self._column += size
        return out + text

    def _new_line(self) -> str:
        self._column = 0
        self.lines += 1
        return "\n"


def _size(char: str) -> int:
    """In columns, at most: of a sequence that is shown as one character, all its parts count."""
    return 1 if char == _EMOJI_FORM else cell_len(char)
