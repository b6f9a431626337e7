"""A reply as rules see it: its JSON with the place of each value, its tokens and the sentences it
may refer to; and how rules replace what is at a path.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, TypeAlias

from alora_gguf._calls import check_texts
from alora_gguf.errors import InputError, OutputError
from alora_gguf.options import TokenLogprob, TopLogprob

from .sentences import Sentence

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
Path: TypeAlias = tuple[str | int, ...]
"""From the root to a value: the keys of objects and the indices of arrays."""
PathPattern: TypeAlias = tuple[str | int | None, ...]
"""Keys and indices from the root; None stands for any one of them."""
Tokens: TypeAlias = tuple[int, ...]
Further: TypeAlias = Mapping[Tokens, Sequence[TopLogprob]]
"""After beginnings of a reply, in tokens, what can come next."""
Places: TypeAlias = dict[Path, tuple[int, int]]
"""Where the values of a JSON text stand in it: text[begin:end] is the JSON of the one at a path."""

MAX_DEPTH: Final = 100  # nested arrays and objects, of a reply and of an answer
MAX_MADE: Final = 200_000  # fields and items of an answer, and those that all rules make
MAX_CHARACTERS: Final = 4 << 20  # of the strings of an answer: rules repeat sentences and fields
# of a valid JSON text: a string, with the colon behind a key; a bracket; or another value
_PIECE: Final = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?|[][{}]|[^][{}",:\s]+')
# what the parser stops at where a text is cut off within a word, a number or an escape
_CUT: Final = re.compile(
    r"\s*(?:-|(?<=[0-9])(?:\.|[eE][-+]?)|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?)?"
)
_CUT_ESCAPE: Final = re.compile(r"\\(?:u[0-9a-fA-F]{0,4})?\Z")


def _number(word: str) -> int | float:
    number = float(word)
    if not math.isfinite(number):
        raise OverflowError(word)
    return number if set(word) & set(".eE") else int(word)


_DECODER: Final = json.JSONDecoder(parse_int=_number, parse_float=_number, parse_constant=_number)


def scan(text: str) -> tuple[JsonValue, Places]:
    """The value of a JSON text, and where it and all its parts stand.

    Of keys that occur twice the last one counts. Raises json.JSONDecodeError, also for NaN,
    infinities and halves of surrogate pairs, which Python's parser takes, and for values that are
    nested too deeply.
    """
    try:
        value = _DECODER.decode(text)
    except OverflowError as error:
        word = str(error)
        problem = f"{word[:20]} is too large a number, or none in JSON"
        raise json.JSONDecodeError(problem, text, text.find(word)) from None
    except RecursionError:
        raise _too_deep(text) from None
    try:
        check_texts(value, "it")
    except InputError as error:
        raise json.JSONDecodeError(str(error), text, text.find("\\u")) from None
    return value, _places(text)


def _places(text: str) -> Places:
    places: Places = {}
    opened: list[tuple[Path, int]] = []  # the arrays and objects around, and where they begin
    here: Path = ()
    repeated = False
    for piece in _PIECE.finditer(text):
        word, begin = piece[0], piece.start()
        if piece[2]:
            here = (*opened[-1][0], json.loads(piece[1]))
            repeated = repeated or here in places
            continue
        if word in ("[", "{"):
            opened.append((here, begin))
            if len(opened) > MAX_DEPTH:
                raise _too_deep(text)
            here = (*here, 0)
            continue
        if word in ("]", "}"):
            here, begin = opened.pop()
        places[here] = begin, piece.end()
        if here and isinstance(here[-1], int):
            here = (*here[:-1], here[-1] + 1)
    if repeated:  # what was in the first value of a key began before the second one
        places = {
            path: at
            for path, at in places.items()
            if all(places[path[:i]][0] <= at[0] for i in range(len(path)))
        }
    return places


def _too_deep(text: str) -> json.JSONDecodeError:
    return json.JSONDecodeError(f"more than {MAX_DEPTH} arrays and objects in each other", text, 0)


def is_cut_off(error: json.JSONDecodeError) -> bool:
    """Whether the text is the beginning of JSON, as far as the parser came."""
    return bool(
        _CUT.fullmatch(error.doc, error.pos)
        or error.msg.startswith("Unterminated string")
        or (error.msg.startswith("Invalid \\") and _CUT_ESCAPE.search(error.doc))
    )


def parse(
    text: str, what: str, limit: int | None = None, choices: Sequence[str] = ()
) -> tuple[JsonValue, Places]:
    """As scan(), but raises OutputError; with `choices` the text is one of them, and no JSON.

    `what` stands for the text in messages, `limit` is the number of tokens that it could have.
    """
    if choices:
        if text in choices:
            return text, {(): (0, len(text))}
        listed = ", ".join(map(repr, choices[:12])) + (", ..." if len(choices) > 12 else "")
        raise OutputError(
            f"{what} is {show_value(text)}, expected one of {listed}; decode it under the "
            "contract's choices, with a limit of tokens that has room for each"
        )
    try:
        return scan(text)
    except json.JSONDecodeError as error:
        if not is_cut_off(error):
            problem, found = error.msg.removesuffix(" at"), text[error.pos : error.pos + 20]
            raise OutputError(
                f"{what} is not JSON: at character {error.pos}: {problem}, found {found!r}; decode "
                "it under the contract's response_format"
            ) from None
        tokens = "its limit of tokens" if limit is None else f"its limit of {limit} tokens"
        raise OutputError(
            f"{what} ends in the middle of its JSON, after {len(text)} characters; it was "
            f"probably cut off at {tokens}: raise max_completion_tokens"
        ) from None


def replace_at(
    value: JsonValue,
    pattern: PathPattern,
    change: Callable[[JsonValue, Path], JsonValue],
    here: Path = (),
) -> JsonValue:
    """A copy of `value` in which all that `pattern` matches is what `change` makes of it.

    `change` is given the old value and its path. What matches nothing changes nothing: a list may
    be empty and a field optional. `here` is the path of `value` itself.
    """
    if len(here) == len(pattern):
        return change(value, here)
    wanted = pattern[len(here)]
    if isinstance(value, dict):
        return {
            key: replace_at(v, pattern, change, (*here, key)) if wanted in (None, key) else v
            for key, v in value.items()
        }
    if isinstance(value, list):
        return [
            replace_at(v, pattern, change, (*here, i)) if wanted in (None, i) else v
            for i, v in enumerate(value)
        ]
    return value


def show_path(path: Path) -> str:
    """A path for messages, such as `[0].score`; the root is "the root"."""
    parts = [f".{step}" if isinstance(step, str) else f"[{step}]" for step in path]
    return "".join(parts).removeprefix(".") or "the root"


def show_value(value: object) -> str:
    """What a value is, of a bounded length."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


