"""asyncio: what is awaited, iterated over and cancelled, and a loop that is never blocked."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf import aio, demo
from alora_gguf.engine.scheduler import Scheduler
from alora_gguf.intrinsics import Contract
from tests.support.batches import threads_of_batches
from tests.support.chats import PLAIN, YES_NO, assert_nothing_left, assert_sound, brief
from tests.support.files import EXACT, FOREVER, Files
from tests.support.loops import until

LONG = "the rain " * 180


@pytest.fixture
def model(files: Files) -> Iterator[ag.Model]:
    with files.model(n_ctx=8192, options=EXACT) as model:
        model.set_contract("sure", Contract.parse(YES_NO))
        yield model
        assert_nothing_left(model)


@pytest.fixture
def chat(model: ag.Model) -> Iterator[ag.Chat]:
    with model.chat(template=PLAIN) as chat:
        chat.say("hello", brief())
        yield chat


# Calls ------------------------------------------------------------------------------------------


def test_a_call_returns_and_raises_what_the_function_does(chat: ag.Chat) -> None:
    async def main() -> None:
        here = threading.get_ident()
        assert await aio.call(threading.get_ident) != here
        assert await aio.call(divmod, 7, 2) == (3, 1)
        assert await aio.call(dict, a=1) == {"a": 1}
        with pytest.raises(ZeroDivisionError):
            await aio.call(divmod, 1, 0)
        reply = await aio.call(chat.say, "a", brief(5))
        assert chat.messages[-1].content == reply.text
        with pytest.raises(ag.UnknownAdapterError, match="no adapter named 'nobody'"):
            await aio.call(chat.invoke, "nobody")
        result = await aio.call(chat.invoke, "sure")
        assert result.text in ('"yes"', '"no"')

    asyncio.run(main())


def test_a_model_is_loaded_and_closed_in_a_task(files: Files) -> None:
    async def main() -> None:
        model = await aio.call(ag.Model, files.base, n_ctx=256, n_threads=1)
        assert (await aio.call(model.tokenize, "the")) == model.tokenize("the")
        await aio.call(model.close)
        assert model.closed

    asyncio.run(main())


def test_an_iterators_end_cannot_be_awaited_and_says_so() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(aio.call(next, iter(())), 10)

    asyncio.run(main())


def test_the_callers_own_token_is_used(chat: ag.Chat) -> None:
    """However it is passed on: by keyword, in its place, in a partial."""
    seen: list[object] = []

    def work(n: int, cancel: ag.CancelToken | None = None) -> int:
        seen.append(cancel)
        return n

    def needs(cancel: ag.CancelToken) -> None:
        seen.append(cancel)

    mine = ag.CancelToken()

    async def main() -> None:
        assert await aio.call(work, 1, cancel=mine) == 1
        assert await aio.call(work, 1, mine) == 1
        assert await aio.call(functools.partial(work, cancel=mine), 1) == 1
        await aio.call(needs, mine)
        assert seen == [mine] * 4
        assert await aio.call(work, 1) == 1
        assert await aio.call(work, 1, cancel=None) == 1
        assert isinstance(seen[4], ag.CancelToken)
        assert isinstance(seen[5], ag.CancelToken)
        mine.cancel()
        with pytest.raises(ag.CancelledError):
            await aio.call(chat.say, "x", cancel=mine)

    asyncio.run(main())


def test_context_variables_go_along() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="none")

    async def one(value: str) -> str:
        name.set(value)
        return await aio.call(name.get)

    async def main() -> None:
        assert await asyncio.gather(*(one(str(i)) for i in range(5))) == list("01234")
        assert name.get() == "none"
        assert await aio.call(name.set, "x")
        assert name.get() == "none"  # a copy: as with asyncio.to_thread()

    asyncio.run(main())


# Replies ----------------------------------------------------------------------------------------


def test_a_reply_is_iterated_over(chat: ag.Chat) -> None:
    with chat.fork() as other:
        expected = other.say("tell", brief(30))

    async def main() -> None:
        reply = await aio.call(chat.say, "tell", brief(30), stream=True)
        pieces = [piece async for piece in reply]
        assert "".join(pieces) == reply.text == expected.text
        assert len(pieces) > 5
        assert reply.finish_reason == "length"
        assert [piece async for piece in reply] == []

    asyncio.run(main())
    assert chat.messages[-1] == ag.Message("assistant", expected.text)


def test_a_break_leaves_the_reply_as_a_break_does(chat: ag.Chat, files: Files) -> None:
    with chat.fork() as other:
        expected = other.say("tell", brief(30))

    async def main() -> None:
        reply = await aio.call(chat.say, "tell", brief(30), stream=True)
        async for _ in reply:
            if len(reply.tokens) > 4:
                break
        for _ in range(3):
            await asyncio.sleep(0.001)  # what is left of the loop is done away with
        assert reply.finish_reason is None
        assert chat.messages[-1] == ag.Message("assistant", reply.text)
        async for _ in reply:
            pass
        assert reply.text == expected.text
        reply = await aio.call(chat.say, "more", brief(30), stream=True)
        async for _ in reply:
            break
        said = reply.text
        await aio.call(chat.say, "on", brief(5))
        assert reply.finish_reason == "closed"
        assert reply.text == chat.messages[-3].content
        assert reply.text.startswith(said)

    asyncio.run(main())
    assert_sound(chat, files)


def test_leaving_a_reply_waits_for_nobody(chat: ag.Chat) -> None:
    """Another task may be using the chat: the loop does not wait for its lock."""
    held, free = threading.Event(), threading.Event()

    def holds() -> None:
        with chat._lock:
            held.set()
            free.wait(timeout=FOREVER)

    async def main() -> None:
        reply = await aio.call(chat.say, "tell", brief(30), stream=True)
        pieces = reply.__aiter__()
        await pieces.__anext__()
        holding = asyncio.create_task(aio.call(holds))
        await until(held.is_set)
        await pieces.aclose()  # type: ignore[attr-defined]
        assert not holding.done()
        assert chat.messages[-1] == ag.Message("assistant", reply.text)
        step = asyncio.create_task(reply.__aiter__().__anext__())  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        assert not holding.done()
        assert not step.done()
        free.set()
        assert await step
        await holding

    asyncio.run(main())


# Several ----------------------------------------------------------------------------------------


def test_several_chats_share_batches_and_block_no_loop(
    model: ag.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = Scheduler._compose

    def spy(self: Scheduler) -> Any:
        work = real(self)
        sizes.append(len(work.requests))
        return work

    async def talk(i: int) -> list[str]:
        with model.chat(template=PLAIN) as chat:
            out = []
            for said in ("a", LONG[: 200 + i], "b"):
                reply = await aio.call(chat.say, f"{i} {said}", brief(12), stream=True)
                out.append("".join([piece async for piece in reply]))
                out.append((await aio.call(chat.invoke, "sure")).text)
            return out

    async def one_by_one() -> list[list[str]]:
        return [await talk(i) for i in range(5)]

    async def together() -> list[list[str]]:
        return await asyncio.gather(*(talk(i) for i in range(5)))

    alone = asyncio.run(one_by_one())
    monkeypatch.setattr(Scheduler, "_compose", spy)
    with threads_of_batches() as threads:
        assert asyncio.run(together()) == alone
    assert max(sizes) > 1
    assert threading.main_thread() not in threads


def test_more_calls_than_threads_take_turns() -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(aio.call(sum, [i]) for i in range(300)))

    assert asyncio.run(main()) == list(range(300))


# The end ----------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys, threading
import alora_gguf as ag
from alora_gguf import aio

async def main():
    model = await aio.call(ag.Model, sys.argv[1], n_ctx=2048, n_threads=1)
    chat = model.chat()
    endless = ag.GenerateOptions(max_tokens=1500, sampling=ag.Sampling(
        temperature=1.0, seed=1, logit_bias={i: float("-inf") for i in END}))
    task = asyncio.ensure_future(aio.call(chat.say, "hello", endless))
    while len(chat.messages) < 2:
        await asyncio.sleep(0.001)
    async for piece in await aio.call(model.chat().say, "hi", endless, stream=True):
        break
    print("left", [t.name for t in threading.enumerate() if not t.daemon] != [], flush=True)

END = (0, 1)
asyncio.run(main())
print("over", flush=True)
"""


def test_a_program_that_ends_amid_all_that_ends_at_once() -> None:
    """asyncio.run() cancels what runs; no thread keeps the interpreter."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(demo.base_path())],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stderr == ""
    assert run.stdout.split() == ["left", "True", "over"]
    assert run.returncode == 0
