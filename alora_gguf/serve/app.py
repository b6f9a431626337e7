"""The ASGI application: which path is whose."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

import alora_gguf as ag

from . import (
    chat,
    completions,
    decisions,
    embeddings,
    errors,
    metrics,
    models,
    ollama,
    responses,
    static,
)
from .guard import Guard
from .service import Service, Settings

_ROUTES = (
    ("GET", "/health", models.health),
    ("GET", "/ping", models.ping),
    ("GET", "/version", models.version),
    ("GET", "/v1/models", models.models),
    ("GET", "/v1/models/{name:path}", models.model),
    ("GET", "/v1/adapters", models.adapters),
    ("GET", "/v1/cache", models.cache),
    ("GET", "/lora-adapters", models.lora_adapters),
    ("POST", "/v1/load_lora_adapter", models.load),
    ("POST", "/v1/unload_lora_adapter", models.unload),
    ("GET", "/metrics", metrics.metrics),
    ("POST", "/v1/chat/completions", chat.chat_completions),
    ("POST", "/v1/completions", completions.completions),
    ("POST", "/v1/embeddings", embeddings.embeddings),
    ("POST", "/v1/systemone", decisions.systemone),
    ("POST", "/v1/decisions", decisions.decisions),
    ("POST", "/api/chat", ollama.chat),
    ("POST", "/api/generate", ollama.generate),
    ("POST", "/api/embed", ollama.embed),
    ("POST", "/api/show", ollama.show),
    ("POST", "/api/embeddings", ollama.embed),
    ("POST", "/api/pull", ollama.pull),
    ("POST", "/api/create", ollama.elsewhere),
    ("POST", "/api/copy", ollama.elsewhere),
    ("POST", "/api/push", ollama.elsewhere),
    ("DELETE", "/api/delete", ollama.elsewhere),
    ("GET", "/api/tags", ollama.tags),
    ("GET", "/api/ps", ollama.running),
    ("GET", "/api/version", ollama.version),
    ("POST", "/v1/responses", responses.responses),
)


def create_app(service: Service, begin: Callable[[], None] | None = None) -> Starlette:
    """The application that serves a service; `begin` is called when it starts."""
    settings: Settings = service.settings

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if begin is not None:
            begin()
        try:
            yield
        finally:
            await ag.aio.call(service.desk.close)

    guard = Middleware(
        Guard,
        key=settings.api_key,
        hosts=settings.hosts,
        origins=settings.origins,
        max_body=settings.max_body,
    )
    app = Starlette(
        routes=[
            *(Route(path, endpoint, methods=[method]) for method, path, endpoint in _ROUTES),
            *static.ROUTES,
        ],
        middleware=[Middleware(metrics.Measured, service.metrics), guard],
        exception_handlers={
            ag.AloraError: errors.handle,
            HTTPException: errors.handle,
            Exception: errors.handle,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.paths = [path for _, path, _ in _ROUTES]
    app.state.service = service
    return app
