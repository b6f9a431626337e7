"""What rules share: the reply as they see it, its tokens and the sentences it may refer to, and
how they replace what is at a path.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from alora_gguf.errors import InputError, OutputError
from alora_gguf.options import TokenLogprob

from .json_offsets import JsonValue, Node, Path
from .sentences import Sentence

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
