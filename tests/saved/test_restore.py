"""Session.save() and Model.restore_session(): a conversation goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

import alora_gguf as ag
from tests.support import inside
from tests.support.files import Files

GREEDY = ag.Sampling(temperature=0.0)


def test_a_conversation_survives_a_restart_without_being_read_again(
    files: Files, tmp_path: Path
) -> None:
    path = tmp_path / "talk.alora"
    with files.model() as model:
        session = model.session()
        session.append("a long conversation about libraries")
        session.append("<certainty>and more", adapter="sure")
        session.save(path, notes={"title": "libraries"})
        state, spans = session.state(), session.provenance
        expected = session.generate(max_tokens=8, sampling=GREEDY, adapter="sure").read()
    with files.model() as model:
        restored = model.restore_session(path)
        assert restored.state() == state
        assert restored.provenance == spans
        reply = restored.generate(max_tokens=8, sampling=GREEDY, adapter="sure")
        assert reply.read() == expected
        assert reply.timings.evaluated == 0


def test_adapted_cells_want_their_adapter_and_base_cells_want_none(
    files: Files, tmp_path: Path
) -> None:
    plain, adapted = tmp_path / "plain.alora", tmp_path / "adapted.alora"
    with files.model() as model:
        session = model.session()
        session.append("a conversation")
        session.save(plain)
        session.append("<certainty>", adapter="sure")
        session.save(adapted)
    with ag.Model(files.base, n_ctx=1024, n_threads=1, options=model_options()) as bare:
        assert bare.restore_session(plain).cached > 0
        with pytest.raises(ag.SavedSessionError, match="sure"):
            bare.restore_session(adapted)
        bare.load_adapter("sure", files.other)  # the name, but other weights
        with pytest.raises(ag.SavedSessionError, match="sure"):
            bare.restore_session(adapted)
        inside.engine(bare).collect()
        assert inside.cells(bare).free_sequences == inside.cells(bare).n_seqs


def model_options() -> ag.ContextOptions:
    return ag.ContextOptions(type_k="f32", type_v="f32", flash_attn="off", n_pooled=0)


def test_another_cache_type_is_refused(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "talk.alora"
    with files.model() as model:
        session = model.session()
        session.append("a conversation")
        session.save(path)
    with (
        ag.Model(files.base, n_ctx=1024, n_threads=1) as other,
        pytest.raises(ag.SavedSessionError, match=r"f16|f32"),
    ):
        other.restore_session(path)
