"""Saves and restores a session by hand, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import alora_gguf as ag
from alora_gguf.engine.loading import CacheLayout, Memory
from alora_gguf.gguf.base import BaseFingerprint
from alora_gguf.saved import snapshot
from alora_gguf.saved.session_file import SavedAdapter, SavedSession
from tests.support import inside

GREEDY = ag.Sampling(temperature=0.0)


def layout(model: ag.Model, options: ag.ContextOptions | None = None) -> CacheLayout:
    """The cache layout of `model`, which was opened with `options`."""
    engine = inside.engine(model)
    llama = engine.native.llama
    weights = llama.llama_get_model(engine.ctx)
    memory: Memory = "attention"
    if llama.llama_model_is_recurrent(weights):
        memory = "recurrent"
    elif llama.llama_model_is_hybrid(weights):
        memory = "hybrid"
    return CacheLayout.of(
        options or ag.ContextOptions(),
        inside.runtime(model).base,
        n_ctx=model.n_ctx,
        memory=memory,
        window=llama.llama_model_n_swa(weights),
    )


def collect(
    session: ag.Session,
    options: ag.ContextOptions | None = None,
    notes: Mapping[str, Any] | None = None,
) -> SavedSession:
    """What Session.save() writes."""
    model = session.model
    names = {file.identity: name for name, file in model.adapters.items()}
    identities = dict.fromkeys(by.identity for _, by in session.provenance if by.identity)
    n = session.cached if session.cached <= len(session.tokens) else 0
    logits = inside.sequence(session).logits
    return SavedSession(
        tokens=tuple(session.tokens),
        spans=session.provenance,
        state=session.state() if n else b"",
        n_cached=n,
        base=BaseFingerprint.of(inside.runtime(model).base),
        adapters=tuple(SavedAdapter(i, names.get(i)) for i in identities),
        cache=layout(model, options),
        logits=logits.tobytes() if logits is not None and n == len(session.tokens) else b"",
        notes=notes or {},
    )


def check(saved: SavedSession, model: ag.Model) -> None:
    snapshot.check(inside.runtime(model), saved)


def restore(saved: SavedSession, model: ag.Model) -> ag.Session:
    """What Model.restore_session() does."""
    check(saved, model)
    session = model.session()
    conversation = inside.sequence(session)
    try:
        if saved.n_cached:
            inside.engine(model).set_state(conversation.seq, saved.state, saved.n_cached)
            conversation.cached.extend(saved.tokens[: saved.n_cached], saved.spans)
        conversation.tokens = list(saved.tokens)
        if saved.logits:
            conversation.logits = np.frombuffer(saved.logits, "<f4").copy()
    except BaseException:
        session.close()
        raise
    return session


def path_of(tmp_path: Path) -> Path:
    return tmp_path / "chat.session"
