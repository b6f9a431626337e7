"""What a JSON Schema's shape says before it is compiled: how large it is, and whether it can end.

Nothing here recurses, and the time is linear: schemas come from strangers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote


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
