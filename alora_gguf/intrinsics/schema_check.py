"""Whether a JSON Schema is one: the values of the well-known keywords are of the right kinds.

What a grammar can be made of is the grammar compiler's business; unknown keywords are left to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from .json_offsets import JsonValue, Path
from .paths import show_value

ABOUT: Final = "x-alora"
"""The keyword, at the top of a schema, that says what an intrinsic's reply is about."""

_ABOUT: Final = {"judges": ("question", "answer"), "good": ("high", "low")}
_TYPES: Final = ("array", "boolean", "integer", "null", "number", "object", "string")
_BOUNDS: Final = (
    ("minItems", "maxItems"),
    ("minLength", "maxLength"),
    ("minProperties", "maxProperties"),
    ("minContains", "maxContains"),
    ("minimum", "maximum"),
)


class Problem(NamedTuple):
    """What is wrong with a schema, and where."""

    path: Path
    expected: str
    found: str


def find_problem(schema: JsonValue) -> Problem | None:
    """The first thing that is wrong with a schema of at least one keyword; None if nothing is."""
    if not isinstance(schema, dict) or not schema:
        found = "an empty object" if schema == {} else show_value(schema)
        return Problem((), 'a JSON Schema, which is an object such as {"type": "object"}', found)
    return next(_problems(schema, ()), None)


def _problems(schema: JsonValue, path: Path) -> Iterator[Problem]:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield Problem(path, "a schema (an object, true or false)", show_value(schema))
        return
    for keyword, value in schema.items():
        here = (*path, keyword)
        if keyword in _VALUES:
            wanted, fits = _VALUES[keyword]
            if not fits(value):
                yield Problem(here, wanted, show_value(value))
        elif keyword in _CHECKS:
            yield from _CHECKS[keyword](value, here)
    for low, high in _BOUNDS:
        a, b = schema.get(low), schema.get(high)
        if _is_number(a) and _is_number(b) and a > b:  # type: ignore[operator] # numbers
            yield Problem((*path, high), f"{high} of at least {low}, {a}", show_value(b))


def _schema_map(value: JsonValue, path: Path) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(path, "an object of schemas", show_value(value))
    else:
        for name, schema in value.items():
            yield from _problems(schema, (*path, name))


def _schema_list(value: JsonValue, path: Path) -> Iterator[Problem]:
    if not isinstance(value, list) or not value:
        found = "an empty array" if value == [] else show_value(value)
        yield Problem(path, "an array of schemas, at least one", found)
    else:
        for i, schema in enumerate(value):
            yield from _problems(schema, (*path, i))


def _schema_or_list(value: JsonValue, path: Path) -> Iterator[Problem]:
    return _schema_list(value, path) if isinstance(value, list) else _problems(value, path)


def _type(value: JsonValue, path: Path) -> Iterator[Problem]:
    names = value if isinstance(value, list) else [value]
    for i, name in enumerate(names):
        if name not in _TYPES:
            at = (*path, i) if isinstance(value, list) else path
            yield Problem(at, f"one of {', '.join(_TYPES)}", show_value(name))
    if not names:
        yield Problem(path, "at least one type", "an empty array")


def _about(value: JsonValue, path: Path) -> Iterator[Problem]:
    if len(path) > 1:
        yield Problem(path, "at the top of the schema", "it within")
    elif not isinstance(value, dict):
        yield Problem(path, 'an object such as {"judges": "answer"}', show_value(value))
    else:
        for name, word in value.items():
            words = _ABOUT.get(name)
            if words is None:
                yield Problem((*path, name), f"one of {', '.join(_ABOUT)}", repr(name))
            elif word not in words:
                yield Problem((*path, name), f"one of {', '.join(words)}", show_value(word))


def _is_number(value: JsonValue) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: JsonValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_names(value: JsonValue) -> bool:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return False
    return len(set(map(str, value))) == len(value)


_Fits = Callable[[JsonValue], bool]
_Check = Callable[[JsonValue, Path], Iterator[Problem]]
_KINDS: Final[Iterable[tuple[str, _Fits, str]]] = (
    ("a text", lambda v: isinstance(v, str),
     "$schema $id $ref $anchor $comment title description format pattern"),
    ("true or false", lambda v: isinstance(v, bool), "uniqueItems deprecated readOnly writeOnly"),
    ("a number", _is_number, "minimum maximum exclusiveMinimum exclusiveMaximum"),
    ("a number above 0", lambda v: _is_number(v) and v > 0,  # type: ignore[operator]
     "multipleOf"),
    ("an integer of at least 0", _is_count,
     "minItems maxItems minLength maxLength minProperties maxProperties minContains maxContains"),
    ("an array of texts, each once", _are_names, "required"),
    ("an array of at least one value", lambda v: isinstance(v, list) and bool(v), "enum"),
)  # fmt: skip
_VALUES: Final = {word: (kind, fits) for kind, fits, words in _KINDS for word in words.split()}
_SHAPES: Final[Iterable[tuple[_Check, str]]] = (
    (_about, ABOUT),
    (_type, "type"),
    (_schema_map, "properties patternProperties $defs definitions dependentSchemas"),
    (_schema_list, "anyOf oneOf allOf prefixItems"),
    (_schema_or_list, "items"),
    (_problems, "additionalProperties additionalItems not contains propertyNames if then else"),
    (_problems, "unevaluatedItems unevaluatedProperties"),
)
_CHECKS: Final = {word: check for check, words in _SHAPES for word in words.split()}
