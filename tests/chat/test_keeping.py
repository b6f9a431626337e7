"""Chats that are rewound, forked, saved and restored: they go on as if they had never been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.saved.session_file import write_saved
from tests.support import inside, tiny_base
from tests.support.chats import (
    PLAIN,
    TRIMS,
    assert_nothing_left,
    assert_sound,
    brief,
    close_to,
    logits_after,
    saying,
)
from tests.support.files import EXACT, Files
from tests.support.saving import collect

U, A = "user", "assistant"


def contents(chat: ag.Chat) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in chat.messages]


# Rewinding --------------------------------------------------------------------------------------


def test_a_turn_that_is_taken_back_was_never_said(files: Files) -> None:
    with files.model() as model:
        chat, other = model.chat(template=PLAIN, system="s"), model.chat(template=PLAIN, system="s")
        first = chat.say("a", brief(9))
        n = len(chat.tokens)
        before = chat.messages
        chat.say("b", brief(9))
        taken = chat.rewind()
        assert [m.role for m in taken] == [U, A]
        assert taken[0].content == "b"
        assert chat.messages == before
        assert len(chat.tokens) == n + 1  # and the end of the turn
        reply = chat.say("c", brief(9))
        assert reply.timings.reused == n + 1  # in the tokens that the model spelled them in
        assert other.say("a", brief(9)).text == first.text
        assert other.say("c", brief(9)).text == reply.text
        assert chat.tokens == other.tokens
        assert_sound(chat, files)


def test_several_turns_and_what_was_added_between(files: Files) -> None:
    with files.model() as model:
        chat = model.chat(template=PLAIN, messages=[{"role": A, "content": "hi"}])
        for text in "abc":
            chat.say(text, brief(3))
        chat.add({"role": A, "content": "and"})
        chat.add("d")
        said = contents(chat)
        assert [m.content for m in chat.rewind(0)] == []
        assert contents(chat) == said
        assert [(m.role, m.content) for m in chat.rewind(3)] == said[3:]
        assert contents(chat) == said[:3]
        assert_sound(chat, files)
        with pytest.raises(ag.InputError) as caught:
            chat.rewind(2)
        assert str(caught.value) == "turns must be an integer in [0, 1], got 2"
        for wrong in (-1, True, 1.0):
            with pytest.raises(ag.InputError, match=r"turns must be an integer in \[0, 1\], got"):
                chat.rewind(wrong)  # type: ignore[arg-type]
        assert contents(chat) == said[:3]
        chat.rewind()
        assert contents(chat) == [(A, "hi")]
        assert chat.read().evaluated == 0
        assert_sound(chat, files)


def test_back_to_nothing(files: Files) -> None:
    with files.model() as model:
        for template in (PLAIN, PLAIN + "{{ '' if messages else raise_exception('none') }}"):
            chat = model.chat(template=template)
            chat.say("a", brief())
            chat.rewind()
            assert (chat.messages, chat.tokens) == ([], [])
            chat.say("b", brief())
            assert_sound(chat, files)


def test_rewinding_ends_a_reply_and_takes_it_back(files: Files) -> None:
    with files.model() as model:
        chat = model.chat(template=PLAIN)
        chat.say("a", brief())
        reply = chat.say("b", brief(20), stream=True)
        next(reply)
        taken = chat.rewind()
        assert taken == [ag.Message(U, "b"), ag.Message(A, reply.text)]
        assert reply.finish_reason == "closed"
        assert len(chat.messages) == 2
        assert_sound(chat, files)


def test_rewinding_where_earlier_turns_are_written_otherwise(files: Files) -> None:
    with files.model() as model:
        chat = model.chat(template=TRIMS)
        for text in ("(x) th", "(y) ain", "(z) in"):
            chat.say("q", saying(text))
        chat.rewind(2)
        assert contents(chat) == [(U, "q"), (A, "(x) th")]
        chat.read()  # it is the last again, so that what it thought is written
        text = model.detokenize(chat.tokens, special=True)
        assert text == "<|user|>q<|end|><|assistant|>(x) th<|end|>"
        chat.say("r", saying("the"))
        assert "<|assistant|>th<|end|>" in model.detokenize(chat.tokens, special=True)
        assert_sound(chat, files)


# Forking ----------------------------------------------------------------------------------------


def test_a_fork_goes_its_own_way(files: Files) -> None:
    with files.model() as model:
        chat = model.chat(template=PLAIN, documents=["d"], system="s")
        chat.say("a", brief(9))
        used = inside.cells(model).used()
        with chat.fork() as other:
            assert other.messages == chat.messages
            assert (other.documents, other.system) == (chat.documents, "s")
            assert inside.cells(model).used() == used
            n = len(chat.tokens)
            mine, its = chat.say("b", brief(9)), other.say("c", brief(9))
            assert (mine.timings.reused, its.timings.reused) == (n, n)
            other.documents = ["e"]
            other.rewind()
            assert_sound(other, files)
            assert [d.text for d in chat.documents] == ["d"]
            assert_sound(chat, files)
        assert_sound(chat, files)
        chat.close()
        assert_nothing_left(model)


def test_forking_amid_a_reply_leaves_it_alone(files: Files) -> None:
    with files.model() as model:
        chat = model.chat(template=PLAIN)
        chat.say("a", brief())
        with chat.fork() as undisturbed:
            whole = undisturbed.say("b", brief(12)).text
        reply = chat.say("b", brief(12), stream=True)
        while len(reply.tokens) < 4:
            next(reply)
        other = chat.fork()
        assert other.messages == [*chat.messages[:3], ag.Message(A, reply.text)]
        n = len(chat.tokens)
        assert reply.read() == whole
        so_far = other.messages[-1].content
        assert other.say("c", brief()).timings.reused in (n, n - 1, n - 2)  # a held-back character
        assert other.messages[-3].content == so_far
        for each in (chat, other):
            assert_sound(each, files)


# Saving -----------------------------------------------------------------------------------------


def all_of(chat: ag.Chat) -> tuple[Any, ...]:
    return (
        chat.messages, chat.documents, chat.system, chat.tokens, chat.session.provenance,
        chat.session.cached,
    )  # fmt: skip


@pytest.mark.parametrize("adapter", [None, "lora", "sure"])
def test_a_restored_chat_goes_on_without_reading(
    files: Files, tmp_path: Path, adapter: str | None
) -> None:
    path = tmp_path / "talk.chat"
    document = ag.Document("d €", title="t", doc_id="7")
    options = brief(9, adapter=adapter)
    with files.model() as model:
        chat = model.chat(template=PLAIN, documents=[document], system="s")
        chat.say("a", brief(9))
        chat.say("b", options)
        chat.save(path)
        kept = all_of(chat)
        last = chat.say("c", options)
        restored = model.restore(path)  # into the same model, beside it
        assert restored.say("c", options).text == last.text
        assert (restored.tokens, restored.messages) == (chat.tokens, chat.messages)
    with files.model() as model:
        model.load_adapter("more", files.alora)
        chat = model.restore(path)
        assert all_of(chat) == kept
        again = chat.say("c", options)
        assert again.text == last.text
        assert again.timings.reused == last.timings.reused
        assert again.timings.evaluated == last.timings.evaluated
        use = {"adapter": "lora"} if adapter == "lora" else {}
        if adapter != "sure":
            assert_sound(chat, files, **use)
        chat.rewind(3)
        assert contents(chat) == [("system", "s")]
        chat.say("d", brief())
        assert_sound(chat, files)


def test_a_template_and_its_arguments_are_kept(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "talk.chat"
    template = "{{ '<|user|>' + mood + '<|end|>' }}" + PLAIN
    with files.model() as model:
        chat = model.chat(template=template, template_arguments={"mood": "good"}, messages=["a"])
        chat.read()
        chat.save(path)
        restored = model.restore(path)
        assert restored.read().evaluated == 0
        assert restored.say("b", brief()).text == chat.say("b", brief()).text
        odd = model.chat(template=template, template_arguments={"mood": object()}, messages=["a"])
        with pytest.raises(ag.InputError, match="notes"):
            odd.save(path)
        assert model.restore(path).messages == [ag.Message(U, "a")]


def test_notes_are_kept_beside_the_chat(files: Files, tmp_path: Path) -> None:
    notes = {"mine": ["a", {"b": None}], "alora_gguf.chat": "never"}
    with files.model() as model, model.chat(template=PLAIN, messages=["a"]) as chat:
        assert chat.notes == {}
        chat.save(tmp_path / "x", notes=notes)
        with model.restore(tmp_path / "x") as restored:
            assert restored.notes == {"mine": ["a", {"b": None}]}
            restored.notes["mine"] = "a copy"
            assert restored.notes == {"mine": ["a", {"b": None}]}
            assert contents(restored) == contents(chat)
            restored.save(tmp_path / "y")
        with model.restore(tmp_path / "y") as again:
            assert again.notes == {}
        with pytest.raises(ag.InputError, match="notes cannot be saved"):
            chat.save(tmp_path / "z", notes={"x": object()})


def test_a_chat_can_be_saved_before_it_is_read_and_amid_a_reply(
    files: Files, tmp_path: Path
) -> None:
    path = tmp_path / "talk.chat"
    with files.model() as model:
        chat = model.chat(template=PLAIN, messages=["a"])
        chat.save(path)
        restored = model.restore(path)
        assert contents(restored) == [(U, "a")]
        assert restored.reply(brief(12)).text == chat.fork().reply(brief(12)).text
        reply = chat.reply(brief(12), stream=True)
        while len(reply.tokens) < 5:
            next(reply)
        chat.save(path)
        tokens = chat.tokens
        assert reply.finish_reason is None
        middle = model.restore(path)
        assert middle.messages == [ag.Message(U, "a"), ag.Message(A, reply.text)]
        assert middle.tokens == tokens
        assert reply.read() == restored.messages[-1].content
        middle.say("b", brief())
        assert_sound(middle, files)


def test_a_bare_session_is_no_chat(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "bare.session"
    with files.model() as model:
        session = model.session()
        session.append("hello")
        session.save(path, notes={"mine": 1})
        used = inside.cells(model).used()
        with pytest.raises(ag.SavedSessionError) as caught:
            model.restore(path)
        assert str(caught.value) == (
            f"{path}: holds a session without a chat's messages; open it with "
            "Model.restore_session()"
        )
        assert inside.cells(model).used() == used
        assert model.restore_session(path).tokens == session.tokens
        chat = model.chat(template=PLAIN, messages=["a"])
        chat.read()
        chat.save(path)
        assert close_to(logits_after(model.restore_session(path)), logits_after(chat.session))


def test_a_damaged_chat_is_refused(files: Files, tmp_path: Path) -> None:
    good = {
        "messages": [{"role": U, "content": "a"}], "documents": [], "arguments": {},
        "template": PLAIN, "text": "", "tokens": [], "reader": [None, 1.0],
    }  # fmt: skip
    path = tmp_path / "bad.session"
    with files.model() as model, model.session() as session:
        session.append("hello")

        def saved(**changes: object) -> Path:
            session.save(path, notes={"alora_gguf.chat": {**good, **changes}})
            return path

        assert contents(model.restore(saved())) == [(U, "a")]
        for changes in (
            {"messages": 3}, {"messages": [{"role": 1}]}, {"documents": "x"}, {"documents": [3]},
            {"arguments": 3}, {"arguments": {"nothing": 1}}, {"template": "{% if %}"},
            {"template": 3}, {"tokens": [10**6]}, {"tokens": None}, {"tokens": ["x"]},
            {"reader": 3}, {"reader": [None, "x"]}, {"reader": []},
        ):  # fmt: skip
            with pytest.raises(ag.SavedSessionError) as caught:
                model.restore(saved(**changes))
            text = str(caught.value)
            assert text.startswith(f"{path}: the chat that it holds is damaged (")
            assert text.endswith("; restore its session with Model.restore_session()")
        session.save(path, notes={"alora_gguf.chat": {}})
        with pytest.raises(ag.SavedSessionError, match=r"damaged \(KeyError\('reader'\)\)"):
            model.restore(path)
        session.save(path, notes={"alora_gguf.chat": [1]})
        with pytest.raises(ag.SavedSessionError, match="without a chat's messages"):
            model.restore(path)
        session.close()
        assert_nothing_left(model)


def test_half_a_surrogate_pair_in_a_chat_is_refused(files: Files, tmp_path: Path) -> None:
    good: dict[str, Any] = {
        "messages": [{"role": U, "content": "a"}], "documents": [], "arguments": {"tools": []},
        "template": PLAIN + "{{tools}}", "text": "", "tokens": [], "reader": [None, 1.0],
    }  # fmt: skip
    path, half = tmp_path / "half.session", "a\ud800"
    with files.model() as model, model.session() as session:
        session.append("hello")
        for changes in (
            {"messages": [{"role": U, "content": half}]}, {"messages": [{"role": half}]},
            {"documents": [{"text": half}]}, {"arguments": {"tools": [{"x": half}]}},
            {"template": PLAIN + half}, {"text": half}, {"reader": [half, 1.0]},
        ):  # fmt: skip
            notes = {"alora_gguf.chat": {**good, **changes}}
            write_saved(path, collect(session, EXACT, notes))  # Session.save() takes none
            with pytest.raises(ag.SavedSessionError, match=r"damaged .*half of a surrogate pair"):
                model.restore(path)


def test_a_chat_of_another_base_is_refused(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "talk.chat"
    with files.model() as model:
        chat = model.chat(template=PLAIN)
        chat.say("a", brief(adapter="lora"))
        chat.save(path)
    other = tiny_base.write_base(tmp_path / "other.gguf", seed=9)
    for base, text in ((files.base, "adapter"), (other, "base")):
        with (
            ag.Model(base, n_ctx=1024, n_threads=1, options=EXACT) as bare,
            pytest.raises(ag.SavedSessionError, match=text),
        ):
            bare.restore(path)


def test_a_reader_that_is_gone_is_replaced_by_the_base(files: Files) -> None:
    with files.model() as model:
        chat = model.chat(template=PLAIN)
        chat.say("a", brief(adapter="lora"))
        model.unload_adapter("lora")
        n = len(chat.tokens)
        timings = chat.read()
        assert (timings.reused, timings.evaluated) == (0, n + 1)
        assert_sound(chat, files)


@pytest.mark.parametrize("system", [None, "s"])
def test_what_is_cleared_gives_its_room_back_to_a_fork(files: Files, system: str | None) -> None:
    with files.model(n_ctx=256) as model:
        chat = model.chat(template=PLAIN, system=system)
        chat.say("a" * 150, brief())
        assert len(chat.tokens) > model.n_ctx / 2  # there is no room for two
        chat.replace(chat.messages[: system is not None])
        with chat.fork() as other:
            assert other.say("b" * 150, brief()).timings.evaluated > model.n_ctx / 2
