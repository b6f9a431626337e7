"""PEFT's rank_pattern and alpha_pattern: regular expressions on module names, in bounded time.

PEFT gives them to `re`, where a few characters such as "(a+)+$" can take longer than anybody waits.
Here names with wildcards are compared in place, and `regex` matches all else, with a timeout.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

from alora_gguf.errors import FileFormatError, UnsupportedAdapterError

_MAX_LENGTH: Final = 5000  # characters of a pattern
_SECONDS: Final = 1.0  # for all matches of a table: sound ones take milliseconds
# A module's name, its dots perhaps escaped; most tables hold nothing else, one entry a module.
_PLAIN: Final = re.compile(r"(\^?)((?:\.\*)?)((?:[\w.-]|\\[.-])*)")
# What `regex` reads in another way than `re`: fuzzy counts such as {e<=1}, and [[:alpha:]].
_ANOTHER_MEANING: Final = re.compile(r"\{(?!\d*,?\d*\})|\[\[?\^?:")

T = TypeVar("T")
Matcher = Callable[[str], bool]


class PatternTable(Generic[T]):
    """Values for the modules that patterns match, from the field that messages call `where`."""

    def __init__(self, values: Mapping[str, T], where: str) -> None:
        self.values = dict(values)
        self._where = where
        self._left = _SECONDS
        self._matchers: list[tuple[Matcher, T]] = []
        self.warnings: list[str] = []  # at most one: of the first module with two values
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Python will change: the patterns are not ours
            for pattern, value in self.values.items():
                plain = _PLAIN.fullmatch(pattern)
                matcher = _plain_matcher(plain) if plain else self._matcher(pattern)
                self._matchers.append((matcher, value))

    def find(self, module: str, default: T) -> T:
        """The value of the first pattern that matches the end of a module's name, as PEFT's own
        get_pattern_key finds it: at the start of the name or after a dot.
        """
        found = [i for i, (matches, _) in enumerate(self._matchers) if matches(module)]
        values = [self._matchers[i][1] for i in found]
        if len(set(values)) > 1 and not self.warnings:
            patterns = list(self.values)
            first, other = (
                patterns[found[i]][:80] for i in (0, [v != values[0] for v in values].index(True))
            )
            self.warnings.append(
                f"{self._where}: '{first}' and '{other}' both match '{module}'; the first counts, "
                "as where PEFT loads it; but save_pretrained() sorts patterns, so that it may have "
                "been trained with the other"
            )
        return values[0] if values else self.values.get(module, default)

    def _matcher(self, pattern: str) -> Matcher:
        # the expression that PEFT's get_pattern_key matches a module's whole name with
        whole = rf"(.*\.)?({pattern})$"
        shown = f"{self._where} holds '{pattern[:80]}'"
        if len(pattern) > _MAX_LENGTH or not pattern.isprintable():
            raise FileFormatError(
                f"{self._where} holds {pattern[:80]!a}, expected at most {_MAX_LENGTH} printable "
                "letters"
            )
        try:
            re.compile(whole)
        except (re.error, OverflowError, RecursionError) as error:
            raise FileFormatError(f"{shown}, which is not a regular expression: {error}") from None
        if _ANOTHER_MEANING.search(pattern):
            raise UnsupportedAdapterError(
                f"{shown}, whose braces or [: cannot be part of a module's name; write the names "
                "out instead"
            )
        import regex

        try:
            expression = regex.compile(whole)
        except (regex.error, OverflowError, RecursionError, MemoryError):
            raise self._too_slow(shown) from None

        def matches(module: str) -> bool:
            start = time.perf_counter()
            try:
                return expression.match(module, timeout=max(self._left, 0.001)) is not None
            except (TimeoutError, MemoryError):
                raise self._too_slow(shown) from None
            finally:
                self._left -= time.perf_counter() - start

        return matches

    @staticmethod
    def _too_slow(shown: str) -> UnsupportedAdapterError:
        return UnsupportedAdapterError(
            f"{shown}, which takes too long to match; write the modules' names out instead"
        )


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
