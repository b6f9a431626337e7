"""POST /v1/completions: OpenAI's, on prompts as they are, without a chat template."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

import alora_gguf as ag

from . import fields, streams
from .chat import n_of
from .errors import RequestError
from .fields import Sampled
from .service import Service, service_of
from .talk import Ended, Piece, Prompts, Scored, complete, now, timings_of, usage_of
from .work import Job

_MAX_TOKENS: Final = 16  # of a completion whose request sets no limit, as in OpenAI's API
_MAX_LOGPROBS: Final = 20
MAX_PROMPTS: Final = 256
"""Prompts of one request, each of which is read and answered by itself."""


class CompletionRequest(Sampled, kw_only=True):
    """The fields that are read; further ones are passed over."""

    prompt: Any = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None


async def completions(request: Request) -> Response:
    """Answers with a completion, or with its chunks."""
    service = service_of(request)
    body = await fields.read(request, CompletionRequest)
    asked = read_prompts(service, body)
    answer = Completion(service, asked)
    job = service.start(lambda view, job: complete(service.model, view, asked, job))
    if body.stream:
        return await streams.events(request, job, answer.chunks(job, body.include_usage))
    return await streams.whole(request, job, answer.collect)


def read_prompts(service: Service, body: CompletionRequest) -> Prompts:
    """What a completion's request asks. Raises RequestError, InputError, UnknownModelError."""
    n = n_of(body)
    if body.best_of is not None and body.best_of != n:
        raise RequestError(f"best_of is {body.best_of}, expected n or nothing", "best_of")
    if body.logprobs is not None and not 0 <= body.logprobs <= _MAX_LOGPROBS:
        raise RequestError(
            f"logprobs is {body.logprobs}, expected 0 to {_MAX_LOGPROBS}", "logprobs"
        )
    prompts = _prompts(body.prompt)
    scored = bool(body.echo) and body.logprobs is not None
    if body.max_tokens == 0:  # only the prompt's log-probabilities are wanted
        if not scored:
            raise RequestError("max_tokens is 0, expected at least 1, or echo with logprobs",
                               "max_tokens")  # fmt: skip
        body.max_tokens = 1
        scored_only = True
    else:
        scored_only = False
    options = fields.options(body, max_tokens=_MAX_TOKENS, logprobs=body.logprobs)
    if body.suffix and body.echo:
        raise RequestError("suffix and echo cannot be combined", "suffix")
    model = service.model
    tokens = [
        _filled(model, each, body.suffix) if body.suffix else _tokens(model, each)
        for each in prompts
    ]
    return Prompts(
        tokens=tokens,
        texts=[each if isinstance(each, str) else model.detokenize(each) for each in prompts],
        options=options,
        whom=fields.asked(service.adapters, body),
        n=n,
        echo=bool(body.echo),
        scored=scored,
        scored_only=scored_only,
    )


def _prompts(given: Any) -> list[str | list[int]]:
    """Texts or lists of token ids, of which there may be one or several."""
    if given is None or given == []:
        given = ""
    if isinstance(given, str) or (isinstance(given, list) and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list) or len(given) > MAX_PROMPTS:
        raise RequestError(
            f"prompt must be text, token ids, or a list of up to {MAX_PROMPTS} of these", "prompt"
        )
    for i, each in enumerate(given):
        whole = isinstance(each, list) and all(type(token) is int for token in each)
        if not (isinstance(each, str) or whole):
            raise RequestError(f"prompt[{i}] must be text or token ids, got {each!r:.60}", "prompt")
    return given


def _tokens(model: ag.Model, prompt: str | list[int]) -> list[int]:
    tokens = model.tokenize(prompt, add_special=True) if isinstance(prompt, str) else prompt
    return tokens or _nothing(model)


def _nothing(model: ag.Model) -> list[int]:
    """What a text begins with that follows nothing."""
    tokens = model.tokenize("", add_special=True) or list(model.end_tokens[:1])
    if not tokens:
        raise RequestError("prompt is empty, and this vocabulary has no token that begins a text",
                           "prompt")  # fmt: skip
    return tokens


def _filled(model: ag.Model, prompt: str | list[int], suffix: str) -> list[int]:
    if not isinstance(prompt, str):
        raise RequestError("suffix needs a prompt that is text", "prompt")
    return model.infill(prompt, suffix)


class Completion:
    """An answer in the making: OpenAI's completion, or its chunks."""

    def __init__(self, service: Service, asked: Prompts) -> None:
        self._asked = asked
        name = service.model_name(asked.whom)
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion",
                      "created": now(), "model": name}  # fmt: skip
        self._texts: dict[int, str] = {}
        self._scored: dict[int, list[Scored]] = {}
        self._ended: dict[int, Ended] = {}

    def _take(self, event: object) -> None:
        if isinstance(event, Piece):
            self._texts[event.index] = self._texts.get(event.index, "") + event.text
            self._scored.setdefault(event.index, []).extend(event.logprobs)
        elif isinstance(event, Ended):
            self._ended[event.index] = event

    async def collect(self, job: Job) -> dict[str, Any]:
        """All of it."""
        async for event in job:
            self._take(event)
        choices = [
            self._choice(index, self._texts.get(index, ""), self._scored.get(index, []), 0)
            | {"finish_reason": self._ended[index].reason}
            for index in sorted(self._ended)
        ]
        return {**self._head, "choices": choices, **self._end()}

    def _choice(self, index: int, text: str, scored: Sequence[Scored], at: int) -> dict[str, Any]:
        wanted = self._asked.options.logprobs is not None
        return {
            "index": index,
            "text": text,
            "logprobs": _lists(scored, at) if wanted else None,
            "finish_reason": None,
        }

    def _end(self) -> dict[str, Any]:
        n = self._asked.n
        timings = [self._ended[index].timings for index in sorted(self._ended)]
        # of each prompt once, and of all replies
        parts = [usage_of(timings[i : i + n]) for i in range(0, len(timings), n)]
        usage = {
            name: sum(part[name] for part in parts)
            for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        }
        cached = sum(part["prompt_tokens_details"]["cached_tokens"] for part in parts)
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
        notes = dict.fromkeys(each.reuse_note for each in timings if each.reuse_note)
        return {
            "usage": usage,
            "timings": timings_of(timings),
            "alora": {"reuse_note": "; ".join(notes)},
        }

    async def chunks(self, job: Job, include_usage: bool) -> AsyncIterator[Any]:
        """Its chunks, as they come."""
        told: dict[int, int] = {}  # characters
        async for event in job:
            self._take(event)
            if isinstance(event, Piece):
                at = told.get(event.index, 0)
                told[event.index] = at + len(event.text)
                choice = self._choice(event.index, event.text, event.logprobs, at)
            elif isinstance(event, Ended):
                choice = self._choice(event.index, "", (), 0) | {"finish_reason": event.reason}
            else:
                continue
            yield {**self._head, "choices": [choice]}
        if include_usage:
            yield {**self._head, "choices": [], **self._end()}


def _lists(scored: Sequence[Scored], at: int) -> dict[str, Any]:
    """Log-probabilities as completions have them; the text of the first token begins `at`."""
    found: dict[str, Any] = {
        "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [],
    }  # fmt: skip
    for each in scored:
        found["tokens"].append(each.text)
        found["token_logprobs"].append(each.logprob)
        top = {text: logprob for text, _, logprob in reversed(each.top)}
        found["top_logprobs"].append(
            None if each.logprob is None else {**top, each.text: each.logprob}
        )
        found["text_offset"].append(at)
        at += len(each.text)
    return found
