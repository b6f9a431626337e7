"""What rules share: the reply as they see it, its JSON with the place of each value, its tokens and
the sentences it may refer to; and how they replace what is at a path.

Python's own parser tells no positions, and a likelihood needs the tokens that a value is made of.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from alora_gguf.errors import InputError, OutputError
from alora_gguf.options import TokenLogprob

from .sentences import Sentence

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


PathPattern: TypeAlias = tuple[str | int | None, ...]
"""Keys and indices from the root; None stands for any one of them."""


def replace_at(
    value: JsonValue, pattern: PathPattern, change: Callable[[JsonValue, Path], JsonValue]
) -> JsonValue:
    """A copy of `value` in which all that `pattern` matches is what `change` makes of it.

    `change` is given the old value and its path. What matches nothing changes nothing: a list may
    be empty and a field optional.
    """
    return _replace(value, pattern, (), change)


def _replace(
    value: JsonValue,
    pattern: PathPattern,
    here: Path,
    change: Callable[[JsonValue, Path], JsonValue],
) -> JsonValue:
    if len(here) == len(pattern):
        return change(value, here)
    wanted = pattern[len(here)]
    if isinstance(value, dict):
        return {
            key: _replace(inner, pattern, (*here, key), change) if wanted in (None, key) else inner
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [
            _replace(inner, pattern, (*here, i), change) if wanted in (None, i) else inner
            for i, inner in enumerate(value)
        ]
    return value


def show_path(path: Sequence[str | int | None]) -> str:
    """A path for messages, such as `[0].score`; the root is "the root"."""
    if not path:
        return "the root"
    parts = [f".{p}" if isinstance(p, str) else f"[{'*' if p is None else p}]" for p in path]
    return "".join(parts).removeprefix(".")


def show_value(value: JsonValue) -> str:
    """What a value is, of a bounded length."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}..."


class Tokens:
    """The tokens of a text by where they stand in it.

    Raises InputError unless the tokens' texts, one after the other, are the text.
    """

    def __init__(self, tokens: Sequence[TokenLogprob], text: str, source: str) -> None:
        spelled = "".join(token.text for token in tokens)
        if spelled != text:
            same = next((i for i, (a, b) in enumerate(zip(spelled, text, strict=False)) if a != b),
                        min(len(spelled), len(text)))  # fmt: skip
            raise InputError(
                f"{source}: the tokens' texts differ from the reply from character {same} on: "
                f"{spelled[same : same + 20]!r} against {text[same : same + 20]!r}; pass the "
                "tokens of this very reply, without an end token"
            )
        # a token without text is a part of a character, which belongs to a later one
        self._tokens = [token for token in tokens if token.text]
        self._begins = []
        end = 0
        for token in self._tokens:
            self._begins.append(end)
            end += len(token.text)

    def at(self, offset: int) -> tuple[TokenLogprob, int]:
        """The token that the character at `offset` is of, and the offset of its beginning."""
        i = bisect_right(self._begins, offset) - 1
        return self._tokens[i], self._begins[i]


@dataclass(frozen=True)
class Reply:
    """What a rule may look at besides the value; `used` collects the tokens that it weighed."""

    source: str
    root: Node
    tokens: Tokens | None
    sentences: Mapping[str, tuple[Sentence, ...]]
    used: list[TokenLogprob] = field(default_factory=list)

    def error(self, rule: str, problem: str, fix: str) -> OutputError:
        """What to raise where the reply is not what a rule expects."""
        return OutputError(f"{self.source}: rule {rule}: {problem}; {fix}")
