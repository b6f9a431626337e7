"""The fields of a contract, from what the file says to what they mean: all but its rules.

Each reader takes an item that is not null, and raises ContractError, with the line, for what the
field cannot be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from string import Formatter
from typing import Any, Final, NamedTuple

from .reply import JsonValue, MalformedJsonError, Path, scan, show_value
from .sentences import PLACES
from .yaml_file import Item

Reader = Callable[[Item], Any]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DOCUMENTS: Final = ("string", "json", "roles")
_BRACES: Final = "write {{ and }} for braces"


def read_fields(item: Item, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """A mapping's values by name; one that is null is left out, as if it were not there."""
    out: dict[str, Any] = {}
    for key, value in item.entries("a mapping from parameters to values, or null", "write `~`"):
        reader = readers.get(key.value) if isinstance(key.value, str) else None
        if reader is None:
            raise key.error(f"one of {', '.join(readers)}", "remove it")
        if not value.is_null:
            out[str(key.value)] = reader(value)
    return out


def _text(item: Item) -> str:
    return item.text("put it in quotes, or write `~` for null")


def _flag(wanted: str) -> Reader:
    return _of(wanted, lambda value: isinstance(value, bool))


def _of(wanted: str, fits: Callable[[Any], bool], fix: str = "correct it") -> Reader:
    def read(item: Item) -> Any:
        if not fits(item.value):
            raise item.error(wanted, fix)
        return item.value

    return read


def is_number(value: object) -> bool:
    """Whether a value is a number; true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(wanted: str, fits: Callable[[Any], bool]) -> Reader:
    def read(item: Item) -> Any:
        if not is_number(item.value):
            raise item.error(wanted, "write it as a number, without quotes")
        return _of(wanted, lambda value: math.isfinite(value) and fits(value))(item)

    return read


def _integer(low: int, high: int | None = None) -> Reader:
    wanted = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    top = 2**31 - 1 if high is None else high
    return _of(wanted, lambda v: isinstance(v, int) and is_number(v) and low <= v <= top)


def _sentences(item: Item) -> dict[str, str]:
    """From places to the prefixes of their sentences' tags."""
    wanted = f'a mapping from {", ".join(PLACES)} to prefixes, such as {{last_message: "r"}}'
    out = {}
    for key, value in item.entries(wanted, "write `~` if no sentences are numbered"):
        if not isinstance(key.value, str) or key.value not in PLACES:
            raise key.error(f"one of {', '.join(PLACES)}", "correct it")
        out[key.value] = value.text('give the letters before the number, such as "c" for <c0>')
    return out


def _instruction(item: Item) -> tuple[str, tuple[str, ...]]:
    """The template and the names of its fields, each once and in order.

    Only plain `{name}` is a field: attributes, indices, conversions and formats are refused, for
    str.format() would follow them into Python's insides.
    """
    template = item.text("write `~` if there is no instruction")
    names: list[str] = []
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise item.error(
            f"fields such as {{last_message}}: {error}", _BRACES, found="a brace without another"
        ) from None
    offset = 0
    for literal, name, spec, conversion in parts:
        offset += len(literal) + literal.count("{") + literal.count("}")  # which were doubled
        if name is None:
            continue
        shown = "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        if not _NAME.fullmatch(name) or conversion or spec:
            raise item.error(
                "fields that are plain names, such as {last_message}",
                f"only names can be filled in; {_BRACES}",
                found=f"{shown[:60]}}}",
                line=item.line_of(offset),
            )
        offset += len(shown) + 1
        names.append(name)
    return template, tuple(dict.fromkeys(names))


def _schema(item: Item) -> JsonValue:
    """A JSON Schema as a text in JSON, or as YAML."""
    root = None
    if isinstance(item.value, str):
        try:
            root = scan(item.value)
        except MalformedJsonError as error:
            raise item.error(
                f"a JSON Schema: {error.problem}",
                "write it in JSON: double quotes, commas between, none after the last",
                found="the text ends there" if error.cut_off else "no JSON",
                line=item.line_of(min(error.at, len(item.value.rstrip()))),
            ) from None
    schema = item.plain() if root is None else root.value
    problem = _find_problem(schema)
    if problem is not None:
        where = f"'{'/'.join(map(str, problem.path))}' to be " if problem.path else ""
        at = item.find(problem.path) if root is None else item
        line = None if root is None else item.line_of((root.find(problem.path) or root).begin)
        expected = f"{where}{problem.expected}"
        raise at.error(expected, "correct the schema", found=problem.found, line=line)
    return schema


def _only(value: JsonValue) -> Reader:
    return _of(
        str(value).lower(),
        lambda found: found == value and type(found) is type(value),
        "an intrinsic has one reply, and rules need all of it: remove it",
    )


def _stop(item: Item) -> JsonValue:
    wanted, fix = (
        "a text, or a list of texts",
        "put each in quotes; an empty one would stop at once",
    )
    if isinstance(item.value, str) and item.value:
        return item.value
    return [part.text(fix) for part in item.elements(wanted, fix)]


def _mapping(item: Item) -> JsonValue:
    item.entries("a mapping", "write `~` if there is nothing in it")
    return item.plain()


def _parameters(item: Item) -> dict[str, JsonValue]:
    found = read_fields(item, PARAMETERS)
    tokens = [found[name] for name in ("max_completion_tokens", "max_tokens") if name in found]
    if len(set(map(str, tokens))) > 1:
        raise item.error(
            "max_completion_tokens or max_tokens, which mean the same",
            "remove one of them",
            found=f"{tokens[0]} and {tokens[1]}",
        )
    return found


