"""Where in a value a rule works, and replacing what is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from .json_offsets import JsonValue, Path

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
