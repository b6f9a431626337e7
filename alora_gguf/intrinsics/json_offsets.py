"""JSON text to values and to where each of them stands in the text, in one go.

Python's own parser tells no positions, and a likelihood needs the tokens that a value is made of.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from alora_gguf.errors import OutputError

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
Path: TypeAlias = tuple[str | int, ...]
"""From the root to a value: the keys of objects and the indices of arrays."""

MAX_DEPTH: Final = 100  # nested arrays and objects
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_PLAIN: Final = r'[^"\\\x00-\x1f]*'
_STRING: Final = re.compile(rf'"{_PLAIN}(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{{4}}){_PLAIN})*')
_WORDS: Final[dict[str, bool | None]] = {"true": True, "false": False, "null": None}
# what may stand at the end of a text that is cut off within a number or an escape
_CUT_NUMBER: Final = re.compile(r"-|-?(?:0|[1-9][0-9]*)(?:\.|(?:\.[0-9]+)?[eE][-+]?)")
_CUT_ESCAPE: Final = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place: text[begin:end] is its JSON.

    `children` are the nodes of an object or array; None marks a leaf.
    """

    value: JsonValue
    begin: int
    end: int
    children: dict[str, Node] | list[Node] | None = None

    def find(self, path: Sequence[str | int]) -> Node | None:
        """The node at `path` from here; None if there is none. No index counts from the end."""
        node: Node | None = self
        for step in path:
            if node is None:
                return None
            inner = node.children
            if isinstance(inner, dict) and isinstance(step, str):
                node = inner.get(step)
            elif isinstance(inner, list) and isinstance(step, int) and 0 <= step < len(inner):
                node = inner[step]
            else:
                return None
        return node

    def leaves(self) -> list[Node]:
        """All values that hold no others, in the order of the text."""
        if self.children is None:
            return [self]
        inner = self.children.values() if isinstance(self.children, dict) else self.children
        return sorted((leaf for node in inner for leaf in node.leaves()), key=lambda n: n.begin)


class MalformedJsonError(Exception):
    """The text is not JSON: `problem` at offset `at`, `cut_off` if it ends too early.

    It never leaves this package: parse() makes an OutputError of it, a contract a ContractError.
    """

    def __init__(self, at: int, problem: str, *, cut_off: bool = False) -> None:
        super().__init__(problem)
        self.at = at
        self.problem = problem
        self.cut_off = cut_off


def parse(text: str, what: str, limit: int | None = None) -> Node:
    """The value that `text` holds, with the places of all its parts.

    Of keys that occur twice the last one counts, as in Python's json; NaN and infinities are
    refused. `what` stands for the text in messages, `limit` is the number of tokens that it could
    have. Raises OutputError with the offset of what is wrong.
    """
    try:
        return scan(text)
    except MalformedJsonError as error:
        if not error.cut_off:
            raise OutputError(
                f"{what} is not JSON: at character {error.at}: {error.problem}; decode it under "
                "the contract's response_format"
            ) from None
        tokens = "its limit of tokens" if limit is None else f"its limit of {limit} tokens"
        raise OutputError(
            f"{what} ends in the middle of its JSON: {error.problem} after {len(text)} characters; "
            f"it was probably cut off at {tokens}: raise max_completion_tokens"
        ) from None


def scan(text: str) -> Node:
    """As parse(), but raises MalformedJsonError."""
    parser = _Parser(text)
    node = parser.value(parser.skip(0), 0)
    rest = parser.skip(node.end)
    if rest < len(text):
        raise MalformedJsonError(rest, f"expected the end, found {parser.found(rest)}")
    return node


class _Parser:
    """Recursive descent over one text; each method starts at an offset behind any space."""

    def __init__(self, text: str) -> None:
        self.text = text

    def skip(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        return at if match is None else match.end()

    def found(self, at: int) -> str:
        return repr(self.text[at : at + 20])

    def wrong(self, at: int, expected: str) -> MalformedJsonError:
        if at >= len(self.text):
            return MalformedJsonError(at, f"expected {expected}", cut_off=True)
        return MalformedJsonError(at, f"expected {expected}, found {self.found(at)}")

    def value(self, at: int, depth: int) -> Node:
        first = self.text[at : at + 1]
        if depth > MAX_DEPTH:
            raise MalformedJsonError(at, f"more than {MAX_DEPTH} arrays and objects in each other")
        if first == "{":
            return self.object(at, depth)
        if first == "[":
            return self.array(at, depth)
        if first == '"':
            return self.string(at)
        for word, value in _WORDS.items():
            if self.text.startswith(word, at):
                return Node(value, at, at + len(word))
            if first and len(self.text) - at < len(word) and word.startswith(self.text[at:]):
                raise self.wrong(len(self.text), word)
        return self.number(at)

    def object(self, at: int, depth: int) -> Node:
        nodes: dict[str, Node] = {}
        end = self.skip(at + 1)
        while self.text[end : end + 1] != "}":
            if nodes:
                end = self.separator(end, "}")
            if self.text[end : end + 1] != '"':
                raise self.wrong(end, "a key in double quotes" + ("" if nodes else " or '}'"))
            key = self.string(end)
            end = self.skip(key.end)
            if self.text[end : end + 1] != ":":
                raise self.wrong(end, "':'")
            node = self.value(self.skip(end + 1), depth + 1)
            nodes[str(key.value)] = node
            end = self.skip(node.end)
        return Node({key: node.value for key, node in nodes.items()}, at, end + 1, nodes)

    def array(self, at: int, depth: int) -> Node:
        nodes: list[Node] = []
        end = self.skip(at + 1)
        while self.text[end : end + 1] != "]":
            if nodes:
                end = self.separator(end, "]")
            nodes.append(self.value(end, depth + 1))
            end = self.skip(nodes[-1].end)
        return Node([node.value for node in nodes], at, end + 1, nodes)

    def separator(self, at: int, closing: str) -> int:
        if self.text[at : at + 1] != ",":
            raise self.wrong(at, f"',' or '{closing}'")
        return self.skip(at + 1)

    def string(self, at: int) -> Node:
        match = _STRING.match(self.text, at)
        end = at if match is None else match.end()
        if self.text[end : end + 1] == '"':
            return Node(json.loads(self.text[at : end + 1]), at, end + 1)
        if end == len(self.text) or _CUT_ESCAPE.fullmatch(self.text, end):
            raise self.wrong(len(self.text), "the rest of a string")
        raise MalformedJsonError(end, f"a string cannot hold {self.found(end)} as it is")

    def number(self, at: int) -> Node:
        match = _NUMBER.match(self.text, at)
        if _CUT_NUMBER.fullmatch(self.text, at):
            raise self.wrong(len(self.text), "the rest of a number")
        if match is None:
            raise self.wrong(at, "a value")
        digits = match[0]
        try:
            number = float(digits) if set(".eE") & set(digits) else int(digits)
        except ValueError:  # Python converts integers of some thousand digits only
            number = math.inf
        if not -math.inf < number < math.inf:
            raise MalformedJsonError(at, f"the number {digits[:20]}… is too large")
        return Node(number, at, match.end())
