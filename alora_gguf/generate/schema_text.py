"""What a JSON Schema fixes of the texts that match it: all of them, or how they begin.

Pure functions over schemas. What they do not understand they leave open, and they never guess:
their answers are used to draft tokens ahead of the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

_MAX_VISITS: Final = 2000  # references can make a small schema a large tree
_MAX_DEPTH: Final = 32
_MAX_INT: Final = 2**53  # beyond it llguidance's numbers, which are doubles, are not exact

# Keywords that constrain nothing.
_NOTES: Final = frozenset(
    {
        "$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated",
        "description", "examples", "readOnly", "title", "writeOnly", "x-guidance",
    }
)  # fmt: skip
_APPLICATORS: Final = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def answers(schema: Mapping[str, Any], limit: int = 64) -> tuple[str, ...] | None:
    """The texts of all JSON values that match, if they are known to be at most `limit`, else None.

    A text is what json.dumps(value, ensure_ascii=False) writes, with properties in the schema's
    order. Understood are enum, const, boolean, null, integers between bounds, objects whose
    properties are all of these kinds and required, without additional ones, anyOf and references.
    """
    return _Reader(schema, limit).texts(schema)


def opening(schema: Mapping[str, Any]) -> str:
    """The longest text that every matching value's text (see answers) is known to begin with.

    `{"answer": "` where an object's first required property is a string, `[` for an array, ""
    where nothing is fixed.
    """
    return _Reader(schema, 64).start(schema)[0]


def never_ends(schema: Mapping[str, Any]) -> bool:
    """Whether every matching value would have to contain itself: no finite one exists."""
    pending = {ref: _resolve(schema, ref) for ref in _references(schema)}
    ending: set[str] = {ref for ref, node in pending.items() if node is None}  # not ours to judge
    found = True
    while found:  # each round finds a reference that can end now, or is the last
        now = {r for r, node in pending.items() if r not in ending and _can_end(node, ending)}
        ending |= now
        found = bool(now)
    return not _can_end(schema, ending)


class _Reader:
    """Reads one schema, with a budget for the whole of it."""

    def __init__(self, root: Mapping[str, Any], limit: int) -> None:
        self.root, self.limit = root, limit
        self.visits = _MAX_VISITS

    def texts(self, node: Any, depth: int = 0) -> tuple[str, ...] | None:
        """answers() of a node; () if nothing matches."""
        self.visits -= 1
        if node is False:
            return ()
        if not isinstance(node, Mapping) or depth > _MAX_DEPTH or self.visits < 0:
            return None
        keys = node.keys() - _NOTES
        if keys & _APPLICATORS:
            branches = self._branches(node, keys)
            return None if branches is None else self._union(branches, depth)
        fixed = keys & {"const", "enum"}
        if fixed:
            return self._listed(node) if len(fixed) == 1 and keys <= fixed | {"type"} else None
        kind = node.get("type")
        if isinstance(kind, list):
            return self._union([{**node, "type": one} for one in kind], depth)
        if kind == "object":
            return self._objects(node, keys, depth)
        if kind == "integer":
            return self._integers(node, keys)
        if keys == {"type"}:
            return {"boolean": ("true", "false"), "null": ("null",)}.get(str(kind))
        return None

    def start(self, node: Any, depth: int = 0) -> tuple[str, bool]:
        """opening() of a node, and whether it is the whole text."""
        texts = self.texts(node, depth)
        if texts:
            return _common(texts), len(texts) == 1
        if not isinstance(node, Mapping) or depth > _MAX_DEPTH or self.visits < 0:
            return "", False
        keys = node.keys() - _NOTES
        kind = node.get("type")
        branches: Sequence[Any] | None = None
        if keys & _APPLICATORS:  # beside another keyword they merge, and that may change the order
            branches = self._branches(node, keys)
        elif isinstance(kind, list):
            branches = [{**node, "type": one} for one in kind]
        elif kind == "string":
            return '"', False
        elif kind == "array":
            return self._array(node, depth), False
        elif kind == "object":
            return self._object(node, depth)
        starts = [self.start(b, depth + 1)[0] for b in branches or () if b is not False]
        return _common(starts), False

    def _branches(self, node: Mapping[str, Any], keys: Iterable[str]) -> Sequence[Any] | None:
        """The alternatives of a node that consists of nothing but them."""
        only = list(keys)
        if len(only) != 1:
            return None
        inner = node[only[0]]
        if only == ["$ref"]:
            target = _resolve(self.root, inner)
            return None if target is None else [target]
        if not isinstance(inner, list) or (only == ["allOf"] and len(inner) != 1):
            return None
        return inner

    def _union(self, nodes: Sequence[Any], depth: int) -> tuple[str, ...] | None:
        found: dict[str, None] = {}
        for node in nodes:
            texts = self.texts(node, depth + 1)
            if texts is None:
                return None
            found.update(dict.fromkeys(texts))
        return tuple(found) if len(found) <= self.limit else None

    def _listed(self, node: Mapping[str, Any]) -> tuple[str, ...] | None:
        values = node["enum"] if "enum" in node else [node["const"]]
        if not isinstance(values, list):
            return None
        if len(values) > 4 * self.limit or not all(map(_is_plain, values)):
            return None
        kinds = node.get("type")
        if kinds is not None:
            names = kinds if isinstance(kinds, list) else [kinds]
            values = [value for value in values if any(_is(value, name) for name in names)]
        texts = dict.fromkeys(map(_dump, values))
        return tuple(texts) if len(texts) <= self.limit else None

    def _integers(self, node: Mapping[str, Any], keys: Iterable[str]) -> tuple[str, ...] | None:
        bounds = {name: node[name] for name in _BOUNDS if name in node}
        if not set(keys) <= {"type", *_BOUNDS} or not all(map(_is_bound, bounds.values())):
            return None
        low = [math.ceil(bounds["minimum"])] if "minimum" in bounds else []
        if "exclusiveMinimum" in bounds:
            low.append(math.floor(bounds["exclusiveMinimum"]) + 1)
        high = [math.floor(bounds["maximum"])] if "maximum" in bounds else []
        if "exclusiveMaximum" in bounds:
            high.append(math.ceil(bounds["exclusiveMaximum"]) - 1)
        if not low or not high or min(high) - max(low) >= self.limit:
            return None
        return tuple(map(str, range(max(low), min(high) + 1)))

    def _objects(
        self, node: Mapping[str, Any], keys: Iterable[str], depth: int
    ) -> tuple[str, ...] | None:
        properties, required = _properties(node)
        known = {"type", "properties", "required", "additionalProperties"}
        closed = set(keys) <= known and node.get("additionalProperties") is False
        if not closed or properties.keys() != set(required):
            return None
        heads = [""]
        for name, value in properties.items():
            texts = self.texts(value, depth + 1)
            if texts is None or not _is_plain(name) or len(heads) * len(texts) > self.limit:
                return None
            lead = f"{', ' if heads != [''] else ''}{_dump(name)}: "
            heads = [head + lead + text for head in heads for text in texts]
        return tuple(f"{{{head}}}" for head in heads)

    def _array(self, node: Mapping[str, Any], depth: int) -> str:
        fewest = node.get("minItems", 0)
        if not isinstance(fewest, int) or fewest < 1:
            return "["
        first = node.get("prefixItems")
        item = first[0] if first and isinstance(first, list) else node.get("items")
        return "[" + self.start(item, depth + 1)[0]

    def _object(self, node: Mapping[str, Any], depth: int) -> tuple[str, bool]:
        """Properties come in the schema's order, then required ones that it does not describe, then
        additional ones: what comes next is known as long as nothing before it is optional.
        """
        properties, required = _properties(node)
        names = [*properties, *(name for name in required if name not in properties)]
        text = "{"
        for at, name in enumerate(names):
            comma = ", " if at else ""
            needed = next((i for i in range(at, len(names)) if names[i] in required), None)
            if needed is None or not all(map(_is_plain, names)):
                return text, False
            if needed > at:  # any of these may be the next
                leads = [f"{comma}{_dump(n)}: " for n in names[at : needed + 1]]
                return text + _common(leads), False
            value, whole = self.start(properties.get(name), depth + 1)
            text += f"{comma}{_dump(name)}: {value}"
            if not whole:
                return text, False
        closed = node.get("additionalProperties") is False and "patternProperties" not in node
        return (text + "}", True) if closed else (text, False)


def _properties(node: Mapping[str, Any]) -> tuple[Mapping[str, Any], Sequence[str]]:
    properties, required = node.get("properties"), node.get("required")
    return (
        properties if isinstance(properties, Mapping) else {},
        [name for name in required if isinstance(name, str)] if isinstance(required, list) else [],
    )


def _common(texts: Sequence[str]) -> str:
    """What all of them begin with."""
    if not texts:
        return ""
    low, high = min(texts), max(texts)  # whatever these share, those between share too
    return low[: next((i for i, c in enumerate(low) if high[i] != c), len(low))]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _is(value: Any, kind: str) -> bool:
    """Whether a value is of a JSON Schema type."""
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    types: dict[str, Any] = {
        "integer": int, "number": (int, float), "string": str, "array": list, "object": Mapping,
    }  # fmt: skip
    return kind in types and isinstance(value, types[kind])


def _is_plain(value: Any) -> bool:
    """Whether llguidance writes a value as json.dumps does: not if it has numbers like 1.0 or 1e30,
    the character U+007F, or lone surrogates, which are not text.
    """
    if isinstance(value, str):
        return not any(c == "\x7f" or "\ud800" <= c <= "\udfff" for c in value)
    if isinstance(value, float):
        return math.isfinite(value) and not value.is_integer() and "e" not in repr(value)
    if isinstance(value, int):
        return abs(value) < _MAX_INT
    if isinstance(value, Mapping):
        return all(_is_plain(k) and _is_plain(v) for k, v in value.items())
    return not isinstance(value, list) or all(map(_is_plain, value))


def _is_bound(value: Any) -> bool:
    return _is(value, "number") and abs(value) < _MAX_INT  # also false for NaN


def _resolve(root: Mapping[str, Any], ref: Any) -> Any:
    """What a reference within the schema names; None for any other, or one that names nothing."""
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        return None
    node: Any = root
    for part in ref.split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, Mapping) and key in node:
            node = node[key]
        else:
            return None
    return node


def _references(node: Any) -> set[str]:
    """Every $ref anywhere in a schema."""
    if isinstance(node, list):
        return set().union(*map(_references, node))
    if not isinstance(node, Mapping):
        return set()
    own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
    return own.union(*map(_references, node.values()))


def _can_end(node: Any, ending: set[str]) -> bool:
    """Whether a finite value can match, if the references in `ending` are those that can end."""
    if not isinstance(node, Mapping):
        return node is not False
    if "$ref" in node and node["$ref"] not in ending:
        return False
    for key, quantifier in (("allOf", all), ("anyOf", any), ("oneOf", any)):
        parts = node.get(key)
        if isinstance(parts, list) and not quantifier(_can_end(part, ending) for part in parts):
            return False
    kinds = node.get("type")
    if kinds not in ("object", ["object"], "array", ["array"]):
        return True  # a number or the like may match, as far as this node goes
    if kinds in ("array", ["array"]):
        fewest = node.get("minItems", 0)
        first = node.get("prefixItems") or []
        needed = [*first, node.get("items")][:fewest] if isinstance(fewest, int) else []
        return all(_can_end(part, ending) for part in needed)
    properties, required = _properties(node)
    return all(_can_end(properties.get(name), ending) for name in required)
