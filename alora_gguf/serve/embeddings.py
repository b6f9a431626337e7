"""POST /v1/embeddings: OpenAI's, by the base or an adapter."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import alora_gguf as ag

from . import fields, streams
from .adapters import Asked, View
from .completions import MAX_PROMPTS
from .errors import RequestError
from .service import Service, service_of
from .work import Job

_FORMATS: Final = ("float", "base64")


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The fields that are read; further ones are passed over."""

    input: Any
    model: str | None = None
    adapter: str | None = None
    adapter_id: str | None = None
    steer: Any = None
    encoding_format: str | None = None
    dimensions: int | None = None


async def embeddings(request: Request) -> Response:
    """Answers with one embedding for each text."""
    service = service_of(request)
    body = await fields.read(request, EmbeddingRequest)
    form = body.encoding_format or "float"
    if form not in _FORMATS:
        raise RequestError(f"encoding_format is {form!r}, expected 'float' or 'base64'",
                           "encoding_format")  # fmt: skip
    if body.dimensions is not None:
        raise RequestError("dimensions cannot be chosen: this model has those that it has",
                           "dimensions")  # fmt: skip
    whom = _asked(service, body)

    async def collect(job: Job) -> dict[str, Any]:
        (found,) = [event async for event in job if isinstance(event, ag.Embeddings)]
        return _answer(found, form, service.model_name(whom))

    return await streams.whole(request, service.start(embedded(service, body)), collect)


def embedded(service: Service, body: EmbeddingRequest) -> Callable[[View, Job], None]:
    """The work that tells a request's embeddings. Raises RequestError, UnknownModelError."""
    texts, model = _texts(body.input), service.model
    whom = _asked(service, body)

    def work(view: View, job: Job) -> None:
        job.tell(model.embed(texts, adapter=view.computed_by(whom), cancel=job.cancel))

    return work


def _asked(service: Service, body: EmbeddingRequest) -> Asked:
    return service.adapters.asked(body.model, body.adapter, body.adapter_id, steer=body.steer)


def _texts(given: Any) -> list[Any]:
    if isinstance(given, str) or (isinstance(given, list) and given and type(given[0]) is int):
        given = [given]
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_PROMPTS:
        raise RequestError(f"input must be text, or a list of up to {MAX_PROMPTS} texts", "input")
    for i, each in enumerate(given):
        whole = isinstance(each, list) and all(type(token) is int for token in each)
        if not each or not (isinstance(each, str) or whole):
            raise RequestError(f"input[{i}] must be text or token ids, got {each!r:.60}", "input")
    return given


def _answer(found: ag.Embeddings, form: str, model: str) -> dict[str, Any]:
    def shown(vector: Any) -> Any:
        if form == "base64":
            return base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return vector.tolist()

    n = sum(found.n_tokens)
    return {
        "object": "list",
        "model": model,
        "data": [
            {"object": "embedding", "index": i, "embedding": shown(vector)}
            for i, vector in enumerate(found.vectors)
        ],
        "usage": {"prompt_tokens": n, "total_tokens": n},
    }
