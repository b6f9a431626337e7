"""asyncio: tasks that are cancelled amid a call end soon, and leave the chat usable."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf import aio
from alora_gguf.intrinsics import Contract
from tests.support.batches import slow_batches, threads_of_batches
from tests.support.chats import PLAIN, YES_NO, assert_nothing_left, assert_sound, brief
from tests.support.files import EXACT, Files
from tests.support.loops import until

LONG = "the rain " * 720
ANYTHING = "model: ~\nresponse_format: ~\ntransformations: ~"


@pytest.fixture
def model(files: Files) -> Iterator[ag.Model]:
    with files.model(n_ctx=8192, options=EXACT) as model:
        model.set_contract("sure", Contract.parse(YES_NO))
        model.set_contract("other", Contract.parse(ANYTHING))
        yield model
        assert_nothing_left(model)


@pytest.fixture
def chat(model: ag.Model) -> Iterator[ag.Chat]:
    with model.chat(template=PLAIN) as chat:
        chat.say("hello", brief())
        yield chat


async def cancel_amid(work: Awaitable[Any], happened: Callable[[], bool]) -> None:
    """Cancels a task once something has happened, and waits for its end."""
    task = asyncio.ensure_future(work)
    await asyncio.wait_for(until(happened), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.fixture
def batches() -> Iterator[list[threading.Thread]]:
    with threads_of_batches() as threads:
        yield threads


def test_cancelling_amid_a_long_reading(
    chat: ag.Chat, files: Files, batches: list[threading.Thread]
) -> None:
    before, seen = (chat.messages, chat.tokens), list[int]()

    def progress(done: int, total: int) -> None:
        seen.append(done)

    async def main() -> None:
        work = aio.call(chat.say, LONG, brief(), progress=progress)
        await cancel_amid(work, lambda: bool(seen))

    asyncio.run(main())
    assert threading.main_thread() not in batches
    assert (chat.messages, chat.tokens) == before
    n = len(chat.tokens)
    assert chat.say("on", brief()).timings.reused == n
    assert_sound(chat, files)


@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_amid_a_reply(
    chat: ag.Chat, files: Files, batches: list[threading.Thread], stream: bool
) -> None:
    n = len(chat.messages)

    async def whole() -> None:
        await aio.call(chat.say, "tell", brief(5000))

    async def pieces() -> None:
        async for _ in await aio.call(chat.say, "tell", brief(5000), stream=True):
            pass

    async def main() -> None:
        work = pieces() if stream else whole()
        await cancel_amid(work, lambda: len(chat.messages) == n + 2)

    asyncio.run(main())
    assert len(batches) < 2000  # the whole reply takes 5000
    assert threading.main_thread() not in batches
    # what was said stays: the call had come back, or the reply was left
    assert [m.role for m in chat.messages[n:]] == ["user", "assistant"]
    reused = chat.say("on", brief()).timings.reused
    assert reused > 0
    assert_sound(chat, files)


def test_cancelling_between_two_pieces(chat: ag.Chat, files: Files) -> None:
    async def talk() -> None:
        async for _ in await aio.call(chat.say, "tell", brief(5000), stream=True):
            await asyncio.sleep(3600)

    async def main() -> None:
        await cancel_amid(talk(), lambda: len(chat.messages) == 4)

    asyncio.run(main())
    chat.say("on", brief())
    assert len(chat.messages) == 6
    assert_sound(chat, files)


def test_cancelling_amid_a_question(chat: ag.Chat, batches: list[threading.Thread]) -> None:
    before = chat.messages, chat.read(), chat.tokens
    call = ag.IntrinsicCall("other", max_tokens=5000)
    batches.clear()

    async def main() -> None:
        work = aio.call(chat.invoke_many, [call, call])
        await cancel_amid(work, lambda: len(batches) > 5)

    asyncio.run(main())
    assert len(batches) < 2000
    assert threading.main_thread() not in batches
    assert (chat.messages, chat.tokens) == (before[0], before[2])
    assert chat.invoke("sure").error is None


def test_cancelling_twice_and_a_call_that_takes_no_token() -> None:
    free, begun = threading.Event(), threading.Event()

    def stubborn() -> str:
        begun.set()
        free.wait(timeout=30)
        return "done"

    async def main() -> None:
        task = asyncio.ensure_future(aio.call(stubborn))
        await until(begun.is_set)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.01)
            assert not task.done()  # it ends when the call has come back
        free.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_timeout_is_a_cancellation(chat: ag.Chat, files: Files) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(aio.call(chat.say, "tell", brief(6000)), 0.05)

    with slow_batches():
        asyncio.run(main())
    chat.say("on", brief())
    assert_sound(chat, files)


def test_an_error_of_a_cancelled_call_is_nobodys() -> None:
    """It is not reported as an exception that was never retrieved."""
    reports: list[Any] = []
    begun = threading.Event()

    def fails(cancel: ag.CancelToken | None = None) -> None:
        begun.set()
        while cancel is not None and not cancel.cancelled:
            time.sleep(0.001)
        raise ag.CancelledError("the call was cancelled")

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        await cancel_amid(aio.call(fails), begun.is_set)

    asyncio.run(main())
    assert reports == []
