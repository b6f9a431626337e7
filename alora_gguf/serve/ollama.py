"""Ollama's door: /api/chat, /api/generate and what its clients ask beside them. A tag is
`base:adapter`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import alora_gguf as ag

from . import fields, streams
from .chat import ChatRequest, logprobs_of, read_turn
from .completions import CompletionRequest, read_prompts
from .embeddings import EmbeddingRequest, embedded
from .errors import ForbiddenError, RequestError
from .service import Service, service_of
from .talk import Ended, Piece, Scored, complete, converse
from .work import Job

VERSION: Final = "0.35.0"
"""Whose API this is; clients look at it before they use log-probabilities and decisions."""
_NEVER: Final = "9999-12-31T23:59:59Z"  # when the model is unloaded
_OPTIONS: Final = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop", "repeat_penalty",
    "repeat_last_n", "presence_penalty", "frequency_penalty",
)  # fmt: skip


class _Request(msgspec.Struct, kw_only=True):
    model: str | None = None
    keep_alive: Any = None
    stream: bool | None = None
    format: Any = None
    options: dict[str, Any] | None = None
    think: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    steer: Any = None


class ChatBody(_Request, kw_only=True):
    """Of /api/chat. `documents` and `verdicts` are ours, and `steer` of both."""

    messages: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] | None = None
    documents: list[Any] | None = None


class GenerateBody(_Request, kw_only=True):
    """Of /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[Any] | None = None


class ModelBody(msgspec.Struct, kw_only=True):
    """Of /api/show."""

    model: str | None = None
    name: str | None = None


async def chat(request: Request) -> Response:
    """POST /api/chat."""
    service = service_of(request)
    body = await fields.read(request, ChatBody)
    asked = _asked(body, [_message(each, i) for i, each in enumerate(body.messages)])
    asked.tools, asked.documents = body.tools, body.documents
    _check_thinks(service, body)
    answer = _Answer(service, body, "message")
    if not body.messages:
        service.adapters.asked(body.model)
        return streams.answer(answer.loaded(body))
    turn = read_turn(service, asked)
    job = service.start(lambda view, job: converse(service.model, view, turn, job))
    return await _sent(request, job, answer, body)


async def generate(request: Request) -> Response:
    """POST /api/generate: by the chat template unless it is `raw`."""
    service = service_of(request)
    body = await fields.read(request, GenerateBody)
    for name in ("template", "context", "images"):
        if getattr(body, name):
            raise RequestError(
                f"{name} cannot be used here; send the conversation to /api/chat", name
            )
    _check_thinks(service, body)
    answer = _Answer(service, body, "response")
    said = [{"role": "system", "content": body.system}] if body.system else []
    asked = _asked(body, [*said, {"role": "user", "content": body.prompt or ""}])
    turn = read_turn(service, asked)
    if not body.prompt and not body.suffix:
        return streams.answer(answer.loaded(body))
    if body.raw or body.suffix:
        options = {n: getattr(asked, n) for n in (*_OPTIONS, "max_tokens", "response_format")}
        raw = CompletionRequest(
            model=body.model,
            prompt=body.prompt or "",
            suffix=body.suffix,
            steer=body.steer,
            logprobs=turn.options.logprobs,
            **{**options, "max_tokens": turn.options.max_tokens},
        )
        prompts = read_prompts(service, raw)
        job = service.start(lambda view, job: complete(service.model, view, prompts, job))
    else:
        job = service.start(lambda view, job: converse(service.model, view, turn, job))
    return await _sent(request, job, answer, body)


async def _sent(request: Request, job: Job, answer: _Answer, body: _Request) -> Response:
    if body.stream is False:
        return await streams.whole(request, job, answer.collect)
    return await streams.lines(request, job, answer.chunks(job))


def _asked(body: _Request, messages: list[dict[str, Any]]) -> ChatRequest:
    """The chat completion that asks the same. Raises RequestError."""
    options = body.options or {}
    given = {name: options[name] for name in _OPTIONS if options.get(name) is not None}
    limit = options.get("num_predict")
    if limit is not None and limit != -1 and limit != -2:  # as many as there is room for
        given["max_tokens"] = limit
    if given.get("repeat_last_n") == -1:
        given["repeat_last_n"] = 2**20
    if isinstance(body.think, bool):
        given["chat_template_kwargs"] = {"enable_thinking": body.think}
    elif isinstance(body.think, str):
        given["reasoning_effort"] = body.think
    return fields.convert(
        {
            **given,
            "model": body.model,
            "messages": messages,
            "response_format": _format(body.format),
            "logprobs": bool(body.logprobs) or None,
            "top_logprobs": body.top_logprobs,
            "steer": body.steer,
        },
        ChatRequest,
    )


