"""Chats: what is said, what is read, what is read again, and what a template makes of it."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.demo import script
from alora_gguf.gguf.base import BaseFile
from tests.support import tiny_base
from tests.support.chats import (
    GREEDY,
    PLAIN,
    STRICT,
    TRIMS,
    assert_nothing_left,
    assert_sound,
    brief,
    close_to,
    logits_after,
    rendered,
    saying,
)
from tests.support.files import EXACT, Files

USER, ASSISTANT, END = tiny_base.USER, tiny_base.ASSISTANT, tiny_base.END


@pytest.fixture(scope="module")
def small() -> Iterator[ag.Model]:
    """The demo's model without adapters: it knows its template, and when to end."""
    with ag.Model(demo.base_path(), n_ctx=2048, n_threads=1, options=EXACT) as model:
        yield model


def message(role: str, text: str) -> ag.Message:
    return ag.Message(role, text)


# One reply --------------------------------------------------------------------------------------


def test_whole_and_streamed_replies_are_one_sessions(small: ag.Model) -> None:
    question = script.TURNS[0].question
    template = BaseFile.read(demo.base_path()).chat_template or ""
    pages = [{"text": text} for text in script.DOCUMENTS]
    with small.session() as bare:
        said = [message("user", question)]
        bare.append(rendered(template, said, prompt=True, documents=pages))
        generation = bare.generate(max_tokens=64, sampling=GREEDY)
        expected, prompt = generation.read(), bare.tokens[: -len(generation.tokens)]
        assert generation.finish_reason == "stop"
        bare.append("<|end_of_text|>\n")  # what ends the turn
        with (
            small.chat(documents=script.DOCUMENTS) as whole,
            small.chat(documents=script.DOCUMENTS) as streamed,
        ):
            reply = whole.say(question, brief(64))
            pieces = list(streamed.say(question, brief(64), stream=True))
            for chat in (whole, streamed):
                assert chat.messages == [message("user", question), message("assistant", expected)]
                assert chat.tokens == bare.tokens
                # without AVX-512 a token alone and one in a batch take other kernels of upstream's,
                # and the base is Q8_0: what rounds the other way moves logits by up to 1.5 %
                assert close_to(logits_after(chat.session), logits_after(bare), 0.03)
            assert "".join(pieces) == reply.text == expected
            assert len(pieces) > 5
            assert reply.tokens == generation.tokens
            assert reply.finish_reason == "stop"
            assert reply.timings.generated == len(reply.tokens) + 1
            assert reply.timings.reused + reply.timings.evaluated == len(prompt)
            assert reply.logprobs is None


def test_a_reply_has_the_logprobs_it_was_asked_for(small: ag.Model) -> None:
    with small.chat() as chat:
        reply = chat.say("Hello!", brief(8, logprobs=2), stream=True)
        assert reply.logprobs == ()
        first = next(reply)
        assert first.startswith(reply.logprobs[0].text)
        reply.read()
        assert "".join(each.text for each in reply.logprobs).startswith(reply.text)
        assert all(len(each.top) == 2 for each in reply.logprobs)


def test_a_schema_and_stop_strings_end_a_reply(small: ag.Model) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    with small.chat() as chat:
        said = chat.say("Hello!", brief(40, schema={**schema, "additionalProperties": False}))
        assert json.loads(said.text) in ({"ok": True}, {"ok": False})
        assert said.finish_reason == "stop"
        stopped = chat.say("Hello!", replace(saying("one two three"), stop=["two"]))
        assert (stopped.text, stopped.finish_reason) == ("one ", "stop")
        assert chat.messages[-1] == message("assistant", "one ")
        assert chat.read().evaluated <= 1  # at most what was left of the token that was cut


# Reading ----------------------------------------------------------------------------------------


