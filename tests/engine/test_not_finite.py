"""What is not finite stays with who computed it: nobody else ever meets it, also not later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from tests.support import inside, tiny_base
from tests.support.files import (
    EXACT,
    Files,
    write_files,
    write_hybrid_files,
    write_window_files,
)

WRITE: dict[str, Callable[[Path], Files]] = {
    "llama": write_files,
    "window": lambda folder: write_window_files(folder, 30),
    "hybrid": write_hybrid_files,
}
INNOCENT = [(7 * i) % 250 for i in range(100)]


@pytest.fixture(scope="module", params=WRITE)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return WRITE[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def bad(kind: Files, tmp_path: Path) -> Path:
    """An adapter whose finite weights overflow at a scale of 1000, also in F32."""
    return kind.write_adapter(tmp_path / "bad.gguf", targets=("attn_v", "attn_k"), strength=1e37)


@pytest.fixture(params=["auto f16", "auto f32", "off f32", "off f16"])
def model(request: pytest.FixtureRequest, kind: Files, bad: Path) -> Iterator[ag.Model]:
    flash, cells = request.param.split()
    options = replace(EXACT, flash_attn=flash, type_k=cells, type_v=cells, n_pooled=2)
    with kind.model(options=options, adapters={"bad": bad}) as opened:
        yield opened


def logits(model: ag.Model, tokens: list[int] = INNOCENT) -> np.ndarray[Any, np.dtype[np.float32]]:
    with model.session() as session:
        session.append(tokens)
        return inside.last_logits(session)


@pytest.mark.parametrize("n", [1, 70])
def test_whoever_comes_after(model: ag.Model, n: int) -> None:
    before = logits(model)
    inside.forget_prefixes(model)
    with model.session() as offender:
        with pytest.raises(ag.DecodeError, match="not finite"):
            offender.append(list(range(n)), adapter="bad", scale=1000)
        assert offender.tokens == []
        assert np.isfinite(logits(model, INNOCENT[::-1])).all()  # while it is open
    inside.forget_prefixes(model)
    assert np.array_equal(logits(model), before)


def test_whoever_shares_the_batch(model: ag.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before = logits(model)
    inside.forget_prefixes(model)
    scheduler = inside.engine(model).scheduler
    failed = list[BaseException]()
    with model.session() as innocent, model.session() as offender:

        def offend() -> None:
            try:
                offender.append(list(range(70)), adapter="bad", scale=1000)
            except ag.DecodeError as error:
                failed.append(error)

        scheduler.barrier(2)
        thread = threading.Thread(target=offend)
        thread.start()
        innocent.append(INNOCENT)
        thread.join()
        assert len(failed) == 1
        assert np.allclose(inside.last_logits(innocent), before, rtol=0.02, atol=0.02)


def test_states_that_are_not_finite_are_refused(model: ag.Model) -> None:
    before = logits(model)
    inside.forget_prefixes(model)
    engine = inside.engine(model)
    with model.session() as session:
        session.append(INNOCENT)
        state = bytearray(session.state())
    state[-64:] = np.full(16, np.nan, np.float32).tobytes()
    seq = engine.allocate()
    with pytest.raises(ag.DecodeError, match="not finite"):
        engine.set_state(seq, bytes(state), len(INNOCENT))
    engine.drop(seq)
    inside.forget_prefixes(model)
    assert np.array_equal(logits(model), before)


def test_an_aborted_batch_leaves_nothing(kind: Files, bad: Path) -> None:
    """The cells it has written already are freed, and zero."""
    with kind.model(adapters={"bad": bad}) as model:
        before = logits(model)
        engine = inside.engine(model)
        llama, decode = engine.llama, engine.llama.llama_decode
        with model.session() as session, pytest.MonkeyPatch.context() as patch:
            patch.setattr(llama, "llama_decode", lambda *given: decode(*given) or 2)
            with pytest.raises(ag.DecodeError, match="aborted"):
                session.append(list(range(70)), adapter="bad", scale=1000)
        assert np.array_equal(logits(model), before)


@pytest.mark.parametrize("scale", [1001.0, -1e30, float("nan")])
def test_scales_have_a_bound(files: Files, scale: float) -> None:
    with files.model() as model, model.session() as session:
        with pytest.raises(ag.InputError, match="scale must be a finite number in"):
            session.append([1, 2], adapter="lora", scale=scale)
        with pytest.raises(ag.InputError, match="scale must be a finite number in"):
            ag.Invocation("lora", scale=scale)


def test_a_good_adapter_at_a_scale_too_large_for_it(files: Files, tmp_path: Path) -> None:
    strong = tiny_base.write_adapter(tmp_path / "strong.gguf", strength=1e4)
    options = replace(EXACT, flash_attn="auto", type_k="f16", type_v="f16")
    with files.model(adapters={"strong": strong}, options=options) as model:
        before = logits(model)
        with model.session() as session, pytest.raises(ag.DecodeError, match="smaller scale"):
            session.append(INNOCENT[::-1], adapter="strong", scale=1000.0)
        assert np.array_equal(logits(model), before)
