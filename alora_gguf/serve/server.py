"""The process: listens, loads the model, and ends in order."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

import alora_gguf as ag

from .app import create_app
from .service import Service, Settings

_HEADER_SECONDS: Final = 30.0  # a client may take for the line and headers of its first request
_MAX_HEADERS: Final = 64 << 10  # bytes


class _Protocol(H11Protocol):
    """Closes connections that never say what they want."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(_HEADER_SECONDS, self._close_unless_begun)

    def _close_unless_begun(self) -> None:
        begun: object = self.cycle  # None, whatever its type says, until a request was understood
        if begun is None and not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Serves one model at an address until it is told to stop: then nothing new begins, what is
    under way has `grace` seconds to end, and is cancelled. A second signal cancels at once.
    """

    def __init__(
        self,
        load: Callable[[], ag.Model],
        settings: Settings,
        *,
        host: str,
        port: int,
        grace: float = 10.0,
        ready: Callable[[str], None] | None = None,
    ) -> None:
        """`load` opens the model while the server answers /health; `ready` is called with the URL
        once it serves. Raises InputError where it cannot listen.
        """
        self.service = Service(settings)
        self._load, self._ready, self._grace = load, ready, grace
        self._model: ag.Model | None = None
        self.error: BaseException | None = None
        config = uvicorn.Config(
            create_app(self.service, self._begin),
            http=_Protocol,
            ws="none",
            h11_max_incomplete_event_size=_MAX_HEADERS,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=5,
            server_header=False,
        )
        super().__init__(config)
        self._socket = _listen(host, port)
        address, number = self._socket.getsockname()[:2]
        name = f"[{address}]" if ":" in address else address
        self.url = f"http://{name}:{number}"

    def serve_until_stopped(self) -> None:
        """Runs. Raises what loading raised."""
        try:
            self.run(sockets=[self._socket])
        finally:
            self._socket.close()
            if self._model is not None:
                self._model.close()
        if self.error is not None:
            raise self.error

    def _begin(self) -> None:
        threading.Thread(target=self._open, name="alora_gguf-load", daemon=True).start()

    def _open(self) -> None:
        try:
            self._model = self._load()
            self.service.open(self._model)
            if self._ready is not None:
                self._ready(self.url)
        except BaseException as error:
            self.error = error
            self.should_exit = True

    def handle_exit(self, _sig: int, _frame: FrameType | None) -> None:
        """A signal."""
        self.stop()

    def stop(self) -> None:
        """Begins to drain or, called again, ends it."""
        if self.service.state == "draining":
            self.service.desk.cancel_all()
            self.should_exit = True
            return
        self.service.state = "draining"
        threading.Thread(target=self._drain, name="alora_gguf-drain", daemon=True).start()

    def _drain(self) -> None:
        if not self.service.desk.wait_idle(self._grace):
            self.service.desk.cancel_all()
            self.service.desk.wait_idle(self._grace)
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    found = None
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = info[0]
        # of a socket that does not name its protocol asyncio does not know that it is TCP, and
        # leaves Nagle's algorithm on: an answer's body then waits 40 ms for the client's receipt
        found = socket.socket(family, kind, protocol)
        if os.name != "nt":  # where others could listen at the same port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(512)
    except OSError as error:
        if found is not None:
            found.close()
        raise ag.InputError(
            f"{host}:{port}: cannot listen there: {error.strerror or error}; choose another --host "
            "or --port"
        ) from error
    return found