def test_nothing_is_read_twice_over_many_turns(small: ag.Model) -> None:
    with small.chat(documents=script.DOCUMENTS, system="Be brief.") as chat:
        before = 0
        for turn in script.TURNS:
            reply = chat.say(turn.question, brief(64))
            assert reply.finish_reason == "stop"
            assert reply.timings.reused == before
            assert reply.timings.reuse_note == ""
            # the end of the turn is read at once, so that nobody waits for it later
            assert chat.session.cached == len(chat.tokens)
            n = reply.timings.reused + reply.timings.evaluated + len(reply.tokens)
            assert n < len(chat.tokens) <= n + 3
            before = len(chat.tokens)
            assert chat.read().evaluated == 0
        assert [m.role for m in chat.messages] == ["system"] + ["user", "assistant"] * 5
        assert chat.system == "Be brief."
        assert [d.text for d in chat.documents] == list(script.DOCUMENTS)
        text = small.detokenize(chat.tokens, special=True)
        template = BaseFile.read(demo.base_path()).chat_template or ""
        pages = [{"text": text} for text in script.DOCUMENTS]
        assert text == rendered(template, chat.messages, prompt=False, documents=pages)
        with small.session() as bare:
            bare.append(text)
            assert bare.tokens == chat.tokens


def test_what_a_model_said_in_tokens_of_its_own_stays(files: Files) -> None:
    """The random model spells as no tokenizer would."""
    with files.model() as model, model.chat(template=PLAIN) as chat:
        own = []
        for i in range(4):
            before = len(chat.tokens)
            reply = chat.say(f"q{i}", brief(9))
            assert reply.finish_reason == "length"
            assert reply.timings.reused == before
            assert reply.timings.evaluated == (5 if i == 0 else 6)  # <end><user>q0<end><assistant>
            own += [USER, *model.tokenize(f"q{i}"), END, ASSISTANT, *reply.tokens, END]
            assert chat.tokens == own[:-1]
        assert own != model.tokenize(model.detokenize(own, special=True))
        assert_sound(chat, files)


def test_documents_and_system_are_read_anew_from_where_they_stand(files: Files) -> None:
    with files.model() as model:
        chat = model.chat(template=PLAIN, documents=["one", "two"], system="sys")
        chat.say("hello", brief(stop=[]))
        n = len(chat.tokens)
        chat.documents = ["one", "other", "third"]
        assert len(chat.tokens) == n  # nothing yet
        timings = chat.read()
        same = len(model.tokenize("<|user|>[one]<|end|><|user|>["))
        assert timings.reused == same
        assert timings.reuse_note == f"the conversation differs from the cached one at token {same}"
        assert_sound(chat, files)
        chat.system = "other"
        same = len(
            model.tokenize("<|user|>[one]<|end|><|user|>[other]<|end|><|user|>[third]<|end|>")
        )
        assert chat.read().reused == same + 2
        assert chat.messages[0] == message("system", "other")
        chat.system = None
        assert chat.system is None
        assert chat.messages[0].role == "user"
        assert chat.read().reused == same + 1
        assert_sound(chat, files)
        chat.system = "sys"
        assert chat.messages[0] == message("system", "sys")
        chat.documents = ()
        chat.say("and", brief())
        expected = rendered(PLAIN, chat.messages[:-1], prompt=True)
        assert model.detokenize(chat.tokens, special=True).startswith(expected)
        assert_sound(chat, files)


def test_messages_can_be_added_and_replied_to(files: Files) -> None:
    given = [{"role": "system", "content": "s"}, ag.Message("user", "a"), "b"]
    with files.model() as model:
        chat = model.chat(template=PLAIN, messages=given)
        assert chat.tokens == []
        parts = [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]
        timings = chat.add({"role": "assistant", "content": parts})
        assert timings.evaluated == len(chat.tokens)
        assert [m.content for m in chat.messages] == ["s", "a", "b", "cd"]
        assert chat.add("e").evaluated == 3
        reply = chat.reply(brief())
        assert reply.timings.evaluated == 1
        again = chat.reply(brief())  # a second turn of the assistant
        assert [m.role for m in chat.messages][-3:] == ["user", "assistant", "assistant"]
        assert again.timings.evaluated == 2
        assert_sound(chat, files)


def test_two_chats_with_one_beginning_share_its_cells(files: Files) -> None:
    with files.model() as model:
        one, two = (model.chat(template=PLAIN, documents=["x" * 60]) for _ in range(2))
        one.say("first", brief())
        reply = two.say("second", brief())
        assert reply.timings.reused >= 60
        assert_sound(two, files)


