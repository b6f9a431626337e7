"""Replies that are left early and calls that fail: what is in the chat then, and how it goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.generate.sampling import Sampler
from alora_gguf.intrinsics import Contract
from tests.support import tiny_base
from tests.support.batches import amid_batch
from tests.support.chats import (
    PLAIN,
    TRIMS,
    YES_NO,
    assert_nothing_left,
    assert_sound,
    brief,
    interrupt_at,
    says,
)
from tests.support.files import Files


@pytest.fixture
def chat(files: Files) -> Iterator[ag.Chat]:
    with files.model() as model, model.chat(template=PLAIN) as chat:
        chat.say("hello", brief())
        yield chat
        chat.close()
        assert_nothing_left(model)


def state(chat: ag.Chat) -> tuple[Any, ...]:
    return chat.messages, chat.tokens, chat.documents, chat.system


def goes_on(chat: ag.Chat, files: Files, reused: int | None = None) -> None:
    """The next turn is right, and re-reads nothing."""
    n = len(chat.tokens)
    reply = chat.say("and on", brief())
    assert reply.timings.reused == (n if reused is None else reused)
    assert chat.messages[-2:] == [
        ag.Message("user", "and on"), ag.Message("assistant", reply.text),
    ]  # fmt: skip
    assert_sound(chat, files)


# Left early -------------------------------------------------------------------------------------


def leave_by_break(reply: ag.Reply) -> None:
    for i, _ in enumerate(reply):
        if i == 2:
            break


def leave_by_close(reply: ag.Reply) -> None:
    leave_by_break(reply)
    reply.close()
    reply.close()


def leave_by_with(reply: ag.Reply) -> None:
    with reply:
        leave_by_break(reply)


def leave_by_exception(reply: ag.Reply) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for i, _ in enumerate(reply):
            1 / (2 - i)


@pytest.mark.parametrize(
    ("leave", "reason"),
    [
        (leave_by_break, None),
        (leave_by_close, "closed"),
        (leave_by_with, "closed"),
        (leave_by_exception, None),
    ],
)
def test_what_was_said_stays(
    chat: ag.Chat, files: Files, leave: Callable[[ag.Reply], None], reason: str | None
) -> None:
    reply = chat.say("tell", brief(40), stream=True)
    prompt = chat.tokens
    leave(reply)
    assert reply.finish_reason == reason
    assert reply.text
    assert chat.messages[-2:] == [ag.Message("user", "tell"), ag.Message("assistant", reply.text)]
    assert chat.tokens == [*prompt, *reply.tokens]
    goes_on(chat, files)
    assert reply.finish_reason == "closed"
    assert list(reply) == []
    said = [m.content for m in chat.messages if m.role == "assistant"]
    assert said[1] == reply.text


def test_a_reply_that_is_left_is_gone_on_with(chat: ag.Chat) -> None:
    whole = chat.fork().say("tell", brief(12)).text
    reply = chat.say("tell", brief(12), stream=True)
    leave_by_break(reply)
    assert reply.read() == whole
    assert reply.finish_reason == "length"


def test_one_that_said_nothing_yet_is_no_message(chat: ag.Chat, files: Files) -> None:
    reply = chat.say("tell", brief(), stream=True)
    assert [m.role for m in chat.messages] == ["user", "assistant", "user"]
    reply.close()
    assert [m.role for m in chat.messages] == ["user", "assistant", "user"]
    reply = chat.reply(brief())
    assert reply.timings.evaluated <= 1  # the prompt is there, but perhaps not its logits
    goes_on(chat, files)


def test_one_that_ends_at_once_is_an_empty_message(chat: ag.Chat, files: Files) -> None:
    nothing = ag.GenerateOptions(
        sampling=ag.Sampling(temperature=0.0, logit_bias={tiny_base.END: 1e4})
    )
    reply = chat.say("tell", nothing)
    assert (reply.text, reply.tokens, reply.finish_reason) == ("", [], "stop")
    assert chat.messages[-1] == ag.Message("assistant", "")
    goes_on(chat, files)


def test_saying_more_within_the_loop_ends_it(chat: ag.Chat, files: Files) -> None:
    pieces = []
    for piece in chat.say("tell", brief(40), stream=True):
        pieces.append(piece)
        if len(pieces) == 3:
            chat.say("wait", brief())
    assert len(pieces) == 3
    assert chat.messages[-3].content.startswith("".join(pieces))
    assert [m.content for m in chat.messages if m.role == "user"] == ["hello", "tell", "wait"]
    assert_sound(chat, files)


def test_a_cancelled_reply_ends_where_it_is(chat: ag.Chat, files: Files) -> None:
    token = ag.CancelToken()
    reply = chat.say("tell", brief(400), stream=True, cancel=token)
    leave_by_break(reply)
    token.cancel()
    assert list(reply) in ([], [reply.text[-1:]])  # what was held back at most
    assert reply.finish_reason == "cancelled"
    assert chat.messages[-1] == ag.Message("assistant", reply.text)
    goes_on(chat, files)


def test_one_cancelled_from_elsewhere(chat: ag.Chat, files: Files) -> None:
    token = ag.CancelToken()
    with amid_batch(20, token.cancel):
        reply = chat.say("tell", brief(900), cancel=token)
    assert reply.finish_reason == "cancelled"
    assert 0 < len(reply.tokens) < 900
    assert chat.messages[-1] == ag.Message("assistant", reply.text)
    chat.rewind()
    goes_on(chat, files)


@pytest.mark.parametrize("stream", [False, True])
def test_ctrl_c_amid_a_reply(
    chat: ag.Chat, files: Files, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    before = state(chat)
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "sample", interrupt_at(4))
        with pytest.raises(KeyboardInterrupt):
            chat.say("tell", brief(20), stream=stream).read()
    if stream:
        assert chat.messages[-2] == ag.Message("user", "tell")
        assert chat.messages[-1].role == "assistant"
        goes_on(chat, files)
    else:
        assert state(chat) == before
        goes_on(chat, files)


def test_ctrl_c_while_the_end_of_the_turn_is_read(
    chat: ag.Chat, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(chat)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    options = ag.GenerateOptions(sampling=says("th"))
    with monkeypatch.context() as patch:
        patch.setattr(ag.Session, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chat.say("tell", options)
        assert state(chat) == before
        with pytest.raises(KeyboardInterrupt):
            chat.say("tell", options, stream=True).read()
    assert chat.messages[-1] == ag.Message("assistant", "th")
    goes_on(chat, files)


@pytest.mark.parametrize(("n", "shown"), [(2, "a\ufffd"), (3, "a\ufffd"), (4, "a€")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_character_that_was_cut(
    chat: ag.Chat, files: Files, n: int, shown: str, stream: bool
) -> None:
    """max_tokens ends the reply within the bytes of a character."""
    reply = chat.say("tell", ag.GenerateOptions(sampling=says("a€b"), max_tokens=n), stream=stream)
    assert reply.read() == shown
    assert reply.finish_reason == "length"
    assert len(reply.tokens) == n
    assert chat.messages[-1] == ag.Message("assistant", shown)
    assert chat.tokens[-n:] == reply.tokens
    goes_on(chat, files)
    chat.rewind()
    goes_on(chat, files)


@pytest.mark.parametrize("stop", ["h", "the", "ai", "a"])
def test_a_stop_string_within_a_token(chat: ag.Chat, files: Files, stop: str) -> None:
    """The tokens that reach into it are dropped; what they held before it is said all the same."""
    options = ag.GenerateOptions(sampling=says("in the rain"), stop=[stop])
    for stream in (False, True):
        reply = chat.say("tell", options, stream=stream)
        assert reply.read() == "in the rain"[: "in the rain".index(stop)]
        assert reply.finish_reason == "stop"
        assert chat.messages[-1] == ag.Message("assistant", reply.text)
        chat.read()
        text = chat.model.detokenize(chat.tokens, special=True)
        assert text.endswith(f"<|user|>tell<|end|><|assistant|>{reply.text}<|end|>")
        goes_on(chat, files)


# Calls that fail ---------------------------------------------------------------------------------


def bad_calls(chat: ag.Chat) -> dict[str, tuple[Callable[[], object], type[Exception], str]]:
    cancelled = ag.CancelToken()
    cancelled.cancel()
    nobody = "no adapter named 'nobody' is loaded; loaded: 'sure', 'other', 'lora'"
    return {
        "adapter": (
            lambda: chat.say("x", brief(adapter="nobody")), ag.UnknownAdapterError, nobody,
        ),
        "schema": (
            lambda: chat.say("x", brief(schema={"type": "thing"})), ag.SchemaError, "thing",
        ),
        "stop": (lambda: chat.say("x", brief(stop=[""])), ag.InputError, "must not be empty"),
        "max_tokens": (
            lambda: chat.say("x", brief(0)), ag.InputError, "max_tokens must be an integer of at",
        ),
        "scale": (
            lambda: chat.say("x", brief(adapter="lora", scale=float("nan"))),
            ag.InputError, "scale must be a finite number",
        ),
        "message": (
            lambda: chat.say({"role": 1}),  # type: ignore[arg-type]
            ag.InputError, "Chat.say(): text must be a string, got {'role': 1}",
        ),
        "cancelled": (lambda: chat.say("x", cancel=cancelled), ag.CancelledError, "was cancelled"),
        "add": (lambda: chat.add("x", cancel=cancelled), ag.CancelledError, "was cancelled"),
        "long": (
            lambda: chat.say("x" * 2000), ag.CacheFullError, "the KV cache is full",
        ),
        "long add": (lambda: chat.add("x" * 2000), ag.CacheFullError, "the KV cache is full"),
        "rewind": (
            lambda: chat.rewind(2), ag.InputError, "turns must be an integer in [0, 1], got 2",
        ),
        "invoke": (lambda: chat.invoke("nobody"), ag.UnknownAdapterError, nobody),
        "contract": (lambda: chat.invoke("sure"), ag.ContractError, "holds no contract"),
        "twice": (
            lambda: chat.invoke(ag.IntrinsicCall("sure", {"a": "b"}), {"a": "c"}),
            ag.InputError, "arguments were given twice: in the call and beside it",
        ),
        "one": (
            lambda: chat.invoke_many("sure"),
            ag.InputError, "Chat.invoke_many(): calls must be a list, got 'sure'",
        ),
        "call": (
            lambda: chat.invoke_many([3]),  # type: ignore[list-item]
            ag.InputError, "expected an intrinsic's name or an IntrinsicCall, got 3",
        ),
    }  # fmt: skip


NAMES = list(bad_calls(None))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_fails_changes_nothing(chat: ag.Chat, files: Files, name: str) -> None:
    before = state(chat)
    call, kind, text = bad_calls(chat)[name]
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)
    after = state(chat)
    read = chat.read()
    if name in ("invoke", "contract"):  # it had been read before what is wrong was found
        assert after[0] == before[0]
        assert read.evaluated == 0
    else:
        assert after == before
    goes_on(chat, files)


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_for_which_there_is_no_room(files: Files, stream: bool) -> None:
    with files.model(n_ctx=256) as model, model.chat(template=PLAIN) as chat:
        chat.say("hello", brief())
        chat.add("x" * 120)
        before = state(chat)
        assert len(before[1]) < 160
        with pytest.raises(ag.CacheFullError, match="the KV cache is full"):
            chat.say("tell", brief(400), stream=stream).read()
        if stream:
            assert chat.messages[-2] == ag.Message("user", "tell")
            assert len(chat.tokens) == 256
            chat.rewind()
        assert state(chat) == before or chat.messages == before[0]
        n = len(before[1])
        reply = chat.say("on", brief())
        assert reply.timings.reused >= n
        assert_sound(chat, files)
        chat.close()
        assert_nothing_left(model)


def test_no_sequence_is_left(files: Files) -> None:
    with files.model(n_seq_max=2) as model:
        chats = []
        with pytest.raises(ag.CacheFullError, match="sequences are in use"):  # noqa: PT012
            for _ in range(9):
                chats.append(model.chat(template=PLAIN))  # noqa: PERF401
        model.set_contract("sure", Contract.parse(YES_NO))
        chat = chats[0]
        chat.say("hello", brief())
        before = state(chat)
        for call in (chat.fork, lambda: chat.invoke("sure")):
            with pytest.raises(ag.CacheFullError, match="sequences are in use"):
                call()
            assert chat.messages == before[0]
        chats[1].close()
        assert chat.invoke("sure").error is None
        goes_on(chat, files)
        chat.close()


def test_no_room_for_the_end_of_the_turn_is_no_failure(files: Files) -> None:
    with files.model(n_ctx=256) as model, model.chat(template=PLAIN) as chat:
        chat.add("x" * 200)
        others = model.session()
        rest = 256 - len(chat.tokens)
        others.append([1] * (rest - 8))
        reply = chat.reply(ag.GenerateOptions(sampling=says("c" * 7)))  # and one for <|assistant|>
        assert reply.finish_reason == "stop"
        assert reply.text == "ccccccc"
        assert chat.messages[-1] == ag.Message("assistant", "ccccccc")
        assert len(chat.tokens) == 256 - len(others.tokens)
        with pytest.raises(ag.CacheFullError):
            chat.read()
        others.close()
        goes_on(chat, files)


@pytest.mark.parametrize("template", [PLAIN, TRIMS])
def test_a_cancelled_reading_leaves_the_chat_as_it_was(files: Files, template: str) -> None:
    with files.model(n_ctx=2048) as model, model.chat(template=template) as chat:
        chat.say("(a) b ", brief())
        before = state(chat)
        for n in (1, 2):
            token, seen = ag.CancelToken(), list[int]()

            def progress(done: int, total: int, n: int, token: ag.CancelToken, seen: Any) -> None:
                seen.append(done)
                if len(seen) == n:
                    token.cancel()

            watch = functools.partial(progress, n=n, token=token, seen=seen)
            with pytest.raises(ag.CancelledError, match="the call was cancelled"):
                chat.say("x" * 1500, cancel=token, progress=watch)
            assert len(seen) == n
            assert state(chat) == before
        n = len(chat.tokens)
        reply = chat.say("c", brief())
        assert reply.timings.reused >= n - 10
        assert_sound(chat, files)
