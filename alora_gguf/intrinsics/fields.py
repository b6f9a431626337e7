"""The fields of a contract and the arguments of its rules: from what the file says to the values.

Each reader takes an item that is not null, and raises ContractError, with the line, for what the
field cannot be.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

from alora_gguf._calls import Within
from alora_gguf.errors import InputError
from alora_gguf.options import ABOUT

from .reply import JsonValue, Path, PathPattern, Places, is_cut_off, scan
from .sentences import DOCUMENTS, HISTORY, LAST_MESSAGE, PLACES
from .yaml_file import Item, Scalar

Reader = Callable[[Item], Any]

Pairs: TypeAlias = tuple[tuple[str, str], ...]

# of a Sentence, by its own names, in the order of the new fields
OUTPUTS: Final = ("begin", "end", "text", "document_id", "message_index")
_NAMES: Final = "a list of fields' names, each once"
MAX_INSTRUCTION: Final = 1 << 20  # characters, once filled in: a field may stand there many times
_MAX_PREFIX: Final = 32  # characters, written before each sentence
# of a template: a brace that is written twice, a field, or what is neither
_BRACES: Final = re.compile(
    r"\{\{|\}\}|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<wrong>\{(?:[^{}]|\{[^{}]*\})*\}?|\})"
)


def read_fields(item: Item, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """A mapping's values by name; one that is null is left out, as if it were not there."""
    entries = item.entries("a mapping from parameters to values, or null", "write `~`")
    named = {key.choice(readers, "remove it"): value for key, value in entries.items()}
    return {name: readers[name](value) for name, value in named.items() if not value.is_null}


def is_number(value: object) -> bool:
    """Whether a value is a number; true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _of(wanted: str, fits: Callable[[Any], bool], fix: str = "correct it") -> Reader:
    def read(item: Item) -> Any:
        if not fits(item.value):
            raise item.error(wanted, fix)
        return item.value

    return read


def _within(kind: type, low: float | None = None, high: float | None = None) -> Reader:
    fits, wanted = Within(low, high).test(kind)
    return _of(wanted, fits, "correct it; a number has no quotes")


def _text(item: Item) -> str:
    return item.text("put it in quotes, or write `~` for null")


_FLAG: Final = _of("true or false", lambda value: isinstance(value, bool))


def _sentences(item: Item) -> dict[str, str]:
    """From places to the prefixes of their sentences' tags."""
    wanted = f'a mapping from {", ".join(PLACES)} to prefixes, such as {{last_message: "r"}}'
    fix = 'give the letters before the number, such as "c" for <c0>'
    entries = item.entries(wanted, "write `~` if no sentences are numbered")
    for value in entries.values():
        if len(value.text(fix)) > _MAX_PREFIX:
            found = f"{len(value.text())}"
            raise value.error(f"at most {_MAX_PREFIX} characters", fix, found=found)
    return {key.choice(PLACES): value.text() for key, value in entries.items()}


def _instruction(item: Item) -> str:
    """The template. Only plain `{name}` is a field of one: attributes, indices, conversions and
    formats are refused, which str.format() would follow into Python's insides.
    """
    template = item.text("write `~` if there is no instruction")
    for match in _BRACES.finditer(template):
        wrong = match["wrong"]
        if wrong is not None:
            single = wrong == "}" or not wrong.endswith("}")
            raise item.error(
                "fields that are plain names, such as {last_message}",
                "only names can be filled in; write {{ and }} for braces",
                found="a brace without another" if single else wrong[:60],
                line=item.line_of(match.start()),
            )
    return template


def fields_of(template: str) -> tuple[str, ...]:
    """The names of a template's fields, each once and in order."""
    names = (match["name"] for match in _BRACES.finditer(template))
    return tuple(dict.fromkeys(name for name in names if name))


def fill(template: str, values: Mapping[str, str], source: str) -> str:
    """A template with its fields filled in. Raises InputError if that is too long; `source` stands
    for the contract in the message.
    """
    names = (match["name"] for match in _BRACES.finditer(template))
    n = len(template) + sum(len(values[name]) for name in names if name)
    if n > MAX_INSTRUCTION:
        raise InputError(
            f"{source}: the instruction has {n} characters once its fields are filled in, expected "
            f"at most {MAX_INSTRUCTION}; shorten the messages or arguments that it repeats"
        )
    return _BRACES.sub(
        lambda m: values[m["name"]] if m["name"] else m["wrong"] or m[0][0], template
    )


