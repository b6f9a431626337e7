"""A sequence as a saved session, and back: the way between llama.cpp's cells and the file, and what
must agree before its cells may be used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from alora_gguf.engine.activation import Combination
from alora_gguf.engine.loading import CacheLayout
from alora_gguf.engine.runtime import Runtime
from alora_gguf.engine.sequence import TokenSequence
from alora_gguf.engine.tokens import BASE, spans_for
from alora_gguf.errors import CacheFullError, DecodeError, SavedSessionError

from .session_file import NOT_OURS, SavedAdapter, SavedSession, read_saved


def snapshot(runtime: Runtime, sequence: TokenSequence, notes: Mapping[str, Any]) -> SavedSession:
    """All of a sequence, whose lock the caller holds."""
    engine, record = runtime.engine, sequence.cached
    cached = len(record)
    # a memory that cannot rewind may hold more than the conversation
    n = cached if cached <= len(sequence.tokens) else 0
    spans = record.spans if n else spans_for(None, BASE)
    names = runtime.names()
    identities = dict.fromkeys(identity for _, by in spans for identity, _ in by.acting)
    logits = sequence.logits if 0 < n == len(sequence.tokens) else None
    return SavedSession(
        tokens=tuple(sequence.tokens),
        spans=spans,
        state=engine.state(sequence.seq) if n else b"",
        n_cached=n,
        base=runtime.fingerprint,
        adapters=tuple(SavedAdapter(each, names.get(each)) for each in identities),
        cache=runtime.layout,
        logits=b"" if logits is None else logits.tobytes(),
        notes=notes,
    )


def restore(runtime: Runtime, path: str | os.PathLike[str]) -> tuple[TokenSequence, SavedSession]:
    """The sequence that was saved to `path`, cells and all, and what else the file says.

    Raises SavedSessionError if the file is damaged or does not fit, or llama.cpp does not take the
    cells; CacheFullError.
    """
    saved = read_saved(path)
    check(runtime, saved)
    sequence = TokenSequence(runtime.engine)
    try:
        fill(sequence, saved)
    except BaseException:
        sequence.close()
        raise
    return sequence, saved


def check(runtime: Runtime, saved: SavedSession) -> None:
    """Raises SavedSessionError unless the cells mean the same to this model. An adapter may be
    loaded under another name than it was; its weights, or a vector's numbers, must be the same.
    """
    for problem in _problems(runtime, saved):
        raise SavedSessionError(f"{saved.origin or 'saved session'}: {problem}")


def _problems(runtime: Runtime, saved: SavedSession) -> Iterator[str]:
    base, n_vocab = runtime.fingerprint, runtime.vocab.n_tokens
    if saved.base != base:
        yield (
            f"was saved with the base {saved.base}, but this model is {base}; open that base, or "
            "read the conversation again"
        )
    if saved.n_cached:
        yield from _layout_problems(saved.cache, runtime.layout)
    files = runtime.bank.loaded().items()
    loaded = {name: f.identity for name, f in files if not isinstance(f, Combination)}
    for adapter in saved.adapters:
        if adapter.identity not in loaded.values():
            yield f"some of its cells were computed by {_missing(adapter, loaded)}"
    if saved.tokens and max(saved.tokens) >= n_vocab:
        yield f"token {max(saved.tokens)} is outside the vocabulary of {n_vocab}; {NOT_OURS}"
    if saved.logits and len(saved.logits) != 4 * n_vocab:
        yield (
            f"has {len(saved.logits) // 4} logits, expected one per token of the vocabulary of "
            f"{n_vocab}; {NOT_OURS}"
        )


def _missing(adapter: SavedAdapter, loaded: Mapping[str, str]) -> str:
    weights, name = f"weights {adapter.identity[:12]}", adapter.name
    if name is None:
        return (
            f"an adapter ({weights}) that had been unloaded when it was saved and is not loaded "
            "now; load it first, under any name"
        )
    if name in loaded:
        return (
            f"the adapter '{name}' ({weights}), but the one loaded as '{name}' has other weights "
            f"({loaded[name][:12]}); load the file that was used then, under any name"
        )
    known = ", ".join(f"'{each}'" for each in loaded) or "none"
    return f"the adapter '{name}' ({weights}), which is not loaded (loaded: {known}); load it first"


def _layout_problems(old: CacheLayout, now: CacheLayout) -> Iterator[str]:
    """Why a cell's bytes do not mean the same in both."""
    if old.llama_cpp != now.llama_cpp:
        yield (
            f"its cells are those of llama-cpp-python {old.llama_cpp}, but this is "
            f"{now.llama_cpp}, which may lay them out otherwise; read the conversation again"
        )
    fixes = {name: f"{name}={getattr(old, name)!r}" for name in ("type_k", "type_v", "flash_attn")}
    fixes["rope_context"] = f"n_ctx={old.rope_context}"
    for name in (f.name for f in fields(CacheLayout)):
        found, expected = getattr(old, name), getattr(now, name)
        if found == expected or (name == "flash_attn" and "auto" in (found, expected)):
            continue  # llama.cpp knows what it chose for "auto", and refuses by itself
        fix = f"open the model {f'with {fixes[name]}' if name in fixes else 'as it was then'}"
        if name == "rotated":
            fix = "set LLAMA_ATTN_ROT_DISABLE as it was then"
        yield (
            f"was saved with {name} {found!r}, but this model has {expected!r}; {fix}, or read the "
            "conversation again"
        )


def fill(sequence: TokenSequence, saved: SavedSession) -> None:
    """Fills an empty sequence with what was saved and checked. Raises as restore() does."""
    if saved.n_cached:
        try:
            sequence.engine.set_state(sequence.seq, saved.state, saved.n_cached)
        except CacheFullError:
            raise
        except DecodeError as error:
            raise SavedSessionError(
                f"{saved.origin}: {error}; open the model as it was when the session was "
                "saved, or read the conversation again"
            ) from error
        sequence.cached.extend(saved.tokens[: saved.n_cached], saved.spans)
    sequence.tokens = list(saved.tokens)
    if saved.logits:
        sequence.logits = np.frombuffer(saved.logits, "<f4").copy()
