"""GET /metrics: what was asked, read, reused and written, for Prometheus."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import alora_gguf as ag

from .work import Desk

# a gauge beside every counter, which nobody asks for
disable_created_metrics()  # type: ignore[no-untyped-call]
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Of one server."""

    def __init__(self, desk: Desk) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "alora_requests", "Requests answered", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "alora_request_seconds", "Until a request's answer was sent", ["path"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.first_token = Histogram(
            "alora_first_token_seconds", "From the call to the first token", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "alora_tokens", "Tokens that were reused, read or written", ["kind"], registry=registry
        )
        running = Gauge("alora_requests_running", "Requests at work", registry=registry)
        running.set_function(lambda: desk.running)
        waiting = Gauge("alora_requests_waiting", "Requests in line", registry=registry)
        waiting.set_function(lambda: desk.waiting)
        self._cells = Gauge("alora_cells", "Cells of the KV cache", ["state"], registry=registry)

    def observe(self, event: object) -> None:
        """Counts what a job tells; from any thread."""
        timings = getattr(event, "timings", None)
        if not isinstance(timings, ag.Timings):
            return
        self.tokens.labels("reused").inc(timings.reused)
        self.tokens.labels("read").inc(timings.evaluated)
        self.tokens.labels("written").inc(timings.generated)
        if timings.first_token is not None:
            self.first_token.observe(timings.first_token)

    def text(self, cache: ag.CacheReport | None) -> bytes:
        """All of it, in Prometheus's format."""
        if cache is not None:
            for state in ("used", "promised", "free"):
                self._cells.labels(state).set(getattr(cache, state))
        return generate_latest(self.registry)


class Measured:
    """ASGI middleware: counts requests by the route that answered, and their time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on, and looks at the status that comes back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begun = "499", time.perf_counter()

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            path = _route(scope)
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - begun)


def _route(scope: Scope) -> str:
    """The path as the route has it: strangers' paths would be labels without end."""
    route: Any = scope.get("route")
    return getattr(route, "path", "other")


async def metrics(request: Request) -> Response:
    """GET /metrics."""
    service = request.app.state.service
    cache = service.model.cache_report() if service.state != "loading" else None
    return Response(service.metrics.text(cache), media_type=CONTENT_TYPE_PLAIN_0_0_4)
