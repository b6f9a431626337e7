"""What went wrong as HTTP has it: a status, and a body in the form of the door it came in by."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import alora_gguf as ag
from alora_gguf.decide import systemone_error
from alora_gguf.errors import did_you_mean

SYSTEM_ONE: Final = "/v1/systemone"
RETRY_AFTER: Final = 1  # seconds: a request of a small model takes about that


class ServeError(ag.AloraError, code="serve"):
    """A request that cannot be served. Its class says the status."""

    status: int = 400


class RequestError(ServeError, code="request"):
    """A request is malformed. `param` is the field that is wrong, if one is."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class TooLongError(ServeError, code="context_length_exceeded"):
    """A conversation is longer than the model's context."""


class UnknownModelError(RequestError, code="model_not_found"):
    """No base or adapter of that name is served."""

    status = 404


class UnauthorizedError(ServeError, code="invalid_api_key"):
    """The API key is missing or wrong."""

    status = 401


class ForbiddenError(ServeError, code="forbidden"):
    """A host, an origin or a path that this server was not told to serve."""

    status = 403


class TooSlowError(ServeError, code="request_timeout"):
    """A request's body did not come in time."""

    status = 408


class TooLargeError(ServeError, code="body_too_large"):
    """A request's body is larger than this server takes."""

    status = 413


class BusyError(ServeError, code="busy"):
    """As many requests wait as may."""

    status = 429


class NotReadyError(ServeError, code="not_ready"):
    """The model is being loaded, or the server is about to end."""

    status = 503


_STATUS: Final[dict[type[ag.AloraError], int]] = {
    ag.ClosedError: 503,
    ag.CancelledError: 503,
    ag.UnknownAdapterError: 404,
    ag.MissingFileError: 404,
    ag.AdapterInUseError: 409,
    ag.CacheFullError: 503,
    ag.DecodeError: 500,
    ag.LibraryError: 500,
    ag.StoreError: 500,
    ag.HubError: 502,
    ag.RpcError: 500,
}
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 404: "not_found_error",
                 429: "rate_limit_error"}  # fmt: skip
# what Python's callers are told of a call, and clients need not know
_CALL: Final = re.compile(r"^[\w.]+\(\): ")
_FIELD: Final = re.compile(r"[a-z_]+(?=(?:\[\d+\])?(?: must|:| is | has ))")


FIELDS: Final = (
    "documents", "frequency_penalty", "grammar", "input", "logit_bias", "max_tokens", "messages",
    "min_p", "presence_penalty", "repeat_last_n", "repeat_penalty", "scale", "seed", "stop",
    "temperature", "tool_choice", "tools", "top_k", "top_p", "typical_p",
)  # fmt: skip
"""Fields of requests that the package's own messages may begin with."""


def status_of(error: BaseException) -> int:
    """The HTTP status of an error."""
    if isinstance(error, (ServeError, HTTPException)):
        return error.status if isinstance(error, ServeError) else error.status_code
    if isinstance(error, ag.AloraError):
        return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 400)
    return 500


def describe(error: BaseException) -> dict[str, Any]:
    """An error as OpenAI's API has it: message, type, param and code."""
    status = status_of(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    message, code, param = str(error), "internal", None
    if isinstance(error, ag.AloraError):
        code = error.code
        if isinstance(error, ag.CancelledError):  # who went away does not read it
            message = "the server is ending, and did not wait for this answer any longer"
        param = error.param if isinstance(error, RequestError) else None
        if isinstance(error, ag.FieldError):
            param = ".".join(map(str, error.path)) or None
        elif param is None and isinstance(error, ag.InputError):
            message = _CALL.sub("", message)
            found = _FIELD.match(message)
            param = found[0] if found and found[0] in FIELDS else None
    elif isinstance(error, HTTPException):
        message = error.detail
        code = {404: "not_found", 405: "method_not_allowed"}.get(status, "http")
    else:
        message = "a bug in alora-gguf; the server's log has it"
    return {"message": message, "type": kind, "param": param, "code": code}


def body(error: BaseException, path: str, shown: Callable[[str], str] = str) -> dict[str, Any]:
    """An error as the door has it that `path` is of, in words that may be `shown`."""
    described = describe(error)
    described["message"] = shown(described["message"])
    if path == SYSTEM_ONE:
        if isinstance(error, ag.FieldError):
            return systemone_error(error)
        if isinstance(error, RequestError) and error.status == 400:
            return systemone_error(ag.FieldError((), str(error)))
        kind = described["type"] if status_of(error) == 401 else described["code"]
        return {"detail": {"error_type": kind, "message": described["message"]}}
    return {"error": described["message"] if path.startswith("/api/") else described}


def response(error: BaseException, path: str, shown: Callable[[str], str] = str) -> Response:
    """The answer to a request for `path` that went wrong."""
    status = status_of(error)
    if path == SYSTEM_ONE and status == 400:
        status = 422  # its word for a request that is malformed
    headers = {"retry-after": str(RETRY_AFTER)} if status in (429, 503) else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, HTTPException):
        headers.update(error.headers or {})
    return Response(
        msgspec.json.encode(body(error, path, shown)), status, headers, "application/json"
    )


def log(request: Request, error: BaseException) -> None:
    """Says in the log what is not the client's fault; /health says what stays so."""
    if isinstance(error, ag.RpcError):
        request.app.state.service.state = "lost"
    if status_of(error) < 500 or isinstance(error, (ServeError, ag.CancelledError)):
        return
    logging.getLogger("alora_gguf.serve").error(
        "%s %s: %s",
        request.method,
        request.url.path,
        error,
        exc_info=None if isinstance(error, ag.AloraError) else error,
    )


async def handle(request: Request, error: Exception) -> Response:
    """Starlette's handler of all errors."""
    log(request, error)
    if isinstance(error, HTTPException) and error.status_code == 404:
        path, known = request.url.path, request.app.state.paths
        near = next((each for each in known if each.endswith(path.rstrip("/"))), None)
        hint = did_you_mean(path, known) if near is None else f"; did you mean {near}?"
        error = HTTPException(404, f"there is nothing at {path[:200]}{hint}")
    return response(error, request.url.path, request.app.state.service.shown)
