"""Intrinsics that are asked while a reply begins, and conversations that are replaced in place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.demo import script
from tests.support.files import EXACT


@pytest.fixture(scope="module")
def played() -> Iterator[ag.Model]:
    """The demo's model with its five adapters."""
    with ag.Model(
        demo.base_path(),
        adapters=demo.adapter_paths(),
        n_ctx=8192,
        n_threads=1,
        options=EXACT,
    ) as model:
        yield model


QUESTION = "When does the library close on Saturdays?"


def test_intrinsics_are_asked_about_what_was_said_while_the_reply_goes_on(played: ag.Model) -> None:
    with played.chat(documents=script.DOCUMENTS) as chat, chat.fork() as other:
        reply = chat.say(
            QUESTION,
            max_tokens=8,
            temperature=0,
            stream=True,
            intrinsics=["answerability", ag.IntrinsicCall("query_rewrite")],
        )
        wanted = other.say(QUESTION, max_tokens=8, temperature=0)
        assert reply.read() == wanted.text
        found = [future.result(timeout=60) for future in reply.intrinsics]
        assert [each.name for each in found] == ["answerability", "query_rewrite"]
        again = other.fork()
        again.rewind()
        again.add(QUESTION)
        assert [each.text for each in again.invoke_many(["answerability", "query_rewrite"])] == [
            each.text for each in found
        ]
        assert chat.messages == other.messages
        assert reply.timings.evaluated >= wanted.timings.evaluated
        assert wanted.intrinsics == ()


def test_a_reply_and_its_intrinsics_share_their_first_batch(
    played: ag.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alora_gguf.engine.scheduler import Scheduler

    with played.chat(documents=script.DOCUMENTS, messages=["Hello"]) as chat:
        chat.read()
        waiting = []
        barrier = Scheduler.barrier
        monkeypatch.setattr(
            Scheduler, "barrier", lambda *args: waiting.append(args[1]) or barrier(*args)
        )
        reply = chat.reply(max_tokens=2, intrinsics=["answerability"])
        assert reply.intrinsics[0].result(timeout=60).value is not None
        assert waiting == [2]


def test_an_intrinsic_that_cannot_be_asked_keeps_nobody_from_it(played: ag.Model) -> None:
    with played.chat(documents=script.DOCUMENTS) as chat:
        calls = ["nobody", "answerability", ag.IntrinsicCall("answerability", {"no": "such"})]
        reply = chat.say(QUESTION, max_tokens=2, intrinsics=calls)
        nobody, answerability, wrong = reply.intrinsics
        assert answerability.result(timeout=60).value
        with pytest.raises(ag.UnknownAdapterError):
            nobody.result(timeout=60)
        with pytest.raises(ag.InputError, match="unknown argument no"):
            wrong.result(timeout=60)


def test_a_reply_that_cannot_begin_leaves_the_chat_as_it_was(played: ag.Model) -> None:
    with played.chat(documents=script.DOCUMENTS, messages=["Hello"]) as chat:
        before = chat.messages
        with pytest.raises(ag.UnknownAdapterError):
            chat.say(QUESTION, adapter="nobody", intrinsics=["answerability"])
        with pytest.raises(ag.InputError, match="expected an intrinsic's name or an IntrinsicCall"):
            chat.say(QUESTION, intrinsics=[3])  # type: ignore[list-item]
        assert chat.messages == before
        assert chat.say(QUESTION, max_tokens=2).finish_reason in ("stop", "length")


def test_a_conversation_is_replaced_in_place(played: ag.Model) -> None:
    with played.chat(messages=["Hello", ag.Message("assistant", "Hi."), "How are you?"]) as chat:
        chat.read()
        n = chat.session.cached
        timings = chat.replace(["Hello", ag.Message("assistant", "Hi."), "What?"])
        assert 0 < timings.reused < n
        assert [message.content for message in chat.messages] == ["Hello", "Hi.", "What?"]
        with played.chat(messages=chat.messages) as fresh:
            fresh.read()
            assert fresh.tokens == chat.tokens
        chat.replace(documents=["Nothing."])
        assert [each.text for each in chat.documents] == ["Nothing."]
        assert chat.messages[-1].content == "What?"
        assert chat.replace([]) == ag.Timings()
        assert chat.messages == []


def test_a_replacement_that_fails_changes_nothing(played: ag.Model) -> None:
    with played.chat(messages=["Hello"]) as chat:
        chat.read()
        cancelled = ag.CancelToken()
        cancelled.cancel()
        before = chat.messages, chat.documents, chat.tokens
        with pytest.raises(ag.CancelledError):
            chat.replace(["Another"], ["A document"], cancel=cancelled)
        with pytest.raises(ag.InputError):
            chat.replace([{"role": 1}])
        assert (chat.messages, chat.documents, chat.tokens) == before