def _only(value: JsonValue) -> Reader:
    return _of(
        str(value).lower(),
        lambda found: found == value and type(found) is type(value),
        "an intrinsic has one reply, and rules need all of it: remove it",
    )


def _stop(item: Item) -> JsonValue:
    fix = "put each in quotes; an empty one would stop at once"
    if isinstance(item.value, str) and item.value:
        return item.value
    return [part.text(fix) for part in item.elements("a text, or a list of texts", fix)]


def _mapping(item: Item) -> JsonValue:
    item.entries("a mapping", "write `~` if there is nothing in it")
    return item.plain()


def _parameters(item: Item) -> dict[str, JsonValue]:
    found = read_fields(item, PARAMETERS)
    tokens = [found[name] for name in ("max_completion_tokens", "max_tokens") if name in found]
    if len(set(tokens)) > 1:
        raise item.error(
            "max_completion_tokens or max_tokens, which mean the same",
            "remove one of them",
            found=f"{tokens[0]} and {tokens[1]}",
        )
    return found


def _named(item: Item) -> dict[str, Item]:
    """A mapping's values by name; none of anything else."""
    entries = item.value.items() if isinstance(item.value, dict) else ()
    return {str(key.value): value for key, value in entries}


def _response_format(item: Item) -> JsonValue:
    """A schema where a request has it, as contracts for Ollama do: bare, or wrapped as OpenAI's."""
    form = _named(item)
    kind = form["type"].value if "type" in form else None
    if kind == "text":
        return None
    if kind == "json_object" and "schema" not in form:
        return {"type": "object"}
    if kind not in ("json_object", "json_schema"):
        return _schema(item)
    schema = form.get("schema") or _named(form.get("json_schema", item)).get("schema")
    if schema is None:
        wanted = "{type: json_schema, json_schema: {schema: ...}}, or a bare schema"
        raise item.error(wanted, "add the schema")
    return _schema(schema)


_POSITIVE: Final = _of("a number above 0", lambda v: is_number(v) and 0 < v < math.inf)
_PENALTY: Final = _within(float, -2, 2)
_SAMPLING: Final[Mapping[str, Reader]] = {
    "top_k": _within(int, -1),
    "min_p": _within(float, 0, 1),
    "repetition_penalty": _POSITIVE,
    "seed": _within(int, 0, 2**32 - 1),
    "stop": _stop,
    "reasoning_effort": _text,
}
EXTRA: Final[Mapping[str, Reader]] = {
    **_SAMPLING,
    "chat_template_kwargs": _mapping,
    "add_generation_prompt": _FLAG,
    "skip_special_tokens": _FLAG,
    "spaces_between_special_tokens": _FLAG,
}
PARAMETERS: Final[Mapping[str, Reader]] = {
    "temperature": _within(float, 0),
    "top_p": _of("a number above 0, at most 1", lambda v: is_number(v) and 0 < v <= 1),
    **_SAMPLING,
    "max_completion_tokens": _within(int, 1),
    "max_tokens": _within(int, 1),
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "n": _only(1),
    "stream": _only(False),
    "logprobs": _FLAG,
    "top_logprobs": _within(int, 0, 20),
    "response_format": _response_format,
    "extra_body": lambda item: read_fields(item, EXTRA),
}


# JSON Schemas -------------------------------------------------------------------------------------


def _schema(item: Item) -> JsonValue:
    """A JSON Schema as a text in JSON, or as YAML.

    The values of well-known keywords must be of the right kinds. What a grammar can be made of is
    the grammar compiler's business, and unknown keywords are left to it.
    """
    if isinstance(item.value, str):
        try:
            value, places = scan(item.value)
        except json.JSONDecodeError as error:
            raise item.error(
                f"a JSON Schema: {error.msg}",
                "write it in JSON: double quotes, commas between, none after the last",
                found="the text ends there" if is_cut_off(error) else "no JSON",
                line=item.line_of(min(error.pos, len(item.value.rstrip()))),
            ) from None
        item = _item_of_json(item, value, places, item.field)
    if not isinstance(item.value, dict) or not item.value:
        wanted = 'a JSON Schema, which is an object such as {"type": "object"}'
        raise item.error(wanted, "correct the schema")
    schema = item.plain()
    _subschema(item, top=True)
    return schema


