"""Regular expressions that read a text once: what `re` would try one after another, all at once.

Only whether an expression matches is told. What takes backtracking (look-around, back-references)
is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from alora_gguf.errors import UnsupportedAdapterError

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


class Automaton:
    """A pattern that `re` has accepted, as all the places in it that a text may have led to so far.

    `source` is where it stands, for messages; it may make `max_states` places.

    What a set of places becomes after a character is remembered, so that reading most texts takes
    one look-up a character. Raises UnsupportedAdapterError for what takes backtracking, and for
    more places.
    """

    def __init__(self, pattern: str, source: str, max_states: int) -> None:
        self.source = source
        self.max_states = max_states
        self.states = [_State()]  # the first one is the end of the expression
        try:
            first = self._build(_Parser(pattern, source).choice(), 0)
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
