"""PEFT's rank_pattern and alpha_pattern: regular expressions on module names, in bounded time.

PEFT gives them to `re`, where a few characters such as "(a+)+$" can take longer than anybody waits.
Here names with wildcards are compared in place, and all else runs as an automaton, which reads a
name once. What only backtracking can match (look-around, back-references) is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from alora_gguf.errors import FileFormatError, UnsupportedAdapterError

_MAX_LENGTH: Final = 5000  # characters of a pattern
_MAX_STATES: Final = 4000  # of all automata of a table; a state is about a character
# A module's name, its dots perhaps escaped; most tables hold nothing else, one entry a module.
_PLAIN: Final = re.compile(r"(\^?)((?:\.\*)?)((?:[\w.-]|\\[.-])*)")
_COUNTS: Final = re.compile(r"\{(?!\})(\d*)(,?)(\d*)\}")
_GROUP: Final = re.compile(r"\((?!\?)|\(\?:|\(\?P<\w+>")
_UNSUPPORTED: Final = {
    "(?=": "a look-ahead",
    "(?!": "a look-ahead",
    "(?<": "a look-behind",
    "(?>": "an atomic group",
    "(?P": "a back-reference",
    "(?(": "a condition",
}

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
                automaton = _Automaton(pattern, f"{where} holds '{pattern[:80]}'", room)
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


# ---- automata ------------------------------------------------------------------------------------
# The syntax tree: a character (an expression that matches one), or one of these.


@dataclass(frozen=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Choice:
    parts: tuple[_Node, ...]


@dataclass(frozen=True)
class _Repeat:
    part: _Node
    least: int
    most: int | None


@dataclass(frozen=True)
class _Anchor:
    at_end: bool


_Node = str | _Sequence | _Choice | _Repeat | _Anchor


class _Parser:
    """Reads an expression that `re` has accepted, front to back; `source` is it in messages."""

    def __init__(self, text: str, source: str) -> None:
        self.text = text
        self.source = source
        self.pos = 0

    def choice(self) -> _Node:
        parts = [self.sequence()]
        while self.text[self.pos : self.pos + 1] == "|":
            self.pos += 1
            parts.append(self.sequence())
        return parts[0] if len(parts) == 1 else _Choice(tuple(parts))

    def sequence(self) -> _Node:
        parts: list[_Node] = []
        while self.text[self.pos : self.pos + 1] not in ("", "|", ")"):
            parts.append(self.repeat(self.atom()))
        return _Sequence(tuple(parts))

    def repeat(self, atom: _Node) -> _Node:
        sign = self.text[self.pos : self.pos + 1]
        counts = _COUNTS.match(self.text, self.pos)
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(sign, (1, 1))
        if counts:
            least = int(counts[1] or 0)
            most = (int(counts[3]) if counts[3] else None) if counts[2] else least
            self.pos = counts.end()
        elif (least, most) != (1, 1):
            self.pos += 1
        else:
            return atom
        if self.text[self.pos : self.pos + 1] == "+":
            raise self.unsupported("a possessive quantifier")
        if self.text[self.pos : self.pos + 1] == "?":
            self.pos += 1  # which match is preferred does not decide whether there is one
        return _Repeat(atom, least, most)

    def atom(self) -> _Node:
        start, sign = self.pos, self.text[self.pos]
        if sign == "(":
            return self.group()
        if sign == "[":
            return self.character_set()
        if sign == "\\":
            return self.escape()
        self.pos += 1
        if sign in "^$":
            return _Anchor(at_end=sign == "$")
        return sign if sign == "." else re.escape(self.text[start])

    def group(self) -> _Node:
        opening = _GROUP.match(self.text, self.pos)
        if not opening:
            sign = self.text[self.pos : self.pos + 3]
            raise self.unsupported(_UNSUPPORTED.get(sign, f"'{sign}'"))
        self.pos = opening.end()
        inside = self.choice()
        self.pos += 1  # its closing parenthesis
        return inside

    def character_set(self) -> _Node:
        start = self.pos
        self.pos += 2 if self.text[start + 1] == "^" else 1
        self.pos += self.text[self.pos] == "]"  # as the first one it stands for itself
        while self.text[self.pos] != "]":
            self.pos += 2 if self.text[self.pos] == "\\" else 1
        self.pos += 1
        return self.text[start : self.pos]

    def escape(self) -> _Node:
        sign = self.text[self.pos + 1]
        if sign in "AZ":
            self.pos += 2
            return _Anchor(at_end=sign == "Z")
        if sign.isdigit():
            raise self.unsupported("a back-reference")
        if sign in "bB":
            raise self.unsupported("a word boundary")
        if sign in "xuUN":
            raise self.unsupported(f"the escape '\\{sign}'")
        self.pos += 2
        return f"\\{sign}"

    def unsupported(self, what: str) -> UnsupportedAdapterError:
        return UnsupportedAdapterError(
            f"{self.source}, which uses {what}; write the modules' names out instead"
        )


@dataclass
class _State:
    """Goes on to `then`: after a character that `test` matches, or at an anchor, or at once."""

    then: list[int] = field(default_factory=list)
    test: re.Pattern[str] | None = None
    anchor: _Anchor | None = None


class _Automaton:
    """All the places in an expression that a name may have led to so far, at once.

    What a set of places becomes after a character is remembered, so that reading most names takes
    one look-up a character.
    """

    def __init__(self, pattern: str, source: str, max_states: int) -> None:
        self.source = source
        self.max_states = max_states
        self.states = [_State()]  # the first one is the end of the expression
        try:
            first = self._build(_Parser(_whole(pattern), source).choice(), 0)
        except RecursionError:
            raise self._too_large() from None
        self._start = self._reach([first], anchors=(False,))
        self._next: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        self._room = 0

    def matches(self, name: str) -> bool:
        """Whether PEFT's expression matches `name`, a text without line breaks."""
        places = self._start
        for character in name:
            if 0 in places:
                return True
            after = self._next.get((places, character))
            if after is None:
                after = self._step(places, character)
            places = after
        return 0 in self._reach(places, anchors=(True,))

    def _step(self, places: frozenset[int], character: str) -> frozenset[int]:
        ahead: list[int] = []
        for place in places:
            state = self.states[place]
            if state.test and state.test.match(character):
                ahead += state.then
        after = self._reach(ahead, anchors=())
        self._room -= len(after)
        if self._room < 0:  # what a hostile pattern makes of many names would fill the memory
            self._next.clear()
            self._room = 1000 + 100 * len(self.states)
        self._next[places, character] = after
        return after

    def _reach(self, places: Iterable[int], anchors: tuple[bool, ...]) -> frozenset[int]:
        """Adds the places that can be reached without a character; `anchors` hold here."""
        found = set(places)
        todo = list(found)
        while todo:
            state = self.states[todo.pop()]
            if state.test is None and (state.anchor is None or state.anchor.at_end in anchors):
                todo += set(state.then) - found
                found.update(state.then)
        return frozenset(found)

    def _build(self, node: _Node, then: int) -> int:
        """Adds the states of a node that goes on to `then`; returns the first of them."""
        if isinstance(node, str):
            return self._add(_State([then], test=re.compile(node)))
        if isinstance(node, _Anchor):
            return self._add(_State([then], anchor=node))
        if isinstance(node, _Choice):
            return self._add(_State([self._build(part, then) for part in node.parts]))
        if isinstance(node, _Sequence):
            for part in reversed(node.parts):
                then = self._build(part, then)
            return then
        if node.most is None:
            loop = self._add(_State([then]))
            self.states[loop].then.append(self._build(node.part, loop))
            then = loop
        for _ in range((node.most or node.least) - node.least):
            then = self._add(_State([then, self._build(node.part, then)]))
        for _ in range(node.least):
            then = self._build(node.part, then)
        return then

    def _add(self, state: _State) -> int:
        if len(self.states) >= self.max_states:
            raise self._too_large()
        self.states.append(state)
        return len(self.states) - 1

    def _too_large(self) -> UnsupportedAdapterError:
        return UnsupportedAdapterError(
            f"{self.source}, which is too large to be matched in bounded time; write the modules' "
            "names out instead"
        )
