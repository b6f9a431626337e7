"""What a JSON Schema fixes of the texts that match it: all of them, or how they begin.

llguidance itself is walked for that, over bytes in place of a vocabulary. What is found is used to
draft tokens ahead of the model.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import numpy as np

_MAX_ANSWERS: Final = 64
_MAX_STEPS: Final = 1000  # states that a walk looks at, some 20 us each
_BYTES: Final = 256  # the first tokens of llguidance's vocabulary of bytes
# One spelling for each value: what json.dumps(value, ensure_ascii=False) writes.
_SPELLING: Final[Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
    "lenient": False,
    "coerce_one_of": False,
}


class Fixed(NamedTuple):
    """`answers` are the texts of all values that match, if they are known to be few, else None;
    `opening` is what all of them begin with, as far as it is known.

    A text is what json.dumps(value, ensure_ascii=False) writes, with properties in the schema's
    order. An opening is `{"answer": "` where an object's first required property is a string, `[`
    for an array, "" where nothing is fixed.
    """

    answers: tuple[str, ...] | None = None
    opening: str = ""


def fixed(schema: Mapping[str, Any]) -> Fixed:
    """What `schema` fixes; nothing where it cannot be compiled. The latest schemas are kept."""
    return _fixed(json.dumps(dict(schema)))


@functools.lru_cache(maxsize=64)
def _fixed(schema: str) -> Fixed:
    found: list[bytes] = []
    pending = [(_matcher(schema), b"")]
    opening: str | None = None
    for _ in range(_MAX_STEPS):
        matcher, text = pending.pop()
        text += _forced(matcher)
        # it may end within a character
        opening = text.decode(errors="ignore") if opening is None else opening
        following = _following(matcher)
        found += [text] if matcher.is_accepting() else []
        if matcher.is_error() or len(found) + len(pending) + len(following) > _MAX_ANSWERS:
            break
        for byte in reversed(following):
            branch = matcher.deep_copy()
            branch.consume_token(byte)
            pending.append((branch, text + bytes([byte])))
        if not pending:
            return Fixed(_answers(found), opening)
    return Fixed(None, opening or "")


def _forced(matcher: Any) -> bytes:
    """Goes on by the bytes that must come next, and returns them."""
    forced: bytes = matcher.compute_ff_bytes()
    return forced if forced and matcher.consume_tokens(list(forced)) else b""


def _following(matcher: Any) -> list[int]:
    """The bytes of which any can come next."""
    if matcher.is_stopped():
        return []
    bias = np.frombuffer(matcher.compute_logit_bias(), np.uint8)[:_BYTES]
    return list(map(int, np.flatnonzero(bias)))


def _answers(found: Sequence[bytes]) -> tuple[str, ...] | None:
    """Each value once, as json.dumps writes it: -0 is 0."""
    texts = [text.decode() for text in found]
    once = dict.fromkeys(json.dumps(json.loads(text), ensure_ascii=False) for text in texts)
    return tuple(once) if once and once.keys() <= set(texts) else None


def _matcher(schema: str) -> Any:
    from llguidance import LLMatcher, LLParserLimits

    constrained = json.dumps({**json.loads(schema), "x-guidance": _SPELLING})
    # without this, text that is forced must be whole tokens
    grammar = f'%llguidance {{"no_forcing": true}}\nstart: %json {constrained}'
    limits = LLParserLimits(verbose_errors=False)
    return LLMatcher(_tokenizer(), grammar, log_level=0, limits=limits)


@functools.cache
def _tokenizer() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


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


def _properties(node: Mapping[str, Any]) -> tuple[Mapping[str, Any], Sequence[str]]:
    properties, required = node.get("properties"), node.get("required")
    return (
        properties if isinstance(properties, Mapping) else {},
        [name for name in required if isinstance(name, str)] if isinstance(required, list) else [],
    )


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
