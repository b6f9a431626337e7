"""asyncio: calls that are awaited, replies that are iterated over, none of them blocking the loop.

    result = await aio.call(chat.invoke, "answerability")
    reply = await aio.call(chat.say, "And when does it close?", stream=True)
    async for piece in reply:
        ...

One function instead of a second set of classes: whatever blocks can be awaited with it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from typing import ParamSpec, TypeVar

from .options import CancelToken

__all__ = ["call"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def call(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """What `function` returns, called in another thread; it raises what that raises.

    If the task is cancelled, so is the call where it takes a `cancel` (one is passed to it unless
    given), and the task ends as soon as the call has come back: what it worked on is then as
    CancelToken says.
    """
    work, token = partial(function, *args, **kwargs), kwargs.get("cancel")
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):  # one in C may not tell its own; a wrong call says so itself
        pass
    else:
        bound.apply_defaults()
        if "cancel" in bound.arguments:
            token = bound.arguments["cancel"]
            if token is None:
                token = bound.arguments["cancel"] = CancelToken()
                work = partial(function, *bound.args, **bound.kwargs)
    return await _in_thread(work, token if isinstance(token, CancelToken) else None)


async def _in_thread(work: Callable[[], _T], token: CancelToken | None) -> _T:
    """call() for work that was given its token already."""
    context = contextvars.copy_context()
    future = asyncio.get_running_loop().run_in_executor(_threads(), context.run, _result, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if token is not None:
            token.cancel()
        while not future.done():  # further cancellations do not make it faster
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # nobody else will look
        raise


def _result(work: Callable[[], _T]) -> _T:
    try:
        return work()
    except StopIteration as error:  # asyncio cannot pass it on, and would wait forever
        raise RuntimeError(
            "the call raised StopIteration, which cannot be awaited; use `async for`, or give "
            "next() a default"
        ) from error


@cache
def _threads() -> ThreadPoolExecutor:
    """Our own: calls here take long, and asyncio's default ones are few and serve others too."""
    return ThreadPoolExecutor(max_workers=64, thread_name_prefix="alora_gguf")
