"""Chats of several threads on one model, and one chat of several threads."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.intrinsics import Contract
from tests.support.chats import (
    PLAIN,
    YES_NO,
    assert_nothing_left,
    assert_sound,
    brief,
    role_adapter,
)
from tests.support.files import EXACT, Files

WORDS = ("hello", "so <certainty>?", "the rain in the train", "and " * 12)


def opened(files: Files, n_pooled: int = 4) -> ag.Model:
    with ag.Model(files.base, n_ctx=64, n_threads=1) as model:
        marker = model.tokenize("<|assistant|>")
    adapters = {
        "sure": files.alora,
        "lora": files.lora,
        "marker": role_adapter(files.folder, "marker", marker),
    }
    model = files.model(
        adapters=adapters,
        n_ctx=16384,
        n_seq_max=96,
        options=replace(EXACT, n_pooled=n_pooled),
    )
    for name in ("sure", "marker"):
        model.set_contract(name, Contract.parse(YES_NO))
    return model


def cancelled_turn(chat: ag.Chat, delay: float, how: str) -> None:
    """A turn that is cancelled at some moment, or not, and taken back."""
    chat.read()  # the next turn reads an adapter's reply again, as the base: with another beginning
    before = chat.messages, chat.tokens
    token = ag.CancelToken()
    timer = threading.Timer(delay, token.cancel)
    timer.start()
    try:
        if how == "invoke":
            chat.invoke(ag.IntrinsicCall("marker", max_tokens=400), cancel=token)
        else:
            reply = chat.say("x" * 200, brief(60), stream=how == "stream", cancel=token)
            reply.read()
            assert reply.finish_reason in ("cancelled", "length", "stop")
            assert chat.messages[len(before[0])] == ag.Message("user", "x" * 200)
            chat.rewind()
    except ag.CancelledError:
        pass
    finally:
        timer.cancel()
    assert chat.messages == before[0]
    assert chat.tokens[: len(before[1])] == before[1]


def turns(model: ag.Model, seed: int, *, cancels: bool) -> list[Any]:
    """A seeded chat: what is said and asked, and what came of it."""
    rng, out = random.Random(seed), list[Any]()
    with model.chat(template=PLAIN, documents=["y" * 30]) as chat:
        for _ in range(9):
            step, said = rng.randrange(8), rng.choice(WORDS)
            name = rng.choice([None, None, "lora", "marker", "sure"])
            delay, how = rng.random() * 0.04, rng.choice(["whole", "stream", "invoke"])
            if step < 4:
                reply = chat.say(said, brief(rng.randint(2, 9), adapter=name), stream=step < 2)
                out.append((reply.read(), reply.tokens, reply.finish_reason))
            elif step < 6:
                results = chat.invoke_many(["sure", "marker"][: step - 3])
                out += [(r.text, round(r.value, 2)) for r in results]
            elif step == 6 and len(chat.messages) > 2:
                out.append([m.content for m in chat.rewind()])
            elif cancels:
                cancelled_turn(chat, delay, how)
            else:
                chat.read()  # as the cancelled one may have done
        out.append(chat.messages)
    return out


@pytest.mark.slow
def test_eight_threads_get_what_one_would(files: Files) -> None:
    with opened(files, n_pooled=0) as model:
        alone = [turns(model, seed, cancels=False) for seed in range(8)]
        assert_nothing_left(model)
    with opened(files) as model:
        shared = model.chat(template=PLAIN)

        def job(seed: int) -> list[Any]:
            rng = random.Random(100 + seed)
            result = turns(model, seed % 8, cancels=True)
            for _ in range(3):
                on_shared(shared, rng)
            return result

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(job, range(16)))
        for seed, result in enumerate(together):
            assert result == alone[seed % 8]
        assert_sound(shared, files)
        said = shared.messages
        shared.close()
        assert_nothing_left(model)
        # whatever the order was: it is a chat that one thread could have had
        with model.chat(template=PLAIN) as chat:
            for user, assistant in zip(said[::2], said[1::2], strict=True):
                assert (user.role, assistant.role) == ("user", "assistant")
                assert chat.say(user.content, brief(6)).text == assistant.content


def on_shared(chat: ag.Chat, rng: random.Random) -> None:
    """Something on a chat that all threads use."""
    steps: list[Callable[[], Any]] = [
        lambda: chat.say(rng.choice(WORDS), brief(6)),
        lambda: chat.say(rng.choice(WORDS), brief(6)),
        lambda: chat.invoke("marker"),
        lambda: chat.invoke_many(["sure", "marker"]),
        lambda: on_a_fork(chat),
        lambda: cancelled_invoke(chat, rng.random() * 0.02),
    ]
    rng.choice(steps)()


def on_a_fork(chat: ag.Chat) -> None:
    with chat.fork() as fork:
        fork.say("fork", brief(6))


def cancelled_invoke(chat: ag.Chat, delay: float) -> None:
    token = ag.CancelToken()
    timer = threading.Timer(delay, token.cancel)
    timer.start()
    try:
        chat.invoke("marker", cancel=token)
    except ag.CancelledError:
        pass
    finally:
        timer.cancel()


def test_one_thread_asks_while_another_reads_a_reply(files: Files) -> None:
    with opened(files) as model:
        with model.chat(template=PLAIN) as chat:
            whole = chat.say("tell", brief(80)).text
        chat = model.chat(template=PLAIN)
        asked, begun = list[ag.IntrinsicResult](), threading.Event()

        def ask() -> None:
            begun.wait()
            for _ in range(4):
                asked.append(chat.invoke("marker"))

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            reply = chat.say("tell", brief(80), stream=True)
            for i, _ in enumerate(reply):
                if i == 3:
                    begun.set()
                time.sleep(0.001)
            asking.result(timeout=60)
        assert reply.text == whole
        assert chat.messages == [ag.Message("user", "tell"), ag.Message("assistant", whole)]
        assert all(each.text in ('"yes"', '"no"') for each in asked)


def test_who_looks_sees_each_message_once(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply is a message while it runs and when it is over, and never twice or not at all."""
    talking = threading.get_ident()

    def text(reply: ag.Reply) -> str:
        if threading.get_ident() != talking:
            time.sleep(0.001)  # much may happen while one looks
        return super(ag.Reply, reply).text

    monkeypatch.setattr(ag.Reply, "text", property(text))
    seen, over = list[list[ag.Message]](), threading.Event()
    with opened(files) as model, model.chat(template=PLAIN) as chat:

        def look() -> None:
            while not over.is_set():
                seen.append(chat.messages)

        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(look)
            try:
                for i in range(10):
                    chat.say(str(i), brief(3))
            finally:
                over.set()
            looking.result(timeout=60)
        final = chat.messages
    for messages in seen:
        n = len(messages)
        assert n <= len(final)
        assert [m.role for m in messages] == ["user", "assistant"] * (n // 2) + ["user"] * (n % 2)
        assert messages[:-1] == final[: n - 1] if n else True


def test_the_session_below_ends_a_reply_without_the_lock_of_the_chat(files: Files) -> None:
    with opened(files) as model, model.chat(template=PLAIN) as chat:
        reply = chat.say("tell", brief(80), stream=True)
        next(reply)
        with ThreadPoolExecutor(1) as pool, chat._lock:  # whoever holds it may wait for the session
            pool.submit(chat.session.rewind, 0).result(timeout=10)
        assert reply.finish_reason == "closed"


def test_a_call_that_waits_for_its_turn_gets_it(files: Files) -> None:
    """Two whole turns at a time: one after the other, in either order."""
    with opened(files) as model, model.chat(template=PLAIN) as chat:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda said: chat.say(said, brief(30)), ["a", "b"]))
        roles = [m.role for m in chat.messages]
        assert roles == ["user", "assistant"] * 2
        assert {m.content for m in chat.messages[::2]} == {"a", "b"}
        assert_sound(chat, files)


def test_closing_a_chat_that_another_thread_uses(files: Files) -> None:
    with opened(files) as model:
        for delay in (0.0, 0.005, 0.02):
            chat = model.chat(template=PLAIN)
            begun = threading.Event()

            def until_closed(chat: ag.Chat = chat, begun: threading.Event = begun) -> str:
                try:
                    while True:
                        chat.say("on", brief(10), stream=True).read()
                        chat.invoke("marker")
                        chat.rewind()
                        begun.set()
                except ag.ClosedError as error:
                    return str(error)

            with ThreadPoolExecutor(1) as pool:
                running = pool.submit(until_closed)
                begun.wait(timeout=60)
                time.sleep(delay)
                chat.close()
                assert "closed" in running.result(timeout=60)
        assert_nothing_left(model)
