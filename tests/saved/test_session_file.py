"""A conversation that was saved goes on in another model as if nothing had happened."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.saved.session_file import SavedSession, read_saved, write_saved
from tests.support import inside
from tests.support.files import EXACT, Files
from tests.support.saving import GREEDY, collect, path_of, restore
from tests.support.tiny_base import write_hybrid, write_swa

TEXT = "<|user|>the rain in the main<|end|>"


def next_logits(session: ag.Session, **arguments: Any) -> np.ndarray[Any, Any]:
    """The logits after the last token and after one more."""
    first = inside.last_logits(session).copy()
    session.append([5], **arguments)
    return np.stack([first, inside.last_logits(session)])


def saved_copy(session: ag.Session, path: Path, **arguments: Any) -> SavedSession:
    """What comes back from a file."""
    saved = collect(session, **arguments)
    write_saved(path, saved)
    back = read_saved(path)
    assert back == saved
    assert back.origin == str(path)
    return back


# The way there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ag.ContextOptions(),
        EXACT,
        ag.ContextOptions(type_k="bf16", flash_attn="off"),
        ag.ContextOptions(type_v="f32", flash_attn="on"),
    ],
    ids=["defaults", "exact", "transposed", "mixed"],
)
def test_goes_on_bit_for_bit(files: Files, tmp_path: Path, options: ag.ContextOptions) -> None:
    with files.model(options=options) as model:
        session = model.session()
        session.append(TEXT)
        session.append("then <certainty>", adapter="sure", scale=0.5)
        saved = saved_copy(session, path_of(tmp_path), options=options)
        text, spans = session.text, session.provenance
        logits = next_logits(session, adapter="sure", scale=0.5)
    assert [adapter.name for adapter in saved.adapters] == ["sure"]
    assert spans[-1][1].scale == 0.5
    with files.model(options=options) as model:
        again = restore(saved, model)
        assert (again.text, again.tokens) == (text, list(saved.tokens))
        assert (again.provenance, again.cached) == (spans, len(saved.tokens))
        assert again.state() == saved.state
        assert np.array_equal(next_logits(again, adapter="sure", scale=0.5), logits)


def test_nothing_is_read_again(files: Files, tmp_path: Path) -> None:
    with files.model() as model:
        session = model.session()
        session.append(TEXT)
        saved = saved_copy(session, path_of(tmp_path), options=EXACT)
        reply = session.generate(max_tokens=6, sampling=GREEDY).read()
        verdict = session.invoke(ag.Invocation("sure", max_tokens=4, sampling=GREEDY))
        state = session.state()
    with files.model() as model:
        again = restore(saved, model)
        generation = again.generate(max_tokens=6, sampling=GREEDY)
        assert generation.read() == reply
        assert generation.timings.evaluated == 0
        asked = again.invoke(ag.Invocation("sure", max_tokens=4, sampling=GREEDY))
        assert (asked.text, asked.tokens) == (verdict.text, verdict.tokens)
        assert asked.timings.reused == verdict.timings.reused
        assert again.state() == state


def test_two_restored_sessions_and_a_fork_share_a_model(files: Files, tmp_path: Path) -> None:
    with files.model() as model:
        session = model.session()
        session.append(TEXT)
        saved = saved_copy(session, path_of(tmp_path), options=EXACT)
        other = restore(saved, model)
        for one in (session, other, other.fork()):
            assert one.append("more").reused == len(saved.tokens)
        other.rewind(3)
        assert (other.cached, session.text) == (3, f"<|bos|>{TEXT}more")


def test_cells_in_any_order(files: Files, tmp_path: Path) -> None:
    with files.model(n_ctx=256) as model:
        a, b = model.session(), model.session()
        for i in range(6):
            a.append([10 + i] * 9)
            b.append([40 + i] * 7)
        a.close()
        b.append([1] * 60)  # into the gaps
        saved = saved_copy(b, path_of(tmp_path), options=EXACT)
        logits = next_logits(b)
    with files.model(n_ctx=256) as model:
        again = restore(saved, model)
        assert np.allclose(next_logits(again), logits, atol=1e-4)


def test_base_cells_need_no_adapters(files: Files, tmp_path: Path) -> None:
    with files.model() as model:
        session = model.session()
        session.append(TEXT)
        saved = saved_copy(session, path_of(tmp_path), options=EXACT)
    assert saved.adapters == ()
    with ag.Model(files.base, n_ctx=1024, n_threads=1, options=EXACT) as model:
        assert restore(saved, model).append("more").reused == len(saved.tokens)


def test_an_adapter_may_have_another_name(files: Files, tmp_path: Path) -> None:
    with files.model() as model:
        session = model.session()
        session.append("so <certainty>", adapter="sure")
        saved = saved_copy(session, path_of(tmp_path), options=EXACT)
    with files.model(adapters={"certainty": files.alora}) as model:
        again = restore(saved, model)
        assert again.sync(again.tokens, adapter="certainty").reused == len(saved.tokens)


def test_a_session_with_fewer_cells_or_none(files: Files, tmp_path: Path) -> None:
    with files.model() as model:
        empty = saved_copy(model.session(), path_of(tmp_path), options=EXACT)
        assert (empty.tokens, empty.state) == ((), b"")
        assert restore(empty, model).tokens == []
        session = model.session()
        session.append(TEXT)
        inside.sequence(session).cut(5)  # as after a call that failed
        saved = saved_copy(session, path_of(tmp_path), options=EXACT)
        assert (saved.n_cached, saved.logits) == (5, b"")
        again = restore(saved, model)
        assert (again.cached, again.text) == (5, session.text)
        assert again.append("!").reused == 5


def test_hybrid_memory(tmp_path: Path) -> None:
    """With llama.cpp's attention, whose bits do not depend on where so few cells lie."""
    base = write_hybrid(tmp_path / "hybrid.gguf")
    with ag.Model(base, n_ctx=512, n_threads=1, attention="upstream") as model:
        session = model.session()
        session.sync(list(range(50)))
        saved = saved_copy(session, path_of(tmp_path))
        logits = next_logits(session)
    assert saved.cache.memory == "hybrid"
    with ag.Model(base, n_ctx=512, n_threads=1, attention="upstream") as model:
        again = restore(saved, model)
        assert again.state() == saved.state
        assert again.generate(max_tokens=1, sampling=GREEDY).timings.evaluated == 0
        assert np.array_equal(next_logits(restore(saved, model)), logits)