def _check_thinks(service: Service, body: _Request) -> None:
    """Raises RequestError where a model is to think that cannot."""
    if body.think and "thinking" not in service.capabilities:
        raise RequestError(f"think: {service.name} does not support thinking", "think")


def _format(form: Any) -> dict[str, Any] | None:
    if form in (None, ""):
        return None
    if form == "json":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"schema": form}}


def _message(message: Mapping[str, Any], i: int) -> dict[str, Any]:
    """A message as OpenAI's API has it."""
    if message.get("images"):
        raise RequestError(f"messages[{i}] has images, and this model reads text", "messages")
    found: dict[str, Any] = {"role": message.get("role"), "content": message.get("content") or ""}
    calls = message.get("tool_calls")
    if calls:
        found["tool_calls"] = [
            {"id": f"call_{i}_{n}", "type": "function", "function": each.get("function")}
            for n, each in enumerate(calls)
        ]
    if message.get("tool_name"):
        found["name"] = message["tool_name"]
    if message.get("thinking"):
        found["reasoning_content"] = message["thinking"]
    return found


class _Answer:
    """An answer in the making, under the `key` that has its text."""

    def __init__(self, service: Service, body: _Request, key: str) -> None:
        self._model, self._key = body.model or service.name, key
        self._texts: dict[str, str] = {}
        self._calls: list[Any] = []
        self._scored: list[Scored] = []
        self._ended: Ended | None = None

    def _take(self, event: object) -> None:
        if isinstance(event, Ended):
            self._ended = event
        elif isinstance(event, Piece):
            self._texts[event.kind] = self._texts.get(event.kind, "") + event.text
            self._scored += event.logprobs
            if event.call is not None:
                self._calls.append(_call(event.call))

    async def collect(self, job: Job) -> dict[str, Any]:
        """All of it."""
        async for event in job:
            self._take(event)
        texts = self._texts
        said = self._said(texts.get("content", ""), texts.get("reasoning", ""), self._calls)
        return {**self._head(), **said, **self._end(), **_scores(self._scored)}

    async def chunks(self, job: Job) -> AsyncIterator[Any]:
        """Its parts, as they come."""
        async for event in job:
            self._take(event)
            if isinstance(event, Piece):
                text = event.text if event.kind == "content" else ""
                thought = event.text if event.kind == "reasoning" else ""
                calls = [] if event.call is None else [_call(event.call)]
                said = self._said(text, thought, calls)
                yield {**self._head(), **said, "done": False, **_scores(event.logprobs)}
        yield {**self._head(), **self._said("", "", []), **self._end()}

    def loaded(self, body: _Request) -> dict[str, Any]:
        """To who only wants the model loaded, or unloaded: it stays."""
        reason = "unload" if body.keep_alive in (0, "0") else "load"
        return {**self._head(), **self._said("", "", []), "done": True, "done_reason": reason}

    def _head(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": _date(datetime.now(timezone.utc))}

    def _said(self, text: str, thought: str, calls: list[Any]) -> dict[str, Any]:
        more: dict[str, Any] = {"thinking": thought} if thought else {}
        if self._key == "response":
            return {"response": text, **more}
        if calls:
            more["tool_calls"] = calls
        return {"message": {"role": "assistant", "content": text, **more}}

    def _end(self) -> dict[str, Any]:
        timings = self._ended.timings if self._ended else ag.Timings()
        total, first = timings.total, timings.first_token or timings.total
        return {
            "done": True,
            "done_reason": "length" if self._ended and self._ended.reason == "length" else "stop",
            "total_duration": int(total * 1e9),
            "load_duration": 0,
            "prompt_eval_count": timings.reused + timings.evaluated,
            "prompt_eval_duration": int(first * 1e9),
            "eval_count": timings.generated,
            "eval_duration": int((total - first) * 1e9),
        }


def _call(call: Any) -> dict[str, Any]:
    return {"function": {"name": call.name, "arguments": call.arguments}}


def _scores(scored: Any) -> dict[str, Any]:
    return {"logprobs": logprobs_of(scored)["content"]} if scored else {}


def _date(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


# What there is ------------------------------------------------------------------------------------


async def tags(request: Request) -> Response:
    """GET /api/tags."""
    service = service_of(request)
    return streams.answer({"models": _listed(service)})


async def running(request: Request) -> Response:
    """GET /api/ps: all of them, as they share one model."""
    service = service_of(request)
    more = {"expires_at": _NEVER, "size_vram": 0, "context_length": service.model.n_ctx}
    return streams.answer({"models": [{**each, **more} for each in _listed(service)]})


def _listed(service: Service) -> list[dict[str, Any]]:
    base = Path(service.model.path)
    found = [_entry(service, service.name, base, "", None)]
    for each in service.adapters.served.values():
        if each.file.path is not None:
            tag = f"{service.name}:{each.name}"
            found.append(_entry(service, tag, each.file.path, each.file.identity, service.name))
    return found


def _entry(
    service: Service, name: str, path: Path, digest: str, parent: str | None
) -> dict[str, Any]:
    stat = path.stat() if path.exists() else None
    changed = datetime.fromtimestamp(stat.st_mtime if stat else 0, timezone.utc)
    return {
        "name": name,
        "model": name,
        "modified_at": _date(changed),
        "size": stat.st_size if stat else 0,
        "digest": digest,
        "details": _details(service, parent),
    }


def _details(service: Service, parent: str | None) -> dict[str, Any]:
    family = service.model.architecture
    return {
        "parent_model": parent or "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": "",
    }


async def show(request: Request) -> Response:
    """POST /api/show."""
    service = service_of(request)
    body = await fields.read(request, ModelBody)
    whom = service.adapters.asked(body.model or body.name)
    served = None if whom.name is None else service.adapters.served[whom.name]
    parent = None if served is None else service.name
    lines = [f"FROM {service.name}", *([f"ADAPTER {served.file_name}"] if served else [])]
    info = {"general.architecture": service.model.architecture,
            f"{service.model.architecture}.context_length":
                service.model.n_ctx_train or service.model.n_ctx}  # fmt: skip
    if served is not None:
        info["adapter.name"] = served.name
        info["adapter.kind"] = served.kind
        info["adapter.sha256"] = served.file.identity
    return streams.answer(
        {
            "modelfile": "\n".join(lines),
            "parameters": "",
            "template": service.template,
            "details": _details(service, parent),
            "model_info": info,
            "capabilities": service.capabilities,
            "modified_at": _date(datetime.fromtimestamp(service.opened, timezone.utc)),
        }
    )


async def version(_request: Request) -> Response:
    """GET /api/version."""
    return streams.answer({"version": VERSION})


# Embeddings ---------------------------------------------------------------------------------------


class EmbedBody(msgspec.Struct, kw_only=True):
    """Of /api/embed, and of the older /api/embeddings."""

    model: str | None = None
    input: Any = None
    prompt: str | None = None


async def embed(request: Request) -> Response:
    """POST /api/embed."""
    body = await fields.read(request, EmbedBody)
    old = request.url.path.endswith("s")
    asked = EmbeddingRequest(model=body.model, input=body.prompt if old else body.input)
    service = service_of(request)
    if asked.input == []:
        service.adapters.asked(body.model)
        return streams.answer({"model": body.model or service.name, "embeddings": []})
    job = service.start(embedded(service, asked))

    async def collect(job: Job) -> dict[str, Any]:
        (found,) = [event async for event in job if isinstance(event, ag.Embeddings)]
        n = sum(found.n_tokens)
        if old:
            return {"embedding": found.vectors[0].tolist()}
        return {
            "model": body.model or service.name,
            "embeddings": found.vectors.tolist(),
            "prompt_eval_count": n,
        }

    return await streams.whole(request, job, collect)


class PullBody(msgspec.Struct, kw_only=True):
    """Of /api/pull."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None


async def pull(request: Request) -> Response:
    """POST /api/pull: what is served is there already, and nothing else is fetched."""
    service = service_of(request)
    body = await fields.read(request, PullBody)
    service.adapters.asked(body.model or body.name)
    return streams.answer({"status": "success"})


async def elsewhere(_request: Request) -> Response:
    """What makes, copies, publishes or deletes models."""
    raise ForbiddenError(
        "models are neither made nor changed here: alora-gguf serve is given its base and its "
        "adapters, and loads further adapters from --adapters-dir"
    )
