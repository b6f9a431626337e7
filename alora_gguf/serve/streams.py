"""Answers on their way: whole, or as server-sent events; who is gone is not worked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
from sse_starlette import EventSourceResponse
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from . import errors
from .work import Job

PING: Final = 10.0
"""Seconds of silence after which a stream says that it is alive: clients and proxies give up on
connections that are silent for 30 and more, and a long conversation takes longer to read.
"""
SEND_SECONDS: Final = 60.0
"""How long a client may take to accept what a stream sends before it counts as gone."""
_GONE: Final = Response(status_code=499)  # nobody reads it
encode = msgspec.json.Encoder().encode


def answer(body: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(encode(body), status, media_type="application/json")


async def whole(request: Request, job: Job, collect: Callable[[Job], Awaitable[Any]]) -> Response:
    """What `collect` makes of a job, which ends when the client goes away."""
    try:
        body = await _unless_gone(request, job, collect(job))
    except ClientDisconnect:
        return _GONE
    return answer(body)


async def events(
    request: Request,
    job: Job,
    chunks: AsyncIterator[Any],
    *,
    done: bytes | None = b"[DONE]",
) -> Response:
    """The `chunks` made of a job as server-sent events. What is wrong with the request is an error
    of its own, as nothing is sent before the job has told something, or PING seconds are over.
    """
    try:
        await _unless_gone(request, job, asyncio.wait_for(job.begun(), PING))
    except asyncio.TimeoutError:
        pass
    except ClientDisconnect:
        return _GONE

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield b"data: " + encode(chunk) + b"\n\n"
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the status is sent already
            errors.log(request, error)
            yield b"data: " + encode({"error": errors.describe(error)}) + b"\n\n"
        finally:
            job.stop()
        if done is not None:
            yield b"data: " + done + b"\n\n"

    return EventSourceResponse(lines(), ping=PING, sep="\n", send_timeout=SEND_SECONDS)


async def _unless_gone(request: Request, job: Job, work: Awaitable[Any]) -> Any:
    """What `work` returns. Raises ClientDisconnect, and stops the job, if the client goes away."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    except BaseException as error:
        if not isinstance(error, asyncio.TimeoutError):
            job.stop()
        raise
    finally:
        for task in (working, leaving):
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
