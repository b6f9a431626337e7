"""What a hub's answers may be while something is fetched: names in them are none of paths, bodies
have a size, and all of it ends some day.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from importlib import import_module
from typing import Any, Final, NamedTuple

from alora_gguf.errors import HubError

# huggingface_hub makes paths in its cache of these headers
_NAMES: Final = ("ETag", "X-Linked-Etag", "X-Repo-Commit", "X-Xet-Hash")
_SAFE_NAME: Final = re.compile(r'(?:W/)?"?[0-9A-Za-z_-]{1,128}"?')
_MAX_LISTING: Final = 64 << 20  # bytes of an answer that is no file; of 100,000 files: 30 MB
_MIN_RATE: Final = 1024  # bytes a second; a body that is slower after _GRACE would never end
_GRACE: Final = 60.0  # seconds
_PATIENCE: Final = 60.0  # seconds for all of an answer's headers, beside huggingface_hub's timeout

Fail = Callable[[str], HubError]


class _Guard(NamedTuple):
    fail: Fail
    threads: set[int]  # the one that asks, and those that send for it


_here: Final = threading.local()  # `guard`, of this thread


@contextlib.contextmanager
def guarded(limit: int | None, fail: Fail) -> Iterator[None]:
    """Whatever the hub answers this thread meanwhile names no path outside the cache, a file has at
    most `limit` bytes (None: any number), and neither bodies nor headers drip for ever. Raises what
    `fail` makes of the problem.
    """
    from huggingface_hub import get_session

    client: Any = get_session()
    if not isinstance(client.send, _Sender):
        client.send = _Sender(client.send)  # for good: other threads may be sending by it
    guard = _Guard(fail, {threading.get_ident()})

    def check(answer: Any) -> None:
        if threading.get_ident() not in guard.threads:
            return
        is_file = "/api/" not in answer.request.url.path
        if is_file:
            for name in _NAMES:
                if not _SAFE_NAME.fullmatch(answer.headers.get(name, "-")):
                    raise fail(f"sent a {name} header that is not a file name; nothing was written")
            # or hf_xet would fetch the file, from where and as long as it likes, past these limits
            answer.headers.pop("X-Xet-Hash", None)
        _bound(answer, limit if is_file and answer.is_success else _MAX_LISTING, fail)

    hooks: list[Any] = client.event_hooks["response"]
    hooks.append(check)
    _here.guard = guard
    try:
        yield
    finally:
        _here.guard = None
        hooks.remove(check)


def _bound(answer: Any, limit: int | None, fail: Fail) -> None:
    http: Any = import_module(type(answer).__module__.partition(".")[0])
    stream = answer.stream

    class Bounded(http.SyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            n, started = 0, time.monotonic()
            for block in stream:
                n += len(block)
                seconds = time.monotonic() - started
                if limit is not None and n > limit:
                    raise fail(f"sent more than the {limit} bytes it had announced")
                if seconds > _GRACE and n < _MIN_RATE * seconds:
                    raise fail(f"sent {n} bytes in {seconds:.0f} seconds; try again later")
                yield block

        def close(self) -> None:
            stream.close()

    answer.stream = Bounded()


class _Sender:
    """A client's send(): for a guarded thread another one waits for the answer's headers. A timeout
    of the client's own is one for each read, and a byte a second is never late.
    """

    def __init__(self, send: Callable[..., Any]) -> None:
        self._send = send

    def __call__(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        guard: _Guard | None = getattr(_here, "guard", None)
        if guard is None:
            return self._send(request, stream=stream, **options)
        answer = self._answer(guard, request, options)
        if not stream:
            try:
                answer.read()
            except BaseException:
                answer.close()
                raise
        return answer

    def _answer(self, guard: _Guard, request: Any, options: Any) -> Any:
        """The answer, whose body is still to come. A thread that is given up ends with its
        connection.
        """
        from huggingface_hub import constants

        found, seconds = Future[Any](), _PATIENCE
        seconds += max(constants.HF_HUB_ETAG_TIMEOUT, constants.HF_HUB_DOWNLOAD_TIMEOUT)

        def send() -> None:
            answer, problem = None, None
            guard.threads.add(threading.get_ident())
            try:
                answer = self._send(request, stream=True, **options)
            except BaseException as error:
                problem = error
            guard.threads.discard(threading.get_ident())
            if found.set_running_or_notify_cancel():
                found.set_exception(problem) if problem else found.set_result(answer)
            elif answer is not None:
                answer.close()

        threading.Thread(target=send, name="alora_gguf-hub", daemon=True).start()
        over = threading.Event()
        found.add_done_callback(lambda _: over.set())
        try:
            over.wait(seconds)
        finally:
            given_up = found.cancel()
        if given_up:
            raise guard.fail(f"sent no whole answer in {seconds:.0f} seconds; try again later")
        return found.result()
