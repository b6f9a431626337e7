"""ContextOptions.attention: whose attention a model's tokens have, and that its cells serve all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf import cli
from alora_gguf.engine.native import Native
from alora_gguf.llama import Llama
from alora_gguf.options import Attention
from tests.backends import ON_DEVICE
from tests.support import inside
from tests.support.files import Files
from tests.support.tiny_base import N_LAYER

pytestmark = pytest.mark.skipif(ON_DEVICE, reason="cells are on the CPU")

GREEDY = ag.Sampling(temperature=0.0)
EITHER = pytest.mark.parametrize("attention", get_args(Attention))


def opened(files: Files, attention: Literal["auto", "upstream"] | None = None) -> ag.Model:
    options = ag.ContextOptions(flash_attn="on")
    return files.model(options=options, attention=attention)


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What contexts are told."""
    told, tell = list[str](), Native.set_attention

    def telling(native: Native, ctx: int, mode: str) -> None:
        told.append(mode)
        tell(native, ctx, mode)

    monkeypatch.setattr(Native, "set_attention", telling)
    return told


def test_whose_nodes_compute(files: Files) -> None:
    """By default ours for the base as well; the adapted tokens' are ours either way."""
    logits = {}
    for attention, of_the_base in ((None, N_LAYER), ("auto", N_LAYER), ("upstream", 0)):
        with opened(files, attention) as model, model.session() as session:
            session.append("a conversation")
            assert model.stats().n_attention == of_the_base
            logits[attention] = inside.last_logits(session).copy()
            session.append("<certainty>", adapter="sure")
            assert model.stats().n_attention == N_LAYER
    assert np.array_equal(logits[None], logits["auto"])
    assert not np.array_equal(logits["upstream"], logits["auto"])
    apart = np.abs(logits["upstream"] - logits["auto"]).max() / np.abs(logits["auto"]).max()
    assert apart < 5e-3


def test_upstreams_is_what_a_context_of_llama_cpp_has(files: Files) -> None:
    """Of the same library, which was told nothing."""
    found = []
    for llama in (
        Llama(files.base, attention="upstream", **_SETTINGS),
        Llama(files.base, attention="auto", **_SETTINGS),
    ):
        with llama:
            llama.eval([5, 6, 7, 8, 9])
            found.append(np.array(llama.scores[:5]))
    import llama_cpp

    stock = llama_cpp.Llama(str(files.base), **_SETTINGS)
    stock.eval([5, 6, 7, 8, 9])
    assert np.array_equal(found[0], stock.scores[:5])
    assert not np.array_equal(found[1], stock.scores[:5])
    stock.close()


_SETTINGS: dict[str, Any] = {
    "n_ctx": 256, "n_threads": 1, "flash_attn": True, "logits_all": True, "verbose": False,
}  # fmt: skip


@EITHER
def test_questions_leave_a_conversations_cells(
    files: Files, attention: Literal["auto", "upstream"]
) -> None:
    """And a reply goes on as if nobody had asked."""
    replies = []
    for asks in (False, True):
        with opened(files, attention) as model, model.session() as session:
            session.append("a conversation about libraries")
            before = session.state()
            if asks:
                session.invoke_many(
                    [ag.Invocation(name, max_tokens=4) for name in ("sure", "other", None)]
                )
            assert session.state() == before
            replies.append(session.generate(max_tokens=8, sampling=GREEDY).read())
            replies.append(session.state())
    assert replies[:2] == replies[2:]


@EITHER
def test_cells_of_one_serve_the_other(
    files: Files, attention: Literal["auto", "upstream"], tmp_path: Path
) -> None:
    path = tmp_path / "talk.alora"
    with opened(files, attention) as model:
        session = model.session()
        session.append("a conversation")
        session.append("<certainty>", adapter="sure")
        session.save(path)
        state, logits = session.state(), inside.last_logits(session).copy()
    other: Literal["auto", "upstream"] = "auto" if attention == "upstream" else "upstream"
    with opened(files, other) as model, model.restore_session(path) as restored:
        assert restored.state() == state
        assert np.array_equal(inside.last_logits(restored), logits)
        made = restored.generate(max_tokens=4, sampling=GREEDY, adapter="sure")
        made.read()
        assert made.timings.evaluated == 0


@EITHER
def test_embeddings_have_the_models(
    files: Files, attention: Literal["auto", "upstream"], modes: list[str]
) -> None:
    with opened(files, attention) as model:
        model.embed(["a text"])
    assert set(modes) == {attention}
    assert len(modes) > 1


def test_another_word_is_refused(files: Files) -> None:
    for open_one in (
        lambda: files.model(attention="ours"),
        lambda: Llama(files.base, attention="ours", n_threads=1, verbose=False),  # type: ignore[arg-type]
    ):
        with pytest.raises(ag.InputError, match=r"attention must be .*auto.*upstream.*'ours'"):
            open_one()


@pytest.mark.parametrize(
    "command",
    [
        ["chat", "--prompt", "Hi", "-n", "1"],
        ["run", "--reply", "-n", "1", "FILE"],
        ["decide", "FILE"],
    ],
    ids=lambda command: command[0],
)
def test_commands_pass_it_on(
    command: list[str], tmp_path: Path, modes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "asked.json"
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
    if command[0] == "decide":
        asked = {"state": "x", "questions": {"q": {"type": "noul", "instructions": "Is it?"}}}
    file.write_text(json.dumps(asked))
    arguments = [str(file) if word == "FILE" else word for word in command]
    assert cli.run([*arguments, "--attention", "upstream"]) == 0
    assert set(modes) == {"upstream"}
    assert cli.run([*arguments, "--attention", "ours"]) == 2
    assert "--attention" in capsys.readouterr().err
