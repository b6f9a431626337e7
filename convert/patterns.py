"""PEFT's rank_pattern and alpha_pattern: regular expressions on module names, in bounded time.

PEFT gives them to `re`, where a few characters such as "(a+)+$" can take longer than anybody waits.
Here names with wildcards are compared in place, and all else runs as an automaton, which reads a
name once. What only backtracking can match (look-around, back-references) is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

from alora_gguf.errors import FileFormatError

_MAX_LENGTH: Final = 5000  # characters of a pattern
_MAX_STATES: Final = 4000  # of all automata of a table; a state is about a character
# A module's name, its dots perhaps escaped; most tables hold nothing else, one entry a module.
_PLAIN: Final = re.compile(r"(\^?)((?:\.\*)?)((?:[\w.-]|\\[.-])*)")

T = TypeVar("T")
Matcher = Callable[[str], bool]


class PatternTable(Generic[T]):
    """Values for the modules that patterns match, from the field that messages call `where`.

    Raises FileFormatError for what is no regular expression, UnsupportedAdapterError for one that
    cannot be matched in bounded time.
    """

    def __init__(self, values: Mapping[str, T], where: str) -> None:
        self.values = dict(values)
        self._matchers: list[tuple[Matcher, T]] = []
        room = _MAX_STATES
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Python will change: the patterns are not ours
            for pattern, value in self.values.items():
                plain = _PLAIN.fullmatch(pattern)
                if plain:
                    self._matchers.append((_plain_matcher(plain), value))
                    continue
                _check(pattern, where)
                from .automaton import Automaton

                source = f"{where} holds '{pattern[:80]}'"
                automaton = Automaton(_whole(pattern), source, room)
                room -= len(automaton.states)
                self._matchers.append((automaton.matches, value))

    def find(self, module: str, default: T) -> T:
        """The value of the first pattern that matches the end of a module's name, as PEFT's own
        get_pattern_key finds it: at the start of the name or after a dot.
        """
        for matches, value in self._matchers:
            if matches(module):
                return value
        return self.values.get(module, default)


def _whole(pattern: str) -> str:
    """The expression that PEFT's get_pattern_key matches a module's whole name with."""
    return rf"(.*\.)?({pattern})$"


def _check(pattern: str, where: str) -> None:
    if len(pattern) > _MAX_LENGTH or not pattern.isprintable():
        raise FileFormatError(
            f"{where} holds {pattern[:80]!a}, expected at most {_MAX_LENGTH} printable letters"
        )
    try:
        re.compile(_whole(pattern))
    except (re.error, OverflowError, RecursionError) as error:
        raise FileFormatError(
            f"{where} holds '{pattern[:80]}', which is no regular expression: {error}"
        ) from None


def _plain_matcher(plain: re.Match[str]) -> Matcher:
    """For a pattern that ends in a name of one length: its place in a module's name is known."""
    anchored, anywhere, name = plain[1], plain[2], plain[3]
    pieces = []  # between the dots, which stand for any character unless they are escaped
    length = 0
    for piece in re.split(r"(?<!\\)\.", name):
        text = piece.replace("\\", "")
        pieces.append((length, text))
        length += len(text) + 1
    length -= 1

    def matches(module: str) -> bool:
        start = len(module) - length
        if start < 0 or (start and not anywhere and (anchored or module[start - 1] != ".")):
            return False
        for offset, text in pieces:  # noqa: SIM110 - twice as fast as all()
            if not module.startswith(text, start + offset):
                return False
        return True

    return matches
