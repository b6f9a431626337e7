"""The fields of a contract, from what the file says to what they mean: all but its rules.

Each reader takes an item that is not null, and raises ContractError, with the line, for what the
field cannot be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any, Final

from .json_offsets import JsonValue, MalformedJsonError, scan
from .schema_check import find_problem
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
    problem = find_problem(schema)
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