def test_sliding_window(tmp_path: Path) -> None:
    base = write_swa(tmp_path / "swa.gguf")
    with ag.Model(base, n_ctx=512, n_threads=1) as model:
        session = model.session()
        session.sync(list(range(1, 61)))
        saved = saved_copy(session, path_of(tmp_path))
        logits = next_logits(session)
    assert saved.cache.window == 8
    with ag.Model(base, n_ctx=512, n_threads=1) as model:
        again = restore(saved, model)
        assert again.state() == saved.state
        assert np.array_equal(next_logits(again), logits)


def test_a_restored_sliding_window_can_be_rewound(tmp_path: Path) -> None:
    base = write_swa(tmp_path / "swa.gguf")
    with ag.Model(base, n_ctx=512, n_threads=1) as model:
        session = model.session()
        session.sync(list(range(1, 61)))
        saved = saved_copy(session, path_of(tmp_path))
        again = restore(saved, model)
        for one in (session, again):
            one.rewind(20)
            one.append([7, 8, 9])
        assert np.allclose(inside.last_logits(session), inside.last_logits(again), atol=0.05)


@pytest.mark.parametrize("types", ["f16", "q8_0"])
def test_demo_model(tmp_path: Path, types: Any) -> None:
    options = ag.ContextOptions(type_k=types, type_v=types)
    with ag.Model(demo.base_path(), n_threads=1, options=options) as model:
        session = model.session()
        session.append("The library opens at")
        saved = saved_copy(session, path_of(tmp_path), options=options)
        assert saved.cache.rotated == (types == "q8_0")
        reply = session.generate(max_tokens=8, sampling=GREEDY).read()
        state = session.state()
    with ag.Model(demo.base_path(), n_threads=1, options=options) as model:
        again = restore(saved, model)
        assert again.generate(max_tokens=8, sampling=GREEDY).read() == reply
        assert again.state() == state


# The file -----------------------------------------------------------------------------------------


@pytest.fixture
def saved(files: Files) -> SavedSession:
    with files.model() as model, model.session() as session:
        session.append(TEXT)
        return collect(session, options=EXACT)


def test_notes_come_back_verbatim(saved: SavedSession, tmp_path: Path) -> None:
    notes = {
        "messages": [{"role": "user", "content": "Grüße \ud800 \x00 \u2028 🙂"}],
        "z": None, "a": [1, 1.5, 1e300, 2**70, True, {}], "": "",
    }  # fmt: skip
    write_saved(path_of(tmp_path), replace(saved, notes=notes))
    assert read_saved(path_of(tmp_path)).notes == notes


@pytest.mark.parametrize(
    "notes",
    [{"a": (1, 2)}, {1: "a"}, {"a": {1}}, {"a": float("nan")}, {"a": float("inf")}, {"a": b"x"}],
    ids=str,
)
def test_notes_that_json_would_change_are_refused(
    saved: SavedSession, tmp_path: Path, notes: dict[Any, Any]
) -> None:
    with pytest.raises(ag.InputError, match="notes cannot be saved: "):
        write_saved(path_of(tmp_path), replace(saved, notes=notes))
    assert list(tmp_path.iterdir()) == []


def test_the_same_session_makes_the_same_bytes(saved: SavedSession, tmp_path: Path) -> None:
    notes = {"b": 1, "a": 2}
    write_saved(tmp_path / "1", replace(saved, notes=notes))
    write_saved(tmp_path / "2", replace(saved, notes=dict(reversed(notes.items()))))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and links")
def test_permissions_and_links(saved: SavedSession, tmp_path: Path) -> None:
    target, link = tmp_path / "real", tmp_path / "link"
    write_saved(target, saved)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    target.chmod(0o644)
    link.symlink_to(target)
    write_saved(link, replace(saved, notes={"n": 2}))
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert read_saved(target).notes == {"n": 2}