def _item_of_json(
    text: Item, value: JsonValue, places: Places, field: str, path: Path = ()
) -> Item:
    """A value of a JSON text, as if it had been written in YAML."""
    line = text.line_of(places[path][0])
    inner: Any = value
    if isinstance(value, list):
        inner = tuple(
            _item_of_json(text, each, places, f"{field}[{i}]", (*path, i))
            for i, each in enumerate(value)
        )
    elif isinstance(value, dict):
        inner = {}
        for key, each in value.items():
            item = _item_of_json(text, each, places, f"{field}.{key}", (*path, key))
            inner[replace(item, value=key)] = item
    return Item(text.source, line, field, inner)


def _subschema(item: Item, *, top: bool = False) -> None:
    if isinstance(item.value, bool):
        return
    if not isinstance(item.value, dict):
        raise item.error("a schema (an object, true or false)", "correct it")
    given = _named(item)
    for name, value in given.items():
        if name == ABOUT and not top:
            raise value.error("it at the top of the schema", "move it", found="it within")
        if name in _KEYWORDS:
            _KEYWORDS[name](value)
    for what in ("Items", "Length", "Properties", "Contains", "imum"):
        low, high = given.get(f"min{what}"), given.get(f"max{what}")
        if low and high and low.value > high.value:  # type: ignore[operator] # both are numbers
            raise high.error(f"at least min{what}, {low.value}", "correct it")


def _schemas_by_name(item: Item) -> None:
    if not isinstance(item.value, dict):
        raise item.error("an object of schemas", "correct it")
    for schema in item.value.values():
        _subschema(schema)


def _schema_list(item: Item) -> None:
    for schema in item.elements("an array of schemas, at least one", "correct it"):
        _subschema(schema)


def _types(item: Item) -> None:
    is_list = isinstance(item.value, tuple)
    for name in item.elements("at least one type", "correct it") if is_list else (item,):
        name.choice(("array", "boolean", "integer", "null", "number", "object", "string"))


def _distinct(item: Item) -> None:
    names = [each.value for each in item.value] if isinstance(item.value, tuple) else [None]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise item.error("an array of texts, each once", "correct it")


def _about(item: Item) -> None:
    if not isinstance(item.value, dict):
        raise item.error('an object such as {"judges": "answer"}', "correct it")
    words = {
        "judges": ("question", "answer"),
        "good": ("high", "low"),
        "form": ("free", "compact", "json.dumps"),
    }
    for key, value in item.value.items():
        value.choice(words[key.choice(words)])


def _choices(item: Item) -> JsonValue:
    """The schema of replies that are one of some words, as they are written in the file: `yes` is a
    text here, though YAML has it as true.
    """
    parts = item.elements("a list of the texts that replies can be", "name at least one")
    for i, part in enumerate(parts):
        if isinstance(part.value, (tuple, dict)) or part.is_null or not part.spelled.strip():
            raise part.error("a text", "put it in quotes")
        if part.spelled in (other.spelled for other in parts[:i]):
            raise part.error("each text once", "remove it", found=f"{part.spelled!r} twice")
    return {"type": "string", "enum": [part.spelled for part in parts], ABOUT: {"form": "text"}}


_KEYWORDS: Final[Mapping[str, Reader]] = {
    word: reader
    for words, reader in {
        "$schema $id $ref $anchor $comment title description format pattern": _of(
            "a text", lambda value: isinstance(value, str)
        ),
        "uniqueItems deprecated readOnly writeOnly": _FLAG,
        "minimum maximum exclusiveMinimum exclusiveMaximum": _of(
            "a number", lambda value: is_number(value) and math.isfinite(value)
        ),
        "multipleOf": _POSITIVE,
        "minItems maxItems minLength maxLength minProperties maxProperties minContains "
        "maxContains": _of(
            "an integer of at least 0", lambda value: type(value) is int and value >= 0
        ),
        "required": _distinct,
        "enum": lambda item: item.elements("an array of at least one value", "correct it"),
        ABOUT: _about,
        "type": _types,
        "properties patternProperties $defs definitions dependentSchemas": _schemas_by_name,
        "anyOf oneOf allOf prefixItems": _schema_list,
        "items": lambda item: (
            _schema_list(item) if isinstance(item.value, tuple) else _subschema(item)
        ),
        "additionalProperties additionalItems not contains propertyNames if then else "
        "unevaluatedItems unevaluatedProperties": _subschema,
    }.items()
    for word in words.split()
}

