"""Saved sessions: a conversation with its cells in a file, for another process to go on with.

Says what belongs to one, and refuses the rest. The bytes are container.py's; snapshot.py knows when
a model may use the cells.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from alora_gguf._calls import is_text
from alora_gguf.engine.loading import CacheLayout, Memory
from alora_gguf.engine.tokens import BASE, Provenance, Spans
from alora_gguf.errors import InputError, SavedSessionError
from alora_gguf.gguf.base import BaseFingerprint

from .container import Parts, canonical, read_parts, write_parts

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
NOT_OURS: Final = "it was not written by this version of alora-gguf; read the conversation again"


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """An adapter that computed some of the cells, alone or with others: the hash of its weights or
    vectors (AdapterFile.identity), and the name it was loaded under, None if it had been unloaded
    when the session was saved.
    """

    identity: str
    name: str | None


@dataclass(frozen=True)
class SavedSession:
    """A conversation and the cells of its first `n_cached` tokens.

    tokens    token ids of the whole conversation
    spans     who computed the cached tokens (engine/tokens.py)
    state     their cells as Engine.state() gave them, b"" if n_cached is 0
    n_cached  tokens that have cells
    base      the base that computed them
    adapters  one for each that acts in `spans`, in any order
    cache     how the cells are laid out
    logits    float32 [n_vocab] after the last token, little endian, b"" if they are not known;
              only where all tokens are cached
    notes     what the caller adds, such as a chat's messages; anything JSON holds, kept verbatim
    origin    the file it was read from, for messages; does not count when two are compared
    """

    tokens: tuple[int, ...]
    spans: Spans
    state: bytes = field(repr=False)
    n_cached: int
    base: BaseFingerprint
    adapters: tuple[SavedAdapter, ...]
    cache: CacheLayout
    logits: bytes = field(default=b"", repr=False)
    notes: Mapping[str, Any] = field(default_factory=dict)
    origin: str = field(default="", compare=False)


def write_saved(path: str | os.PathLike[str], saved: SavedSession) -> None:
    """Writes `saved` to `path`, where a file is replaced in one step: on any failure what was there
    is intact and nothing is left over.

    Raises SavedSessionError if the file system refuses or the parts of `saved` contradict each
    other, InputError for notes that JSON would not give back as they are.
    """
    file = Path(path)
    try:
        tokens = np.array(saved.tokens, "<i4").tobytes()
    except (OverflowError, TypeError, ValueError) as error:
        raise InputError(f"tokens cannot be saved: {error}") from error
    header = {
        "adapters": [asdict(adapter) for adapter in saved.adapters],
        "base": asdict(saved.base),
        "cache": asdict(saved.cache),
        "n_cached": saved.n_cached,
        "notes": dict(saved.notes),
        "spans": [_span(start, by) for start, by in saved.spans],
    }
    parts = {"tokens": tokens, "logits": saved.logits, "state": saved.state}
    # what cannot be read back is not written; JSON makes lists of tuples and strings of keys
    if _Header(file, json.loads(canonical(header)), parts).session() != saved:
        raise InputError(
            "notes cannot be saved: they would not come back as they are; use dicts with string "
            "keys, lists, strings, numbers, booleans and None"
        )
    write_parts(file, header, parts)


def _span(start: int, by: Provenance) -> list[Any]:
    """As JSON; the fourth is there where several computed."""
    return [start, by.identity, by.scale, *([list(map(list, by.parts))] if by.parts else [])]


def read_saved(path: str | os.PathLike[str]) -> SavedSession:
    """Reads a saved session and verifies all that can be without a model: length, checksum, every
    value of the header. Raises SavedSessionError.
    """
    file = Path(path)
    return _Header(file, *read_parts(file)).session()


# What a stranger may have written ----------------------------------------------------------------

_Kind = tuple[str, Callable[[Any], bool]]
"""What a value of the header has to be, in words, and whether it is."""


def _is_scale(value: object) -> bool:
    return type(value) is float and abs(value) < 3.4028235e38  # NaN is not


def _number(low: int, high: int) -> _Kind:
    return f"a number from {low} to {high}", lambda x: type(x) is int and low <= x <= high


_TEXT: Final[_Kind] = ("a string", is_text)
_HASH: Final[_Kind] = ("a hash", lambda x: isinstance(x, str) and bool(_SHA256.fullmatch(x)))
_HASH_OR_NULL: Final[_Kind] = ("a hash or null", lambda x: x is None or _HASH[1](x))
_FLAG: Final[_Kind] = ("true or false", lambda x: isinstance(x, bool))
_LIST: Final[_Kind] = ("a list", lambda x: isinstance(x, list))
_SPAN: Final[_Kind] = ("a list of 3 or 4", lambda x: isinstance(x, list) and len(x) in (3, 4))
_PART: Final[_Kind] = (
    "a hash and a scale",
    lambda x: isinstance(x, list) and len(x) == 2 and _HASH[1](x[0]) and _is_scale(x[1]),
)
_OBJECT: Final[_Kind] = ("an object", lambda x: isinstance(x, dict))

_ADAPTER: Final[Mapping[str, _Kind]] = {
    "identity": _HASH,
    "name": ("a name or null", lambda x: x is None or (is_text(x) and x != "")),
}
_BASE: Final[Mapping[str, _Kind]] = {
    "architecture": _TEXT,
    "digest": _HASH,
    "file": _TEXT,
    "size": _number(0, 2**63 - 1),
}
_CACHE: Final[Mapping[str, _Kind]] = {
    "flash_attn": _TEXT,
    "llama_cpp": _TEXT,
    "memory": ("'attention', 'recurrent' or 'hybrid'", lambda x: x in get_args(Memory)),
    "rope_context": _number(0, 2**31 - 1),
    "rotated": _FLAG,
    "swa_full": _FLAG,
    "type_k": _TEXT,
    "type_v": _TEXT,
    "window": _number(0, 2**31 - 1),
}


class _Header:
    """Makes a SavedSession of what a file holds; every value is checked."""

    def __init__(self, path: Path, header: dict[str, Any], parts: Parts) -> None:
        self.path, self.header, self.parts = path, header, parts

    def fail(self, problem: str) -> SavedSessionError:
        return SavedSessionError(f"{self.path}: {problem}; {NOT_OURS}")

    def session(self) -> SavedSession:
        tokens = np.frombuffer(self.parts["tokens"], "<i4")
        if tokens.size and tokens.min() < 0:
            raise self.fail(f"token {tokens.min()} is not a token id")
        kinds = {"adapters": _LIST, "base": _OBJECT, "cache": _OBJECT, "notes": _OBJECT}
        kinds |= {"n_cached": _number(0, tokens.size), "spans": _LIST}
        header = self.record(self.header, "header", kinds)
        spans = self.spans(header["spans"], header["n_cached"])
        adapters = tuple(
            SavedAdapter(**self.record(item, f"adapters[{i}]", _ADAPTER))
            for i, item in enumerate(header["adapters"])
        )
        computed = {identity for _, by in spans for identity, _ in by.acting}
        if sorted(computed) != sorted(adapter.identity for adapter in adapters):
            raise self.fail("'adapters' are not those that 'spans' name, each once")
        saved = SavedSession(
            tokens=tuple(tokens.tolist()),
            spans=spans,
            state=self.parts["state"],
            n_cached=header["n_cached"],
            base=BaseFingerprint(**self.record(header["base"], "base", _BASE)),
            adapters=adapters,
            cache=CacheLayout(**self.record(header["cache"], "cache", _CACHE)),
            logits=self.parts["logits"],
            notes=header["notes"],
            origin=str(self.path),
        )
        self.check_cells(saved)
        return saved

    def check_cells(self, saved: SavedSession) -> None:
        """The two sections that llama.cpp and the sampler are given."""
        if bool(saved.state) != bool(saved.n_cached):
            raise self.fail(
                f"{saved.n_cached} cached tokens have {len(saved.state)} bytes of cells"
            )
        if saved.logits and (not saved.n_cached or saved.n_cached != len(saved.tokens)):
            raise self.fail("there are logits, but not all tokens have cells")
        if np.isnan(np.frombuffer(saved.logits, "<f4")).any():
            raise self.fail("its logits are not numbers")

    def spans(self, items: list[Any], n_cached: int) -> Spans:
        spans: list[tuple[int, Provenance]] = []
        for i, item in enumerate(items):
            what = f"spans[{i}]"
            start, identity, scale, *several = self.value(item, what, _SPAN)
            low, high = (spans[-1][0] + 1, max(0, n_cached - 1)) if spans else (0, 0)
            self.value(start, what, _number(low, high))
            by = Provenance(self.value(identity, what, _HASH_OR_NULL), scale)
            # a float32 that is not 0, or the base: what Provenance.of() makes
            if not _is_scale(scale) or by != Provenance.of(identity, scale):
                raise self.fail(f"'{what}' has the scale {scale!r}")
            for parts in several:
                for part in self.value(parts, what, _LIST):
                    self.value(part, what, _PART)
                by = Provenance(identity, scale, tuple((each, s) for each, s in parts))
                once = len(dict(by.parts)) == len(by.parts)
                if not (by.parts and once) or by != Provenance.of_parts(by.parts):
                    raise self.fail(f"'{what}' is not what its parts come to")
            if spans and spans[-1][1] == by:
                raise self.fail(f"'{what}' repeats the span before it")
            spans.append((start, by))
        if not spans or (not n_cached and spans != [(0, BASE)]):
            raise self.fail(f"'spans' does not say who computed {n_cached} cached tokens")
        return tuple(spans)

    def record(self, value: object, what: str, kinds: Mapping[str, _Kind]) -> dict[str, Any]:
        if not isinstance(value, dict) or value.keys() != kinds.keys():
            found = f"{sorted(value) if isinstance(value, dict) else value!r}"[:200]
            raise self.fail(f"'{what}' is {found}, expected an object of {sorted(kinds)}")
        for name, kind in kinds.items():
            self.value(value[name], f"{what}.{name}", kind)
        return value

    def value(self, value: Any, what: str, kind: _Kind) -> Any:
        words, fits = kind
        if not fits(value):
            raise self.fail(f"'{what}' has {value!r:.200}, expected {words}")
        return value
