"""What print() and repr() show of what a program holds: answers their text, all else one line."""

from __future__ import annotations

from pathlib import Path

import alora_gguf as ag
from tests.support.chats import PLAIN
from tests.support.files import Files


def test_answers_print_their_text(model: ag.Model) -> None:
    with model.chat(template=PLAIN, messages=["hello"]) as chat:
        reply = chat.reply(max_tokens=4, temperature=0)
        assert str(reply) == reply.text
        assert repr(reply) == f"<Reply length: {reply.text!r}>"
        session = chat.session.fork()
        generation = session.generate(max_tokens=3, temperature=0)
        assert repr(generation) == "<Generation running: ''>"
        assert generation.read() == str(generation)
        verdict = session.invoke("sure", max_tokens=3)
        assert str(verdict) == verdict.text
        model.set_contract(
            "sure", ag.Contract.parse("model: ~\nresponse_format: ~\ntransformations: ~\n")
        )
        result = chat.invoke("sure", max_tokens=3)
        assert str(result) == result.text
        for each in (verdict, result):
            assert "\n" not in repr(each)
            assert len(repr(each)) < 600


def test_everything_else_is_a_line(model: ag.Model, files: Files, tmp_path: Path) -> None:
    assert repr(model) == f"<Model {files.base}: llama, 1024 cells, sure, other, lora>"
    with model.session() as session:
        session.append("hello")
        assert repr(session) == "<Session: 6 tokens, 6 cached>"
    assert repr(session) == "<Session: closed>"
    with model.chat(template=PLAIN, messages=["a", "b"]) as chat:
        assert repr(chat) == "<Chat: 2 messages, 0 tokens>"
    assert repr(chat) == "<Chat: closed>"
    assert repr(ag.Store(tmp_path)) == f"<Store {tmp_path}>"
    assert len(repr(model.adapter("sure"))) < 600
    model.close()
    assert repr(model) == f"<Model {files.base}: closed>"