FIELDS: Final[Mapping[str, Reader]] = {
    "model": _text,
    "response_format": _schema,
    "choices": _choices,
    "name": _text,
    "instruction": _instruction,
    "parameters": _parameters,
    "sentence_boundaries": _sentences,
    "docs_as_message": lambda item: item.choice(("string", "json", "roles"), also=" or null"),
    "logprobs_workaround": _FLAG,
}
"""The fields that are not rules."""


# Arguments of rules -------------------------------------------------------------------------------


def _path(item: Item) -> PathPattern:
    wanted = "a list of fields' names, indices from 0 and null for any, such as [score]"
    if not isinstance(item.value, tuple):
        raise item.error(wanted, "[] is the whole reply")
    for step in item.value:
        index = is_number(step.value) and isinstance(step.value, int) and step.value >= 0
        if not index and not isinstance(step.value, (str, type(None))):
            raise step.error(wanted, "correct it")
    return tuple(step.value for step in item.value)  # type: ignore[misc] # as was checked


def _name(item: Item) -> str:
    return item.text("name the field")


def _once(items: Iterable[Item]) -> tuple[str, ...]:
    names: list[str] = []
    for item in items:
        name = _name(item)
        if name in names:
            raise item.error("each name once", "rename or remove it", found=f"{name!r} twice")
        names.append(name)
    return tuple(names)


def _names(item: Item) -> tuple[str, ...]:
    return _once(item.elements(_NAMES, "name at least one"))


def _retained(item: Item) -> Pairs:
    """From old names to new ones."""
    if not isinstance(item.value, dict):
        return tuple((name, name) for name in _names(item))
    entries = item.entries(f"{_NAMES}, or a mapping from old to new ones", "name some")
    return tuple(zip(map(_name, entries), _once(entries.values()), strict=True))


def _outputs(item: Item) -> Pairs:
    """From words of OUTPUTS to the new fields' names."""
    wanted = f"a mapping from {', '.join(OUTPUTS)} to fields' names"
    entries = item.entries(wanted, "name at least one")
    named = {key.choice(OUTPUTS, "remove it"): to for key, to in entries.items() if not to.is_null}
    pairs = zip(named, _once(named.values()), strict=True)
    return tuple(sorted(pairs, key=lambda pair: OUTPUTS.index(pair[0])))


def _sources(item: Item) -> tuple[str, ...]:
    parts = item.value if isinstance(item.value, tuple) and item.value else (item,)
    places = [part.choice(PLACES, "correct it", ", or a list of them") for part in parts]
    if LAST_MESSAGE in places and len(places) > 1:
        raise item.error(
            f"{LAST_MESSAGE} alone, or {DOCUMENTS} and {HISTORY}",
            "the last message's sentences are numbered apart, so that a number would be ambiguous: "
            "use two rules",
        )
    return _once(parts)


def _categories(item: Item) -> tuple[tuple[Scalar, float], ...]:
    wanted = 'a mapping from categories to numbers, such as {"yes": 1.0, "no": 0.0}'
    categories: list[tuple[Scalar, float]] = []
    for key, number in item.entries(wanted, "without categories there is nothing to weigh").items():
        category: Any = key.plain()
        if isinstance(category, bool) and key.spelled.lower() != str(category).lower():
            category = key.spelled  # YAML's yes and no
        if category == "":
            raise key.error("a text, a number, true, false or null", "correct it")
        value: Any = number.plain()
        if not is_number(value):
            raise number.error("a number", "correct it")
        categories.append((category, float(value)))
    return tuple(categories)


def as_written(item: Item) -> Item:
    """A mapping whose keys are texts, as they are written in the file."""
    if not isinstance(item.value, dict):
        return item
    keys = {replace(key, value=key.spelled): value for key, value in item.value.items()}
    return replace(item, value=keys)


ARGUMENTS: Final[Mapping[str, Reader]] = {
    "input_path": _path,
    "field_name": _name,
    "retained_fields": _retained,
    "target_field": _name,
    "target_fields": _names,
    "source": _sources,
    "output_names": _outputs,
    "group_fields": lambda item: () if item.value == () else _names(item),
    "begin_field": _name,
    "end_field": _name,
    "text_field": _name,
    "categories_to_values": _categories,
}
