"""A saved session is given only to a model that means the same by its cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.engine.tokens import Provenance
from alora_gguf.saved.session_file import SavedSession, read_saved, write_saved
from tests.support import inside, tiny_base
from tests.support.files import EXACT, Files
from tests.support.saving import check, collect, layout, path_of, restore
from tests.support.tiny_base import write_hybrid

TEXT = "<|user|>the rain in the main<|end|>"


@pytest.fixture
def saved(files: Files) -> SavedSession:
    with files.model() as model, model.session() as session:
        session.append(TEXT)
        return collect(session, options=EXACT)


def refused(saved: SavedSession, model: ag.Model, *said: str) -> None:
    with pytest.raises(ag.SavedSessionError) as caught:
        check(saved, model)
    for text in said:
        assert text in str(caught.value)


def test_another_base_is_refused(files: Files, saved: SavedSession, tmp_path: Path) -> None:
    write_saved(path_of(tmp_path), saved)
    saved = read_saved(path_of(tmp_path))
    other = tiny_base.write_base(tmp_path / "another.gguf", seed=9)  # of the same shapes
    with ag.Model(other, n_ctx=1024, n_threads=1, options=EXACT) as model:
        path, file = str(path_of(tmp_path)), files.base.name
        refused(saved, model, path, f"with the base {file} (llama", "is another.gguf", "open that")
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(files.base.read_bytes())
    with ag.Model(moved, n_ctx=1024, n_threads=1, options=EXACT) as model:
        check(saved, model)


def test_another_adapter_is_refused(files: Files, tmp_path: Path) -> None:
    with files.model() as model:
        session = model.session()
        session.append("so <certainty>", adapter="sure")
        saved = collect(session, options=EXACT)
        identity = model.adapters["sure"].identity
        model.unload_adapter("sure")
        unnamed = collect(session, options=EXACT)
    assert [adapter.name for adapter in unnamed.adapters] == [None]
    hash12 = identity[:12]
    with files.model(adapters={}) as model:
        refused(saved, model, f"'sure' (weights {hash12}), which is not loaded (loaded: none)")
        refused(unnamed, model, f"an adapter (weights {hash12}) that had been unloaded", "load it")
    with files.model(adapters={"sure": files.other}) as model:
        refused(saved, model, "loaded as 'sure' has other weights", "load the file that was used")
    with files.model(adapters={"other": files.other}) as model:
        refused(saved, model, "(loaded: 'other'); load it first")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"llama_cpp": "0.3.99"}, "llama-cpp-python 0.3.99, but this is 0.3."),
        ({"type_k": "f16"}, "type_k 'f16', but this model has 'f32'; open the model with type_k="),
        ({"type_v": "q8_0"}, "type_v 'q8_0', but this model has 'f32'"),
        ({"memory": "hybrid"}, "memory 'hybrid', but this model has 'attention'"),
        ({"window": 512}, "window 512, but this model has 0"),
        ({"swa_full": False}, "swa_full False"),
        ({"rotated": True}, "set LLAMA_ATTN_ROT_DISABLE as it was then"),
        ({"rope_context": 9000}, "open the model with n_ctx=9000"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_cache_layout_is_refused(
    files: Files, saved: SavedSession, changes: dict[str, Any], said: str
) -> None:
    with files.model() as model:
        refused(replace(saved, cache=replace(saved.cache, **changes)), model, said)
        none = replace(saved, cache=replace(saved.cache, **changes), n_cached=0, state=b"")
        check(none, model)  # without cells, their layout does not matter


@pytest.mark.parametrize("old", ["on", "off"])
def test_other_flash_attention_is_refused(files: Files, old: Any) -> None:
    with files.model(options=ag.ContextOptions(flash_attn=old)) as model:
        session = model.session()
        session.append(TEXT)
        saved = collect(session, options=ag.ContextOptions(flash_attn=old))
    now: Any = "on" if old == "off" else "off"
    options = ag.ContextOptions(flash_attn=now)
    with files.model(options=options) as model, pytest.raises(ag.SavedSessionError) as caught:
        check(saved, model)
    assert f"flash_attn '{old}', but this model has '{now}'; open the model with" in str(
        caught.value
    )


def test_what_auto_has_chosen_llama_cpp_knows(files: Files, tmp_path: Path) -> None:
    auto = ag.ContextOptions()  # "auto" is "on" on a CPU
    with files.model(options=auto) as model, model.session() as session:
        session.append(TEXT)
        session.save(path_of(tmp_path))
    with files.model(options=ag.ContextOptions(flash_attn="on")) as model:
        assert model.restore_session(path_of(tmp_path)).cached
    with (
        files.model(options=ag.ContextOptions(flash_attn="off")) as model,
        pytest.raises(ag.SavedSessionError, match=r"V transposition.* open the model as it was"),
    ):
        model.restore_session(path_of(tmp_path))


def test_llama_cpp_refuses_what_auto_hides(files: Files, saved: SavedSession) -> None:
    options = ag.ContextOptions(type_k="f32", type_v="f32", flash_attn="auto")
    with files.model(options=options) as model:
        check(saved, model)
        with pytest.raises(ag.DecodeError, match="incompatible V transposition"):
            restore(saved, model)
        with model.session() as session:
            assert session.append(TEXT).reused == 0


@pytest.mark.parametrize("changes", [{"type_k": "f16"}, {"type_v": "f16"}], ids=str)
def test_llama_cpp_refuses_other_types_by_itself(
    files: Files, saved: SavedSession, changes: dict[str, Any]
) -> None:
    with files.model(options=replace(EXACT, **changes)) as model:
        cells_are_refused(saved, model, "mismatched (key|value) type")


def test_llama_cpp_refuses_other_layers_by_itself(saved: SavedSession, tmp_path: Path) -> None:
    base = write_hybrid(tmp_path / "hybrid.gguf")
    with ag.Model(base, n_ctx=512, n_threads=1, options=EXACT) as model:
        cells_are_refused(saved, model, "mismatched layer count")


def cells_are_refused(saved: SavedSession, model: ag.Model, said: str) -> None:
    """What happens if nobody checks: an error, and a model that works."""
    session = model.session()
    with pytest.raises(ag.DecodeError, match=said):
        inside.engine(model).set_state(inside.sequence(session).seq, saved.state, saved.n_cached)
    assert session.sync([1, 2, 3]).evaluated == 3
    assert len(session.state()) < len(saved.state)


def test_a_cache_that_is_too_small(files: Files, tmp_path: Path) -> None:
    with files.model() as model:
        session = model.session()
        session.append([5] * 400)
        write_saved(path_of(tmp_path), collect(session, options=EXACT))
        saved = read_saved(path_of(tmp_path))
    with files.model(n_ctx=256) as model:
        with pytest.raises(ag.CacheFullError):
            restore(saved, model)
        assert model.session().append([5] * 200).evaluated == 200


def test_another_vocabulary_is_refused(files: Files, saved: SavedSession) -> None:
    with files.model() as model:
        big = replace(saved, tokens=(*saved.tokens[:-1], model.n_vocab), logits=b"")
        refused(big, model, f"token {model.n_vocab} is outside the vocabulary")
        refused(replace(saved, logits=saved.logits[4:]), model, "logits, expected one per token")


def test_layout_of_a_quantized_cache(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    with files.model() as model:
        assert layout(model, ag.ContextOptions(type_k="q8_0")).rotated
        monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
        assert not layout(model, ag.ContextOptions(type_k="q8_0")).rotated
        assert not layout(model, ag.ContextOptions()).rotated


def test_provenance_is_compared_in_float32(files: Files, tmp_path: Path) -> None:
    with files.model() as model:
        session = model.session()
        session.append("so <certainty>", adapter="sure", scale=0.1)
        write_saved(path_of(tmp_path), collect(session, options=EXACT))
        saved = read_saved(path_of(tmp_path))
        identity = model.adapters["sure"].identity
        assert saved.spans[-1][1] == Provenance.of(identity, 0.1)
        again = restore(saved, model)
        assert again.sync(again.tokens, adapter="sure", scale=0.1).evaluated == 0
