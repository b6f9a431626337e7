"""Saved sessions: a conversation with its cells in a file, for another process to go on with.

Says what belongs to one, what must agree before its cells may be used, and refuses the rest. The
bytes are container.py's, the way to llama.cpp is snapshot.py's.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from alora_gguf.engine.loading import CacheLayout, Memory
from alora_gguf.engine.provenance import BASE, Provenance, Spans
from alora_gguf.errors import InputError, SavedSessionError
from alora_gguf.gguf.base import BaseFingerprint

from .container import Sections, canonical, read_sections, write_sections

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NOT_OURS: Final = "it was not written by this version of alora-gguf; read the conversation again"


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """An adapter that computed some of the cells: the hash of its weights (AdapterFile.identity),
    and the name it was loaded under, None if it had been unloaded when the session was saved.
    """

    identity: str
    name: str | None


@dataclass(frozen=True)
class SavedSession:
    """A conversation and the cells of its first `n_cached` tokens.

    tokens    token ids of the whole conversation
    spans     who computed the cached tokens (provenance.py)
    state     their cells as Engine.state() gave them, b"" if n_cached is 0
    n_cached  tokens that have cells
    base      the base that computed them
    adapters  one for each identity in `spans`, in any order
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
        "spans": [[start, by.identity, by.scale] for start, by in saved.spans],
    }
    sections = Sections(header, tokens, saved.logits, saved.state)
    # what cannot be read back is not written; JSON makes lists of tuples and strings of keys
    back = Sections(json.loads(canonical(header)), tokens, saved.logits, saved.state)
    if _Header(file, back).session() != saved:
        raise InputError(
            "notes cannot be saved: they would not come back as they are; use dicts with string "
            "keys, lists, strings, numbers, booleans and None"
        )
    write_sections(file, sections)


def read_saved(path: str | os.PathLike[str]) -> SavedSession:
    """Reads a saved session and verifies all that can be without a model: length, checksum, every
    value of the header. Raises SavedSessionError.
    """
    file = Path(path)
    return _Header(file, read_sections(file)).session()


def check_saved(
    saved: SavedSession,
    *,
    base: BaseFingerprint,
    cache: CacheLayout,
    adapters_loaded: Mapping[str, str],
    n_vocab: int,
) -> None:
    """Raises SavedSessionError unless the cells mean the same to a model of this `base` and `cache`
    with these adapters (names mapped to identities) and tokens below `n_vocab`.

    An adapter may be loaded under another name than it was; its weights must be the same.
    """
    where = saved.origin or "saved session"
    if saved.base != base:
        raise SavedSessionError(
            f"{where}: was saved with the base {saved.base}, but this model is {base}; open that "
            "base, or read the conversation again"
        )
    if saved.n_cached:
        _check_layout(saved.cache, cache, where)
    for adapter in saved.adapters:
        if adapter.identity not in adapters_loaded.values():
            raise SavedSessionError(f"{where}: {_missing(adapter, adapters_loaded)}")
    if saved.tokens and max(saved.tokens) >= n_vocab:
        raise SavedSessionError(
            f"{where}: token {max(saved.tokens)} is outside the vocabulary of {n_vocab}; "
            f"{_NOT_OURS}"
        )
    if saved.logits and len(saved.logits) != 4 * n_vocab:
        raise SavedSessionError(
            f"{where}: has {len(saved.logits) // 4} logits, expected one per token of the "
            f"vocabulary of {n_vocab}; {_NOT_OURS}"
        )


def _missing(adapter: SavedAdapter, loaded: Mapping[str, str]) -> str:
    weights = f"weights {adapter.identity[:12]}"
    if adapter.name is None:
        return (
            f"some of its cells were computed by an adapter ({weights}) that had been unloaded "
            "when it was saved and is not loaded now; load it first, under any name"
        )
    if adapter.name in loaded:
        return (
            f"some of its cells were computed by the adapter '{adapter.name}' ({weights}), but the "
            f"one loaded as '{adapter.name}' has other weights ({loaded[adapter.name][:12]}); load "
            "the file that was used then, under any name"
        )
    known = ", ".join(f"'{name}'" for name in loaded) or "none"
    return (
        f"some of its cells were computed by the adapter '{adapter.name}' ({weights}), which is "
        f"not loaded (loaded: {known}); load it first"
    )