# Templates that write otherwise ------------------------------------------------------------------


def test_a_template_that_rewrites_earlier_turns(files: Files) -> None:
    """It drops what the assistant thought, in ( ), once the user speaks again, and all space."""
    with files.model() as model:
        chat = model.chat(template=TRIMS)
        for i, text in enumerate(["(hm th) a ", " the", " (x)(y) b", "ain)"]):
            before, n = chat.messages, len(chat.tokens)
            reply = chat.say(f" q{i}", saying(text))
            assert reply.text == text
            assert chat.messages == [
                *before, message("user", f" q{i}"), message("assistant", text),
            ]  # fmt: skip
            prompt = rendered(TRIMS, chat.messages[:-1], prompt=True)
            assert model.detokenize(chat.tokens, special=True).startswith(prompt + text)
            assert reply.timings.reused + 20 > n  # the last reply is re-read, not all of them
            assert_sound(chat, files)
        chat.read()
        whole = rendered(TRIMS, chat.messages, prompt=False)
        assert model.detokenize(chat.tokens, special=True) == whole
        assert_sound(chat, files)


def test_a_template_that_refuses_leaves_the_chat_as_it_was(files: Files) -> None:
    refused = "template: the chat template refused the conversation: roles must alternate"
    with files.model() as model:
        chat = model.chat(template=STRICT)
        chat.say("a", brief())
        messages, tokens = chat.messages, chat.tokens
        for role in ("assistant", "system"):
            with pytest.raises(ag.InputError) as caught:
                chat.add({"role": role, "content": "b"})
            assert str(caught.value) == refused
            assert (chat.messages, chat.tokens) == (messages, tokens)
        assert chat.say("b", brief()).timings.reused == len(tokens)
        assert_sound(chat, files)


def test_a_template_that_cannot_take_what_was_said(files: Files) -> None:
    """A reply is not lost because the template does not write it."""
    picky = "{%- if messages[-1].content == 'ain' -%}{{ raise_exception('no ain') }}{%- endif -%}"
    with files.model() as model:
        chat = model.chat(template=picky + PLAIN)
        for stream in (False, True):
            reply = chat.say("a", saying("ain"), stream=stream)
            assert reply.read() == "ain"
            assert chat.messages[-1] == message("assistant", "ain")
            with pytest.raises(ag.InputError, match="refused the conversation: no ain"):
                chat.read()
            chat.rewind()
        chat.say("b", brief())
        assert_sound(chat, files)


def test_templates_and_their_arguments(files: Files) -> None:
    with files.model() as model:
        with pytest.raises(ag.ModelError) as caught:
            model.chat()
        assert str(caught.value) == (
            f"{files.base}: has no chat template (tokenizer.chat_template); pass its Jinja text as "
            "template=, or use a session and write prompts yourself"
        )
        with pytest.raises(ag.ModelError, match=r"^template: the chat template cannot be parsed: "):
            model.chat(template="{% if %}")
        with pytest.raises(ag.InputError) as unused:
            model.chat(template=PLAIN, template_arguments={"mood": "good"})
        assert str(unused.value) == (
            "template_arguments: template: the chat template has no use for 'mood'"
        )
        with pytest.raises(ag.InputError, match="cannot set 'messages': it is set for every"):
            model.chat(template=PLAIN, template_arguments={"messages": []})
        moody = "{{ '<|user|>' + mood + '<|end|>' }}" + PLAIN
        chat = model.chat(template=moody, template_arguments={"mood": "good"}, messages=["a"])
        chat.read()
        assert model.detokenize(chat.tokens, special=True) == (
            "<|user|>good<|end|><|user|>a<|end|>"
        )
        with pytest.raises(ag.InputError, match="refused the conversation: "):
            model.chat(template=moody, messages=["a"]).read()
        gc.collect()
        chat.close()
        assert_nothing_left(model)


