"""The fields of a contract that are no list of rules, from what the file says to what they mean."""

from __future__ import annotations

import re
from string import Formatter
from typing import Final, Literal, cast

from .json_offsets import JsonValue, MalformedJsonError, Node, scan
from .schema_check import Problem, find_problem
from .sentences import PLACES
from .yaml_file import Item

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DOCUMENTS: Final = ("string", "json", "roles")
_BRACES: Final = "write {{ and }} for braces"


def read_text(item: Item | None) -> str | None:
    """A field that is a text, or not there. Each of these raises ContractError for another one."""
    return None if item is None else item.text("put it in quotes, or write `~` for null")


def read_flag(item: Item | None) -> bool:
    """A field that is true or false; false if it is not there."""
    if item is None:
        return False
    if not isinstance(item.value, bool):
        raise item.error("true, false or null", "correct it")
    return item.value


def read_documents(item: Item | None) -> Literal["string", "json", "roles"] | None:
    """`docs_as_message`."""
    if item is None:
        return None
    if not isinstance(item.value, str) or item.value not in _DOCUMENTS:
        raise item.error(f"one of {', '.join(_DOCUMENTS)} or null", "correct it")
    return cast(Literal["string", "json", "roles"], item.value)


def read_sentences(item: Item | None) -> dict[str, str] | None:
    """`sentence_boundaries`: from places to the prefixes of their sentences' tags."""
    if item is None:
        return None
    wanted = f'a mapping from {", ".join(PLACES)} to prefixes, such as {{last_message: "r"}}'
    out = {}
    for key, value in item.entries(wanted, "write `~` if no sentences are numbered"):
        if not isinstance(key.value, str) or key.value not in PLACES:
            raise key.error(f"one of {', '.join(PLACES)}", "correct it")
        out[key.value] = value.text('give the letters before the number, such as "c" for <c0>')
    return out


def read_instruction(item: Item | None) -> tuple[str | None, tuple[str, ...]]:
    """The template and the names of its fields, each once and in order.

    Only plain `{name}` is a field: attributes, indices, conversions and formats are refused, for
    str.format() would follow them into Python's insides.
    """
    if item is None:
        return None, ()
    template = item.text("write `~` if there is no instruction")
    names: list[str] = []
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise item.error(
            f"fields such as {{last_message}}: {error}", _BRACES, found="a brace without another"
        ) from None
    offset = 0
    for text, name, spec, conversion in parts:
        offset += len(text) + text.count("{") + text.count("}")  # which were doubled
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
        if name not in names:
            names.append(name)
    return template, tuple(names)


def read_schema(item: Item | None) -> dict[str, JsonValue] | None:
    """`response_format`: a JSON Schema as a text in JSON, or as YAML."""
    if item is None:
        return None
    fix = "correct the schema"
    if not isinstance(item.value, str):
        schema = item.plain()
        problem = find_problem(schema)
        if problem is not None:
            at = item.find(problem.path)
            where = _where(problem)
            raise at.error(f"{where}{problem.expected}", fix, found=problem.found)
        return cast(dict[str, JsonValue], schema)
    try:
        root = scan(item.value)
    except MalformedJsonError as error:
        at_end = "the text ends there" if error.cut_off else "no JSON"
        raise item.error(
            f"a JSON Schema: {error.problem}",
            "write it in JSON: double quotes, commas between, none after the last",
            found=at_end,
            line=item.line_of(min(error.at, len(item.value.rstrip()))),
        ) from None
    problem = find_problem(root.value)
    if problem is not None:
        node = _nearest(root, problem)
        raise item.error(
            f"{_where(problem)}{problem.expected}",
            fix,
            found=problem.found,
            line=item.line_of(node.begin),
        )
    return cast(dict[str, JsonValue], root.value)


def _nearest(root: Node, problem: Problem) -> Node:
    return root.find(problem.path) or root


def _where(problem: Problem) -> str:
    return f"'{'/'.join(map(str, problem.path))}' to be " if problem.path else ""
