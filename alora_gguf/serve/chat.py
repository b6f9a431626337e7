"""POST /v1/chat/completions: OpenAI's, with adapters, documents, intrinsics and verdicts."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

import alora_gguf as ag

from . import fields, streams
from .errors import RequestError
from .fields import Sampled
from .service import Service, service_of
from .talk import (
    MAX_REPLIES,
    Answered,
    Ended,
    Piece,
    Read,
    Scored,
    Turn,
    as_calls,
    converse,
    now,
    timings_of,
    usage_of,
)
from .work import Job

MAX_LOGPROBS: Final = 20  # alternatives of a token, as in OpenAI's API
_NOT_TAKEN: Final = ("audio", "function_call", "functions", "web_search_options")
"""Fields that change what a reply is, and that nothing here can do."""


class ChatRequest(Sampled, kw_only=True):
    """The fields that are read; further ones are passed over."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    documents: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    modalities: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    intrinsics: list[Any] | None = None
    verdicts: list[Any] | None = None
    return_progress: bool | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    web_search_options: Any = None


async def chat_completions(request: Request) -> Response:
    """Answers with a chat completion, or with its chunks."""
    service = service_of(request)
    body = await fields.read(request, ChatRequest)
    turn = read_turn(service, body)
    answer = Completion(service.model_name(turn.whom))
    job = service.start(lambda view, job: converse(service.model, view, turn, job))
    if body.stream:
        chunks = answer.chunks(job, body.include_usage, bool(body.return_progress))
        return await streams.events(request, job, chunks)
    return await streams.whole(request, job, answer.collect)


def read_turn(service: Service, body: ChatRequest) -> Turn:
    """What a chat completion's request asks. Raises RequestError, InputError, UnknownModelError."""
    for name in _NOT_TAKEN:
        if getattr(body, name) is not None:
            raise RequestError(f"{name} cannot be used here; leave it out", name)
    if body.modalities not in (None, ["text"]):
        raise RequestError(
            "modalities must be ['text']: this model writes nothing else", "modalities"
        )
    if not body.messages:
        raise RequestError("messages is empty: there is nothing to reply to", "messages")
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs", "top_logprobs")
    if body.max_completion_tokens is not None:
        body.max_tokens = body.max_completion_tokens
    variables = dict(body.chat_template_kwargs or {})
    whom = fields.asked(service.adapters, body, variables.pop("adapter_name", None))
    if body.reasoning_effort is not None and service.template_uses("reasoning_effort"):
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    known = {k: v for k, v in variables.items() if service.template_uses(k)}
    calls = as_calls(body.intrinsics or (), "intrinsics")
    if calls and body.verdicts:
        raise RequestError(
            "intrinsics are answered in place of a reply, verdicts are about one; give one of them",
            "verdicts",
        )
    return Turn(
        messages=[_message(service, each, i) for i, each in enumerate(body.messages)],
        documents=body.documents or (),
        tools=body.tools or (),
        tool_choice=_tool_choice(body.tool_choice),
        several_calls=body.parallel_tool_calls is not False,
        template=known,
        jinja=service.settings.template,
        options=fields.options(body, max_tokens=service.max_tokens, logprobs=_logprobs(body)),
        whom=whom,
        n=n_of(body),
        intrinsics=calls,
        verdicts=as_calls(body.verdicts or (), "verdicts"),
    )


def n_of(body: Sampled) -> int:
    """How many replies are asked for. Raises RequestError."""
    n = 1 if body.n is None else body.n
    if not 1 <= n <= MAX_REPLIES:
        raise RequestError(f"n is {n}, expected 1 to {MAX_REPLIES}", "n")
    return n


def _logprobs(body: ChatRequest) -> int | None:
    if not body.logprobs:
        return None
    n = body.top_logprobs or 0
    if not 0 <= n <= MAX_LOGPROBS:
        raise RequestError(f"top_logprobs is {n}, expected 0 to {MAX_LOGPROBS}", "top_logprobs")
    return n


def _tool_choice(choice: Any) -> str:
    """As Chat.reply() has it: a word, or a tool's name."""
    if isinstance(choice, Mapping):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(choice, str):
            raise RequestError(
                'tool_choice must be a word, or {"type": "function", "function": {"name": ...}}',
                "tool_choice",
            )
    if choice is not None and not isinstance(choice, str):
        raise RequestError(f"tool_choice is {choice!r:.60}, expected text", "tool_choice")
    return choice or "auto"


def _message(service: Service, message: Mapping[str, Any], i: int) -> Mapping[str, Any]:
    """A message with a role that templates know. Raises RequestError for one that none does."""
    role = message.get("role")
    if not isinstance(role, str):
        return message
    try:
        return {**message, "role": ag.Message.known_role(role, service.template, f"messages[{i}]")}
    except ag.InputError as error:
        raise RequestError(str(error), "messages") from error