def test_a_models_own_template_is_used(files: Files) -> None:
    base = tiny_base.write_base(files.folder / "templated.gguf", template=PLAIN)
    with ag.Model(base, n_ctx=256, n_threads=1) as model:
        chat = model.chat(messages=["a"])
        assert chat.read().evaluated == 3
        assert chat.tokens == [USER, *model.tokenize("a"), END]  # no <|bos|>: it writes none


# What is wrong with what is given ----------------------------------------------------------------


def test_what_is_no_message_is_told(files: Files) -> None:
    with files.model() as model:
        for value, text in (
            (5, "messages[1] is 5, expected a Message or a mapping with role, content"),
            ({"content": "x"}, "messages[1] has no role, expected a word such as 'user'"),
            ({"role": "user"}, "messages[1] has no content, expected text"),
        ):
            with pytest.raises(ag.InputError) as caught:
                model.chat(template=PLAIN, messages=["a", value])  # type: ignore[list-item]
            assert str(caught.value) == text
        with pytest.raises(ag.InputError, match=r"^Model\.chat\(\): documents must be a list, got"):
            model.chat(template=PLAIN, documents="x")
        chat = model.chat(template=PLAIN)
        with pytest.raises(ag.InputError, match="message must be a string, a Message or a"):
            chat.add(None)  # type: ignore[arg-type]
        with pytest.raises(ag.InputError, match="'usr', expected system, user"):
            chat.add(message("usr", "a"))
        with pytest.raises(ag.InputError, match=r"^documents\[0\]: its text is 3"):
            chat.documents = [{"text": 3}]
        with pytest.raises(ag.InputError, match="nothing to reply to; say something first"):
            chat.reply()
        assert (chat.messages, chat.documents, chat.tokens) == ([], [], [])
        assert chat.read() == ag.Timings()


def test_what_is_given_out_is_a_copy(files: Files) -> None:
    with files.model() as model:
        chat = model.chat(template=PLAIN, messages=["a"], documents=["d"])
        chat.read()
        for mine in (chat.messages, chat.documents, chat.tokens):
            mine.clear()
        assert (len(chat.messages), len(chat.documents), len(chat.tokens)) == (1, 1, 8)


# The end ----------------------------------------------------------------------------------------


def test_everything_says_that_it_is_closed(files: Files) -> None:
    with files.model() as model:
        chat = model.chat(template=PLAIN)
        chat.say("a", brief())
        running = chat.say("b", brief(), stream=True)
        next(running)
        chat.close()
        chat.close()
        assert chat.closed
        assert list(running) == []
        assert running.finish_reason == "closed"
        assert len(chat.messages) == 4
        for call in (
            chat.read, chat.fork, chat.rewind, chat.reply, lambda: chat.say("x"),
            lambda: chat.add("x"), lambda: chat.invoke("sure"), lambda: chat.rewind(0),
            lambda: chat.save(files.folder / "x"), lambda: setattr(chat, "documents", []),
            lambda: setattr(chat, "system", "x"),
        ):  # fmt: skip
            with pytest.raises(ag.ClosedError, match="closed"):
                call()
        empty = model.chat(template=PLAIN)
        empty.close()
        with pytest.raises(ag.ClosedError, match="closed"):
            empty.read()
        assert_nothing_left(model)


@pytest.mark.parametrize("first", ["chat", "reply"])
def test_a_model_that_closes_first_takes_its_chats_with_it(files: Files, first: str) -> None:
    with files.model() as model:
        chat = model.chat(template=PLAIN)
        running = chat.say("b", brief(20), stream=True)
        said = next(running)
    assert chat.closed
    for each in (chat, running) if first == "chat" else (running, chat):
        each.close()
    assert running.text.startswith(said)
    assert running.finish_reason == "closed"
    assert list(running) == []
    assert chat.messages == [message("user", "b"), message("assistant", running.text)]
    with pytest.raises(ag.ClosedError, match="the chat or its model was closed"):
        chat.say("c")


def test_a_chat_that_is_forgotten_gives_its_cells_back(files: Files) -> None:
    with files.model() as model:
        for _ in range(20):
            model.chat(template=PLAIN).say("a" * 30, brief(20), stream=True)
        gc.collect()
        assert_nothing_left(model)
