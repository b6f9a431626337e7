"""Chats that are open over midnight: a date that their template writes stays what it was, so that
what is cached can go on serving.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.llama import Llama
from alora_gguf.saved.container import read_parts, write_parts
from tests.support import tiny_base
from tests.support.chats import PLAIN, YES_NO, brief
from tests.support.files import Files

DATED = "{{ '<|user|>' + strftime_now('%d %B, %H:%M') + '<|end|>' }}" + PLAIN
DAY = 24 * 3600.0
Pass = Callable[[float], None]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Pass:
    """Moves the clock on by so many seconds, from noon on the first of March."""
    now = [time.mktime((2026, 3, 1, 12, 0, 0, 0, 0, 0))]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_a_chat_keeps_the_date_of_its_beginning(files: Files, later: Pass) -> None:
    with files.model() as model:
        chat = model.chat(template=DATED)
        chat.say("a", brief())
        read = len(chat.tokens)
        later(DAY)
        fork = chat.fork()
        for each in (chat, fork):
            assert each.say("b", brief()).timings.reused >= read
        assert "01 March, 12:00" in chat.session.text
        assert "01 March, 12:00" in fork.session.text
        model.set_contract("sure", ag.Contract.parse(YES_NO))
        for _ in range(2):
            later(DAY)
            assert chat.read().evaluated <= 1  # what ends the reply
            assert chat.invoke("sure").timings.reused == len(chat.tokens)
        chat.rewind(2)
        later(DAY)
        chat.say("c", brief())
        assert "01 March" in chat.session.text
        other = model.chat(template=DATED)
        other.say("a", brief())
        assert "05 March, 12:00" in other.session.text


def test_a_saved_chat_keeps_it(files: Files, tmp_path: Path, later: Pass) -> None:
    path = tmp_path / "talk.chat"
    with files.model() as model:
        chat = model.chat(template=DATED)
        chat.say("a", brief())
        chat.save(path)
        kept = chat.tokens
    later(DAY)
    with files.model() as model:
        restored = model.restore(path)
        assert restored.say("b", brief()).timings.reused == len(kept)
        restored.save(path)
    later(DAY)
    with files.model() as model:
        restored = model.restore(path)
        assert restored.read().evaluated <= 1  # what ends the reply
        assert "01 March, 12:00" in restored.session.text


@pytest.mark.parametrize("now", [None, "", "yesterday", 3, "2026-03-01T12:00:00"])
def test_a_saved_chat_without_a_date_has_the_present(
    files: Files, tmp_path: Path, later: Pass, now: Any
) -> None:
    """Those of older releases; what is no date is refused."""
    path = tmp_path / "talk.chat"
    with files.model() as model:
        chat = model.chat(template=DATED, messages=["a"])
        chat.read()
        chat.save(path)
        header, parts = read_parts(path)
        notes = header["notes"]["alora_gguf.chat"]
        del notes["now"]
        notes |= {} if now is None else {"now": now}
        write_parts(path, header, parts)
        later(DAY)
        if now in ("", "yesterday", 3):
            with pytest.raises(ag.SavedSessionError, match="damaged"):
                model.restore(path)
            return
        restored = model.restore(path)
        restored.read()
        day = "02 March" if now is None else "01 March"
        assert day in restored.session.text
        assert restored.session.text.count("March") == 1


def test_the_drop_in_keeps_it_while_a_conversation_goes_on(tmp_path: Path, later: Pass) -> None:
    base = tiny_base.write_base(tmp_path / "base.gguf", template=DATED)
    wanted = {"max_tokens": 4, "temperature": 0.0}
    with Llama(base, n_ctx=512, verbose=False, n_threads=1) as llm:

        def ask(messages: list[Any]) -> str:
            llm.create_chat_completion(messages, **wanted)
            return llm.detokenize(llm.input_ids[: llm.n_tokens].tolist(), special=True).decode(
                "utf-8", "replace"
            )

        first = [{"role": "user", "content": "a"}]
        assert "01 March" in ask(first)
        later(DAY)
        going_on = [*first, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
        assert "01 March" in ask(going_on)
        assert llm.last_timings.reused > 20
        later(DAY)
        stream: Any = llm.create_chat_completion([*going_on, *going_on[1:]], stream=True, **wanted)
        assert len(list(stream)) > 1
        assert llm.last_timings.reused > 20
        assert "03 March" in ask(first)  # what begins anew, if with the same words
        other = [{"role": "user", "content": "x"}, *going_on]
        later(DAY)
        assert "04 March" in ask(other)