class Completion:
    """An answer in the making: OpenAI's chat completion, or its chunks."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": now(), "model": model}
        self._texts: dict[int, dict[str, str]] = {}
        self._calls: dict[int, list[ag.ToolCall]] = {}
        self._scored: dict[int, list[Scored]] = {}
        self._reasons: dict[int, str] = {}
        self._timings: list[ag.Timings] = []
        self._answers: list[Answered] = []

    def _take(self, event: object) -> None:
        if isinstance(event, Piece):
            said = self._texts.setdefault(event.index, {})
            said[event.kind] = said.get(event.kind, "") + event.text
            if event.call is not None:
                self._calls.setdefault(event.index, []).append(event.call)
            self._scored.setdefault(event.index, []).extend(event.logprobs)
        elif isinstance(event, Ended):
            self._reasons[event.index] = event.reason
            self._timings.append(event.timings)
        elif isinstance(event, Answered):
            self._answers.append(event)

    async def collect(self, job: Job) -> dict[str, Any]:
        """All of it."""
        async for event in job:
            self._take(event)
        if not self._reasons:
            return self._of_intrinsics()
        choices = [self._choice(index) for index in sorted(self._reasons)]
        return {**self._head, "object": "chat.completion", "choices": choices, **self._end()}

    def _choice(self, index: int) -> dict[str, Any]:
        said, scored = self._texts.get(index, {}), self._scored.get(index)
        message: dict[str, Any] = {"role": "assistant", "content": said.get("content", "")}
        if "reasoning" in said:
            message["reasoning_content"] = said["reasoning"]
        if calls := self._calls.get(index):
            message["content"] = message["content"] or None
            message["tool_calls"] = [_call(each) for each in calls]
        return {
            "index": index,
            "message": {**message, "refusal": None},
            "logprobs": logprobs_of(scored) if scored else None,
            "finish_reason": self._reasons[index],
        }

    def _end(self) -> dict[str, Any]:
        """What stands behind the choices."""
        return {
            "usage": usage_of(self._timings),
            "timings": timings_of(self._timings),
            "alora": self._ours(),
        }

    def _ours(self) -> dict[str, Any]:
        notes = dict.fromkeys(t.reuse_note for t in self._timings if t.reuse_note)
        found: dict[str, Any] = {"reuse_note": "; ".join(notes)}
        if verdicts := [_verdict(each) for each in self._answers]:
            found["verdicts"] = verdicts
        return found

    def _of_intrinsics(self) -> dict[str, Any]:
        """Intrinsics' answers in place of a reply: their values are its content."""
        results = [each.result for each in self._answers]
        values = {each["label"]: each.get("value") for each in results}
        timings = [each.timings for each in self._answers]
        choice = {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": json.dumps(values, ensure_ascii=False),
                "refusal": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": usage_of(timings),
            "timings": timings_of(timings),
            "alora": {"intrinsics": results},
        }

    async def chunks(
        self, job: Job, include_usage: bool, return_progress: bool = False
    ) -> AsyncIterator[Any]:
        """Its chunks, as they come; those of how much is read in llama-server's form."""
        head = {**self._head, "object": "chat.completion.chunk"}
        no_usage = {"usage": None} if include_usage else {}
        begun: set[int] = set()
        async for event in job:
            self._take(event)
            if isinstance(event, Read) and return_progress:
                read = {"total": event.total, "cache": 0, "processed": event.done}
                yield {**head, "choices": [], "prompt_progress": read}
            if isinstance(event, Answered) and event.index is not None:
                said = {"verdicts": [_verdict(event)]}
                yield {**head, "choices": [], "alora": said, **no_usage}
            if not isinstance(event, (Piece, Ended)):
                continue
            delta: dict[str, Any] = {}
            if event.index not in begun:
                begun.add(event.index)
                delta["role"] = "assistant"
            choice: dict[str, Any] = {"index": event.index, "delta": delta, "logprobs": None,
                                      "finish_reason": None}  # fmt: skip
            if isinstance(event, Ended):
                choice["finish_reason"] = event.reason
            elif event.call is not None:
                at = len(self._calls[event.index]) - 1
                delta["tool_calls"] = [{"index": at, **_call(event.call)}]
            else:
                delta["content" if event.kind == "content" else "reasoning_content"] = event.text
                if event.logprobs:
                    choice["logprobs"] = logprobs_of(event.logprobs)
            yield {**head, "choices": [choice], **no_usage}
        if not self._reasons:
            whole = self._of_intrinsics()
            message = whole["choices"][0].pop("message")
            choice = {**whole["choices"][0], "delta": {k: message[k] for k in ("role", "content")}}
            yield {**head, "choices": [choice], "alora": whole["alora"]}
            last = {"usage": whole["usage"], "timings": whole["timings"]}
        else:
            last = self._end()
        if include_usage:
            yield {**head, "choices": [], **last}


def _call(call: ag.ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": arguments_of(call)}
    return {"id": call.id, "type": "function", "function": function}


def arguments_of(call: ag.ToolCall) -> str:
    """A call's arguments as clients have them: JSON text."""
    return json.dumps(call.arguments, ensure_ascii=False)


def logprobs_of(scored: Any) -> dict[str, Any]:
    """Log-probabilities as chat completions have them."""
    return {
        "content": [
            {
                "token": each.text,
                "bytes": list(each.data),
                "logprob": each.logprob,
                "top_logprobs": [
                    {"token": text, "bytes": list(data), "logprob": logprob}
                    for text, data, logprob in each.top
                ],
            }
            for each in scored
        ],
        "refusal": None,
    }


def _verdict(event: Answered) -> dict[str, Any]:
    return {**event.result, "index": event.index}
