"""What replies can be at a place, as far as their schema tells: for contracts whose rules wait for
what never comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from .reply import JsonValue, PathPattern, show_path, show_value
from .yaml_file import Item

# schemas looked at for one step of a path: references may multiply, and go in circles
_MAX_SCHEMAS: Final = 200
_SHOWN: Final = 12  # of the values in a message
# with these a schema's own words are not all that there is
_UNCLEAR: Final = frozenset(
    ("allOf", "not", "if", "patternProperties", "dependentSchemas", "unevaluatedProperties")
)
_ALTERNATIVES: Final = ("anyOf", "oneOf")


def check_path(path: Item, steps: PathPattern, schema: Mapping[str, Any]) -> None:
    """Raises ContractError for a step to what no reply of the schema has."""
    at: list[Any] = [schema]
    for i, step in enumerate(steps):
        plain = _plain(at, schema)
        if plain is None:
            return
        below = [_below(each, step) for each in plain]
        if any(each is None for each in below):
            return
        at = [inner for each in below for inner in each or ()]
        if not at and isinstance(path.value, tuple):
            names = [name for each in plain for name in each.get("properties", ())]
            place = show_path(steps[:i]) if None not in steps[:i] else "this place"  # type: ignore[arg-type]
            raise path.value[i].error(
                f"what replies can have at {place}, {_listed(names) or 'nothing more'}",
                _near(step, names) or "correct the path, or the schema",
            )


def check_categories(
    keys: Iterable[Item],
    categories: Iterable[JsonValue],
    steps: PathPattern,
    schema: Mapping[str, Any],
) -> None:
    """Raises ContractError for a category that no reply of the schema has at a path; `keys` are
    where the file has them.
    """
    values = _values_at(schema, steps)
    if values is None:
        return
    for key, category in zip(keys, categories, strict=True):
        if not any(_same(category, value) for value in values):
            raise key.error(
                f"what replies can be at its input_path, {_listed(values)}",
                _near(category, values) or "correct it, or the schema",
                found=show_value(category),
            )


def _values_at(schema: Mapping[str, Any], steps: PathPattern) -> list[JsonValue] | None:
    """All values that there can be; None if the schema does not list them."""
    at = _plain([schema], schema)
    for step in steps:
        below = None if at is None else [_below(each, step) for each in at]
        if below is None or any(each is None for each in below):
            return None
        at = _plain([inner for each in below for inner in each or ()], schema)
    found = [_values(each) for each in at or ()]
    if not found or any(each is None for each in found):
        return None
    return [value for each in found for value in each or ()]


def _plain(schemas: Iterable[Any], root: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """The schemas with references and alternatives resolved; None if that cannot be told."""
    todo, out = list(schemas), list[Mapping[str, Any]]()
    for _ in range(_MAX_SCHEMAS):
        if not todo:
            return out
        each = todo.pop(0)
        if each is False:
            continue
        if not isinstance(each, Mapping) or _UNCLEAR & each.keys():
            return None
        if "$ref" in each:
            todo.append(_referred(each["$ref"], root))
        elif "enum" not in each and any(word in each for word in _ALTERNATIVES):
            if {"properties", "items"} & each.keys():
                return None
            todo += [inner for word in _ALTERNATIVES for inner in each.get(word, ())]
        else:
            out.append(each)
    return None


def _referred(reference: object, root: Mapping[str, Any]) -> object:
    """The schema that a `$ref` within the same text means; None if it is another."""
    found: Any = root
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    for part in reference.split("/")[1:]:
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _below(schema: Mapping[str, Any], step: str | int | None) -> list[Any] | None:
    """What a step leads to: nothing, or schemas; None if the schema does not say."""
    if "enum" in schema or "const" in schema:
        return None if any(isinstance(v, (Mapping, list)) for v in _values(schema) or ()) else []
    kinds = schema.get("type")
    kinds = {kinds} if isinstance(kinds, str) else set(kinds or ("object", "array"))
    below: list[Any] = []
    if "object" in kinds and not isinstance(step, int):
        fields = schema.get("properties", {})
        below += fields.values() if step is None else [fields[step]] if step in fields else []
        if (step is None or step not in fields) and schema.get("additionalProperties") is not False:
            return None
    if "array" in kinds and not isinstance(step, str):
        if not isinstance(schema.get("items"), Mapping) or "prefixItems" in schema:
            return None
        below.append(schema["items"])
    return below


def _values(schema: Mapping[str, Any]) -> Sequence[JsonValue] | None:
    listed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if listed is None:
        return {"boolean": (True, False), "null": (None,)}.get(str(schema.get("type")))
    return tuple(listed)


def _same(one: object, other: object) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _listed(values: Sequence[object]) -> str:
    shown = [show_value(value) for value in values[:_SHOWN]]
    return ", ".join([*shown, "..."] if len(values) > _SHOWN else shown)


def _near(text: object, values: Iterable[object]) -> str:
    """`did you mean` one of the values; "" if none is near."""
    folded = {str(value).casefold(): value for value in values}
    near = get_close_matches(str(text).casefold(), folded, 1)
    return f"did you mean {show_value(folded[near[0]])}?" if near else ""
