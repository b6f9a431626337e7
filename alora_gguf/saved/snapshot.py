"""A sequence as a saved session, and back: the way between llama.cpp's cells and the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from alora_gguf.engine.provenance import BASE, spans_for
from alora_gguf.engine.runtime import Runtime
from alora_gguf.engine.sequence import TokenSequence
from alora_gguf.errors import CacheFullError, DecodeError, InputError, SavedSessionError

from .session_file import SavedAdapter, SavedSession, check_saved, read_saved


def snapshot(runtime: Runtime, sequence: TokenSequence, notes: Mapping[str, Any]) -> SavedSession:
    """All of a sequence, whose lock the caller holds. Raises InputError for a model whose window of
    attention has been exceeded: llama.cpp saves too little of it.
    """
    engine, record = runtime.engine, sequence.cached
    window, cached = engine.window, len(record)
    if 0 < window < cached:
        raise InputError(
            f"{engine.path}: attends to a window of {window} tokens, and the "
            f"conversation has {cached}: only shorter ones can be saved"
        )
    # a memory that cannot rewind may hold more than the conversation
    n = cached if cached <= len(sequence.tokens) else 0
    spans = record.spans if n else spans_for(None, BASE)
    names = runtime.names()
    identities = dict.fromkeys(by.identity for _, by in spans if by.identity is not None)
    logits = sequence.logits if n and sequence.ready else None
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
    sequence = runtime.sequence()
    try:
        fill(sequence, saved)
    except BaseException:
        sequence.close()
        raise
    return sequence, saved


def check(runtime: Runtime, saved: SavedSession) -> None:
    """Raises SavedSessionError if the cells mean something else to this model."""
    check_saved(
        saved,
        base=runtime.fingerprint,
        cache=runtime.layout,
        adapters_loaded={name: file.identity for name, file in runtime.bank.items()},
        n_vocab=runtime.vocab.n_tokens,
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