@dataclass
class Reply:
    """What a rule may look at besides the value that other rules have changed.

    `source` stands for it in messages. `tokens` are those of the text, None if nothing weighs them;
    `further` has what can come after other beginnings than the reply's own, by their tokens;
    `temperatures` are those that calibrate categories, as gguf.decisions.temperature_of() has them.
    `used` collects the tokens that were weighed, `shares` the probabilities of a rule's categories
    at a place, `unread` the beginnings that `further` would have
    to have, with log-probabilities; `made` counts the fields and items of new values.
    """

    source: str
    text: str
    value: JsonValue
    places: Places
    tokens: Sequence[TokenLogprob] | None
    sentences: Mapping[str, tuple[Sentence, ...]]
    further: Further = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    unread: dict[Tokens, float] = field(default_factory=dict)
    used: list[TokenLogprob] = field(default_factory=list)
    shares: dict[Path, tuple[float, ...]] = field(default_factory=dict)
    made: int = 0

    def make(self, n: int, rule: str) -> None:
        """Counts what a rule is about to make. Raises OutputError if it is too much."""
        self.made += n
        if self.made > MAX_MADE:
            raise self._too_large(rule, f"more than {MAX_MADE} fields and items")

    def check(self, value: JsonValue, rule: str) -> None:
        """Raises OutputError if what a rule has made is too deep or says too much."""
        values, characters, depth, level = 0, 0, 0, [value]
        while level:
            characters += sum(len(part) for part in level if isinstance(part, str))
            parts = [part for part in level if isinstance(part, (dict, list))]
            characters += sum(sum(map(len, part)) for part in parts if isinstance(part, dict))
            values += sum(map(len, parts))  # a part may stand in many places
            depth += bool(parts)
            if values > MAX_MADE:
                raise self._too_large(rule, f"more than {MAX_MADE} fields and items")
            if characters > MAX_CHARACTERS:
                raise self._too_large(rule, f"more than {MAX_CHARACTERS} characters")
            if depth > MAX_DEPTH:
                raise self._too_large(rule, f"more than {MAX_DEPTH} arrays and objects in a row")
            level = [
                inner
                for part in parts
                for inner in (part.values() if isinstance(part, dict) else part)
            ]

    def _too_large(self, rule: str, found: str) -> OutputError:
        return OutputError(f"{self.source}: rule {rule}: makes {found} of it; simplify the rules")

    def token_at(self, offset: int) -> tuple[int, int]:
        """The index of the token that the character at `offset` is of, and where it begins.

        A token without text is a part of a character, which belongs to a later one.
        """
        tokens = self.tokens or ()
        ends = list(accumulate(len(token.text) for token in tokens))
        i = bisect_right(ends, offset)
        return i, ends[i] - len(tokens[i].text)


def check_spelling(tokens: Sequence[TokenLogprob], text: str, source: str) -> None:
    """Raises InputError unless the tokens' texts, one after the other, are the text; more tokens
    may follow, such as one that ends the reply.
    """
    ends = accumulate((len(token.text) for token in tokens), initial=0)
    spelled = "".join(token.text for token in tokens)
    if not spelled.startswith(text) or len(text) not in ends:
        pairs = enumerate(zip(spelled, text, strict=False))
        shorter = min(len(spelled), len(text))
        same = next((i for i, (a, b) in pairs if a != b), shorter)
        raise InputError(
            f"{source}: the tokens' texts differ from the reply from character {same} on: "
            f"{spelled[same : same + 20]!r} against {text[same : same + 20]!r}; pass the tokens of "
            "this very reply"
        )