def _check_layout(old: CacheLayout, cache: CacheLayout, where: str) -> None:
    """Whether a cell's bytes mean the same in both."""
    if old.llama_cpp != cache.llama_cpp:
        raise SavedSessionError(
            f"{where}: its cells are those of llama-cpp-python {old.llama_cpp}, but this is "
            f"{cache.llama_cpp}, which may lay them out otherwise; read the conversation again"
        )
    fixes = {
        "type_k": f"open the model with type_k={old.type_k!r}",
        "type_v": f"open the model with type_v={old.type_v!r}",
        "flash_attn": f"open the model with flash_attn={old.flash_attn!r}",
        "rope_context": f"open the model with n_ctx={old.rope_context}",
        "rotated": "set LLAMA_ATTN_ROT_DISABLE as it was then",
    }
    for name in (f.name for f in fields(CacheLayout)):
        found, expected = getattr(old, name), getattr(cache, name)
        if name == "flash_attn" and "auto" in (found, expected):
            continue  # llama.cpp knows what it chose, and refuses by itself
        if found != expected:
            raise SavedSessionError(
                f"{where}: was saved with {name} {found!r}, but this model has {expected!r}; "
                f"{fixes.get(name, 'open the model as it was then')}, or read the conversation "
                "again"
            )


# What a stranger may have written ----------------------------------------------------------------

_Kind = tuple[str, Callable[[Any], bool]]
"""What a value of the header has to be, in words, and whether it is."""


def _number(low: int, high: int) -> _Kind:
    return f"a number from {low} to {high}", lambda x: type(x) is int and low <= x <= high


_TEXT: Final[_Kind] = ("a string", lambda x: isinstance(x, str))
_HASH: Final[_Kind] = ("a hash", lambda x: isinstance(x, str) and bool(_SHA256.fullmatch(x)))
_HASH_OR_NULL: Final[_Kind] = ("a hash or null", lambda x: x is None or _HASH[1](x))
_FLAG: Final[_Kind] = ("true or false", lambda x: isinstance(x, bool))
_LIST: Final[_Kind] = ("a list", lambda x: isinstance(x, list))
_SPAN: Final[_Kind] = ("a list of 3", lambda x: isinstance(x, list) and len(x) == 3)
_OBJECT: Final[_Kind] = ("an object", lambda x: isinstance(x, dict))

_ADAPTER: Final[Mapping[str, _Kind]] = {
    "identity": _HASH,
    "name": ("a name or null", lambda x: x is None or (isinstance(x, str) and x != "")),
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
    """Makes a SavedSession of a file's sections; every value is checked."""

    def __init__(self, path: Path, sections: Sections) -> None:
        self.path = path
        self.sections = sections

    def fail(self, problem: str) -> SavedSessionError:
        return SavedSessionError(f"{self.path}: {problem}; {_NOT_OURS}")

    def session(self) -> SavedSession:
        tokens = np.frombuffer(self.sections.tokens, "<i4")
        if tokens.size and tokens.min() < 0:
            raise self.fail(f"token {tokens.min()} is not a token id")
        kinds = {"adapters": _LIST, "base": _OBJECT, "cache": _OBJECT, "notes": _OBJECT}
        kinds |= {"n_cached": _number(0, tokens.size), "spans": _LIST}
        header = self.record(self.sections.header, "header", kinds)
        spans = self.spans(header["spans"], header["n_cached"])
        adapters = tuple(
            SavedAdapter(**self.record(item, f"adapters[{i}]", _ADAPTER))
            for i, item in enumerate(header["adapters"])
        )
        computed = {by.identity for _, by in spans if by.identity is not None}
        if sorted(computed) != sorted(adapter.identity for adapter in adapters):
            raise self.fail("'adapters' are not those that 'spans' name, each once")
        saved = SavedSession(
            tokens=tuple(tokens.tolist()),
            spans=spans,
            state=self.sections.state,
            n_cached=header["n_cached"],
            base=BaseFingerprint(**self.record(header["base"], "base", _BASE)),
            adapters=adapters,
            cache=CacheLayout(**self.record(header["cache"], "cache", _CACHE)),
            logits=self.sections.logits,
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
            start, identity, scale = self.value(item, what, _SPAN)
            low, high = (spans[-1][0] + 1, max(0, n_cached - 1)) if spans else (0, 0)
            self.value(start, what, _number(low, high))
            by = Provenance(self.value(identity, what, _HASH_OR_NULL), scale)
            # a float32 that is not 0, or the base: what Provenance.of() makes
            in_range = type(scale) is float and abs(scale) < 3.5e38
            if not in_range or by != Provenance.of(identity, scale):
                raise self.fail(f"'{what}' has the scale {scale!r}")
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
