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
    """The `chunks` made of a job as server-sent events; those of a response have names, and no end
    of `done`. What is wrong with the request is an error of its own, as nothing is sent before the
    job has told something, or PING seconds are over.
    """

    def line(chunk: Any) -> bytes:
        name = b"event: %s\n" % chunk["type"].encode() if done is None and "type" in chunk else b""
        return name + b"data: " + encode(chunk) + b"\n\n"

    end = b"" if done is None else b"data: " + done + b"\n\n"
    return await _streamed(request, job, chunks, line, end, "text/event-stream", PING)


async def lines(request: Request, job: Job, chunks: AsyncIterator[Any]) -> Response:
    """The `chunks` made of a job as lines of JSON; otherwise as events()."""
    line = lambda chunk: encode(chunk) + b"\n"  # noqa: E731
    return await _streamed(request, job, chunks, line, b"", "application/x-ndjson", 0)


async def _streamed(
    request: Request,
    job: Job,
    chunks: AsyncIterator[Any],
    line: Callable[[Any], bytes],
    end: bytes,
    media_type: str,
    ping: float,
) -> Response:
    if (gone := await _begun(request, job)) is not None:
        return gone

    async def written() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield line(chunk)
        except Exception as error:  # the status is sent already
            errors.log(request, error)
            body = errors.body(error, request.url.path, request.app.state.service.shown)
            yield line(body)
        finally:
            job.stop()
        if end:
            yield end

    return EventSourceResponse(
        written(), media_type=media_type, ping=ping, sep="\n", send_timeout=SEND_SECONDS
    )


async def _begun(request: Request, job: Job) -> Response | None:
    """Waits for a job's first event, at most PING seconds; returns a response if nobody is there to
    read another.
    """
    try:
        await _unless_gone(request, job, asyncio.wait_for(job.begun(), PING))
    except asyncio.TimeoutError:
        pass
    except ClientDisconnect:
        return _GONE
    return None


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