_SAMPLING: Final[Mapping[str, Reader]] = {
    "top_k": _integer(-1),
    "min_p": _number("a number from 0 to 1", lambda v: 0 <= v <= 1),
    "repetition_penalty": _number("a number above 0", lambda v: v > 0),
    "seed": _integer(0, 2**32 - 1),
    "stop": _stop,
}
EXTRA: Final[Mapping[str, Reader]] = {
    **_SAMPLING,
    "chat_template_kwargs": _mapping,
    **dict.fromkeys(
        ("add_generation_prompt", "skip_special_tokens", "spaces_between_special_tokens"),
        _flag("true or false"),
    ),
}
_PENALTY: Final = _number("a number from -2 to 2", lambda v: -2 <= v <= 2)
PARAMETERS: Final[Mapping[str, Reader]] = {
    "temperature": _number("a number of at least 0", lambda v: v >= 0),
    "top_p": _number("a number from 0 to 1, but not 0", lambda v: 0 < v <= 1),
    **_SAMPLING,
    "max_completion_tokens": _integer(1),
    "max_tokens": _integer(1),
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "n": _only(1),
    "stream": _only(False),
    "logprobs": _flag("true or false"),
    "top_logprobs": _integer(0, 20),
    "extra_body": lambda item: read_fields(item, EXTRA),
}
FIELDS: Final[Mapping[str, Reader]] = {
    "model": _text,
    "response_format": _schema,
    "name": _text,
    "instruction": _instruction,
    "parameters": _parameters,
    "sentence_boundaries": _sentences,
    "docs_as_message": _of(
        f"one of {', '.join(_DOCUMENTS)} or null",
        lambda value: isinstance(value, str) and value in _DOCUMENTS,
    ),
    "logprobs_workaround": _flag("true, false or null"),
}
"""The fields that are not rules."""


# JSON Schemas -------------------------------------------------------------------------------------

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


class _Problem(NamedTuple):
    """What is wrong with a schema, and where."""

    path: Path
    expected: str
    found: str


def _find_problem(schema: JsonValue) -> _Problem | None:
    """The first thing that is wrong with a schema of at least one keyword; None if nothing is.

    The values of well-known keywords must be of the right kinds. What a grammar can be made of is
    the grammar compiler's business, and unknown keywords are left to it.
    """
    if not isinstance(schema, dict) or not schema:
        found = "an empty object" if schema == {} else show_value(schema)
        return _Problem((), 'a JSON Schema, which is an object such as {"type": "object"}', found)
    return next(_problems(schema, ()), None)


def _problems(schema: JsonValue, path: Path) -> Iterator[_Problem]:
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        yield _Problem(path, "a schema (an object, true or false)", show_value(schema))
        return
    for keyword, value in schema.items():
        here = (*path, keyword)
        if keyword in _VALUES:
            wanted, fits = _VALUES[keyword]
            if not fits(value):
                yield _Problem(here, wanted, show_value(value))
        elif keyword in _CHECKS:
            yield from _CHECKS[keyword](value, here)
    for low, high in _BOUNDS:
        a, b = schema.get(low), schema.get(high)
        if is_number(a) and is_number(b) and a > b:  # type: ignore[operator] # numbers
            yield _Problem((*path, high), f"{high} of at least {low}, {a}", show_value(b))


def _schema_map(value: JsonValue, path: Path) -> Iterator[_Problem]:
    if not isinstance(value, dict):
        yield _Problem(path, "an object of schemas", show_value(value))
    else:
        for name, schema in value.items():
            yield from _problems(schema, (*path, name))


def _schema_list(value: JsonValue, path: Path) -> Iterator[_Problem]:
    if not isinstance(value, list) or not value:
        found = "an empty array" if value == [] else show_value(value)
        yield _Problem(path, "an array of schemas, at least one", found)
    else:
        for i, schema in enumerate(value):
            yield from _problems(schema, (*path, i))


def _schema_or_list(value: JsonValue, path: Path) -> Iterator[_Problem]:
    return _schema_list(value, path) if isinstance(value, list) else _problems(value, path)


def _type(value: JsonValue, path: Path) -> Iterator[_Problem]:
    names = value if isinstance(value, list) else [value]
    for i, name in enumerate(names):
        if name not in _TYPES:
            at = (*path, i) if isinstance(value, list) else path
            yield _Problem(at, f"one of {', '.join(_TYPES)}", show_value(name))
    if not names:
        yield _Problem(path, "at least one type", "an empty array")


def _about(value: JsonValue, path: Path) -> Iterator[_Problem]:
    if len(path) > 1:
        yield _Problem(path, "at the top of the schema", "it within")
    elif not isinstance(value, dict):
        yield _Problem(path, 'an object such as {"judges": "answer"}', show_value(value))
    else:
        for name, word in value.items():
            words = _ABOUT.get(name)
            if words is None:
                yield _Problem((*path, name), f"one of {', '.join(_ABOUT)}", repr(name))
            elif word not in words:
                yield _Problem((*path, name), f"one of {', '.join(words)}", show_value(word))


def _is_count(value: JsonValue) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_names(value: JsonValue) -> bool:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return False
    return len(set(map(str, value))) == len(value)


_Fits = Callable[[JsonValue], bool]
_Check = Callable[[JsonValue, Path], Iterator[_Problem]]
_KINDS: Final[Iterable[tuple[str, _Fits, str]]] = (
    ("a text", lambda v: isinstance(v, str),
     "$schema $id $ref $anchor $comment title description format pattern"),
    ("true or false", lambda v: isinstance(v, bool), "uniqueItems deprecated readOnly writeOnly"),
    ("a number", is_number, "minimum maximum exclusiveMinimum exclusiveMaximum"),
    ("a number above 0", lambda v: is_number(v) and v > 0,  # type: ignore[operator]
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
