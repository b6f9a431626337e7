"""What a JSON Schema says before it is compiled: the form of replies, how large it is, and whether
it can end.

Nothing here recurses, and the time is linear: schemas come from strangers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast, get_args
from urllib.parse import unquote

from alora_gguf.errors import SchemaError
from alora_gguf.options import ABOUT, Form

# The form of replies: what a model was trained to write. The rest only says which values there are.

FORMS: Final = get_args(Form)

# What json.dumps writes, with and without an indent, and what comes near: one or two spaces, or one
# line break and an indent. A pattern is matched at most once in a place, so that a model that has
# fallen into a run of spaces or line breaks is led out of it. None before the value or after it.
_SPACING: Final[Mapping[str, Mapping[str, Any]]] = {
    "free": {"whitespace_pattern": r"\x20{1,2}|\x0D?\x0A[\x20\x09]{0,16}"},
    "compact": {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"},
    "json.dumps": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
}


def form_of(schema: Mapping[str, Any]) -> Form:
    """The form that a schema's `x-alora` asks for. Raises SchemaError for one that there is not."""
    about = schema.get(ABOUT)
    form: Any = about.get("form", "free") if isinstance(about, Mapping) else "free"
    if form not in FORMS:
        raise SchemaError(
            f"the JSON Schema asks for the form {str(form)[:40]!r} ({ABOUT}), expected one of "
            f"{', '.join(FORMS)}"
        )
    return cast(Form, form)


def words_of(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts of a schema whose form is "text". Raises SchemaError if it is no list of texts."""
    words = schema.get("enum")
    if not (
        isinstance(words, (list, tuple))
        and words
        and all(isinstance(word, str) and word for word in words)
        and schema.keys() <= {"enum", "type", ABOUT}
        and schema.get("type", "string") == "string"
    ):
        raise SchemaError(
            "the JSON Schema asks for bare text, so it must be a list of texts, such as "
            f'{{"enum": ["yes", "no"], "{ABOUT}": {{"form": "text"}}}}'
        )
    return tuple(dict.fromkeys(words))


def grammar_of(schema: Mapping[str, Any], form: Form, options: Mapping[str, Any]) -> str:
    """A schema as llguidance's grammar of replies in a form; `options` are more of its options for
    JSON. By itself llguidance forces the tokens that it would choose for text that can only go on
    in one way; here masks are exact.
    """
    if form == "text":
        start = " | ".join(json.dumps(word, ensure_ascii=False) for word in words_of(schema))
    else:
        start = json_rule(schema, form, options)
    return f'%llguidance {{"no_forcing": true}}\nstart: {start}'


def json_rule(schema: Mapping[str, Any], form: Form, options: Mapping[str, Any]) -> str:
    """The values of a schema as a part of llguidance's grammars."""
    return "%json " + json.dumps({**schema, "x-guidance": {**options, **_SPACING[form]}})


def written(value: object, form: Form) -> str:
    """A value as a reply of that form has it; where the form is free, as json.dumps has it."""
    if form == "text" and isinstance(value, str):
        return value
    separators = (",", ":") if form == "compact" else (", ", ": ")
    return json.dumps(value, ensure_ascii=False, separators=separators)


# Its shape ----------------------------------------------------------------------------------------


def n_nodes(schema: Any) -> int:
    """How many objects and arrays a JSON value has."""
    found, pending = 0, [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, (Mapping, list)):
            found += 1
            pending += node.values() if isinstance(node, Mapping) else node
    return found


def never_ends(schema: Mapping[str, Any]) -> bool:
    """Whether every matching value would have to contain itself: no finite one exists."""
    missing: list[int] = []  # by node: how many of its parts are not known to end
    users: list[list[int]] = []  # by node: the nodes that it is a part of
    known: dict[int, int] = {}  # from the id of an object to its node
    pending: list[tuple[int, Any]] = []

    def add(value: Any, user: int | None) -> None:
        node = known.get(id(value), len(users)) if isinstance(value, Mapping) else len(users)
        if node == len(users):
            known[id(value)] = node
            missing.append(0)
            users.append([])
            pending.append((node, value))
        if user is not None:
            users[node].append(user)

    add(schema, None)
    ended = []
    while pending:
        node, value = pending.pop()
        if isinstance(value, _Either):
            parts, missing[node] = value.parts, 1
        else:
            parts = list(_parts(schema, value)) if isinstance(value, Mapping) else []
            missing[node] = len(parts) + (value is False)
        for part in parts:
            add(part, node)
        if not missing[node]:
            ended.append(node)
    while ended:
        for user in users[ended.pop()]:
            missing[user] -= 1
            if not missing[user]:
                ended.append(user)
    return missing[0] > 0


class _Either:
    """Schemas of which one must match."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts


def _parts(root: Mapping[str, Any], node: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas that must end for a value of `node` to end. A number or the like may match, as
    far as another part goes.
    """
    if isinstance(node.get("$ref"), str):
        yield _resolve(root, node["$ref"])
    for key in ("allOf", "anyOf", "oneOf"):
        parts = node.get(key)
        if isinstance(parts, list):
            yield from parts if key == "allOf" else [_Either(parts)]
    if node.get("type") in ("array", ["array"]) and isinstance(node.get("minItems"), int):
        first = node.get("prefixItems")
        needed = [*(first if isinstance(first, list) else ()), node.get("items")]
        yield from needed[: node["minItems"]]
    elif node.get("type") in ("object", ["object"]) and isinstance(node.get("required"), list):
        properties = node.get("properties")
        if isinstance(properties, Mapping):
            yield from (properties.get(name) for name in node["required"] if isinstance(name, str))


def _resolve(root: Mapping[str, Any], ref: str) -> Any:
    """What a reference within the schema names; None for any other, or one that names nothing."""
    if ref != "#" and not ref.startswith("#/"):
        return None
    node: Any = root
    for part in ref.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        try:
            node = node[int(key) if isinstance(node, list) else key]
        except (LookupError, TypeError, ValueError):
            return None
    return node
