"""Who may ask, and how much: hosts, origins, the key and the size of bodies, before anything else
looks at a request.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import errors

MAX_BODY: Final = 16 << 20
"""Bytes of a request's body: a conversation of any context there is, with room."""
BODY_SECONDS: Final = 30.0
"""How long the next part of a body may take to come."""
_OPEN: Final = ("/", "/health", "/ping", "/version", "/api/version", "/favicon.ico")
"""What needs no key: whether the server is there, and the page, which asks for the key."""
_METHODS: Final = "GET, POST, HEAD, OPTIONS, DELETE"


class Guard:
    """ASGI middleware.

    key      what a request must bear if it is not None
    hosts    names that may stand in Host beside addresses and localhost. A page elsewhere whose
             name was made to lead here (DNS rebinding) comes with that name
    origins  those of pages elsewhere that may ask; "*" is any
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None,
        hosts: Iterable[str],
        origins: Iterable[str],
        max_body: int = MAX_BODY,
    ) -> None:
        self._app, self._key, self._max_body = app, key, max_body
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses, or passes on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            origin = self._check_host(headers)
            if scope["method"] == "OPTIONS" and origin is not None:
                await _preflight(origin, headers, send)
                return
            if scope["path"] not in _OPEN and not scope["path"].startswith("/page/"):
                self._check_key(headers)
            self._check_length(headers)
        except errors.ServeError as error:
            await errors.response(error, scope["path"])(scope, receive, send)
            return

        def allow(message: Message) -> None:
            if origin is not None and message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_allowed(origin))

        async def sent(message: Message) -> None:
            allow(message)
            await send(message)

        await self._app(scope, self._bounded(receive), sent)

    def _check_host(self, headers: Headers) -> str | None:
        """Returns the origin of a page elsewhere that may ask; raises ForbiddenError for others."""
        host = headers.get("host", "")
        name = _name(f"//{host}")
        if not (name == "localhost" or name in self._hosts or _is_address(name)):
            raise errors.ForbiddenError(
                f"the Host is {host[:100]!r}, expected an address, localhost or a name given with "
                "--allow-host"
            )
        origin = headers.get("origin")
        if origin is None or origin.partition("://")[2] == host:
            return None
        if "*" in self._origins or origin in self._origins:
            return origin
        raise errors.ForbiddenError(
            f"pages of {origin[:100]!r} may not ask this server; start it with --cors"
        )

    def _check_key(self, headers: Headers) -> None:
        if self._key is None:
            return
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token if kind.lower() == "bearer" else headers.get("x-api-key", "")
        # a header's bytes are read as Latin-1, whatever they were written in
        if not hmac.compare_digest(given.strip().encode("latin-1"), self._key.encode()):
            raise errors.UnauthorizedError(
                "the API key is missing or wrong; send it as Authorization: Bearer KEY"
            )

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._max_body:
            raise self._too_large()

    def _too_large(self) -> errors.TooLargeError:
        return errors.TooLargeError(
            f"the body has more than {self._max_body} bytes, which is what this server takes"
        )

    def _bounded(self, receive: Receive) -> Receive:
        """`receive`, that counts the body and does not wait forever for it."""
        n, whole = 0, False

        async def receive_bounded() -> Message:
            nonlocal n, whole
            if whole:
                return await receive()  # a disconnection, whenever it comes
            try:
                message = await asyncio.wait_for(receive(), BODY_SECONDS)
            except asyncio.TimeoutError:
                raise errors.TooSlowError(
                    f"no more of the body came for {BODY_SECONDS:g} seconds"
                ) from None
            n += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if n > self._max_body:
                raise self._too_large()
            return message

        return receive_bounded


def _name(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _allowed(origin: str) -> dict[str, str]:
    return {"access-control-allow-origin": origin, "vary": "Origin"}


async def _preflight(origin: str, headers: Headers, send: Send) -> None:
    """Answers a browser that asks whether it may ask."""
    answer = MutableHeaders(
        {
            **_allowed(origin),
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": headers.get("access-control-request-headers", "*"),
            "access-control-max-age": "600",
        }
    )
    await send({"type": "http.response.start", "status": 204, "headers": answer.raw})
    await send({"type": "http.response.body", "body": b""})
