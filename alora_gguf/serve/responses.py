"""POST /v1/responses: OpenAI's, without state: each request brings its whole conversation."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

import alora_gguf as ag

from . import fields, streams
from .chat import ChatRequest, arguments_of, logprobs_of, read_turn
from .errors import RequestError
from .service import service_of
from .talk import Answered, Ended, Piece, Turn, converse, now, timings_of, usage_of
from .work import Job

_NOT_TAKEN: Final = {
    "previous_response_id": "nothing is stored here; send the whole conversation as input",
    "conversation": "nothing is stored here; send the whole conversation as input",
    "background": "nothing is stored here; wait for the answer",
    "prompt": "no prompts are stored here; send instructions and input",
}
_TEXTS: Final = ("input_text", "output_text", "text")


class ResponseRequest(msgspec.Struct, kw_only=True):
    """The fields that are read; further ones are passed over."""

    model: str | None = None
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    stream: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    documents: list[Any] | None = None
    verdicts: list[Any] | None = None
    adapter: str | None = None
    adapter_id: str | None = None
    lora: list[dict[str, Any]] | None = None
    steer: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    top_k: int | None = None
    min_p: float | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    prompt: Any = None


async def responses(request: Request) -> Response:
    """Answers with a response, or with its events."""
    service = service_of(request)
    body = await fields.read(request, ResponseRequest)
    for name, why in _NOT_TAKEN.items():
        if getattr(body, name):
            raise RequestError(f"{name} cannot be used: {why}", name)
    turn = read_turn(service, _as_chat(body))
    answer = _Answer(service.model_name(turn.whom), body, turn)
    job = service.start(lambda view, job: converse(service.model, view, turn, job))
    if body.stream:
        return await streams.events(request, job, answer.events(job), done=None)
    return await streams.whole(request, job, answer.collect)


def _as_chat(body: ResponseRequest) -> ChatRequest:
    """The chat completion that asks the same."""
    messages = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else []
    if isinstance(body.input, list):
        for i, item in enumerate(body.input):
            _add(messages, item, f"input[{i}]")
    if body.instructions is not None:
        messages.insert(0, {"role": "system", "content": body.instructions})
    same = (
        "model", "temperature", "top_p", "top_logprobs", "documents", "verdicts", "adapter",
        "adapter_id", "lora", "steer", "chat_template_kwargs", "seed", "stop", "top_k", "min_p",
    )  # fmt: skip
    return ChatRequest(
        messages=messages,
        max_completion_tokens=body.max_output_tokens,
        logprobs=_wants_logprobs(body),
        response_format=_format((body.text or {}).get("format")),
        reasoning_effort=(body.reasoning or {}).get("effort"),
        tools=None if body.tools is None else [_tool(t, i) for i, t in enumerate(body.tools)],
        tool_choice=_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        **{name: getattr(body, name) for name in same},
    )


def _wants_logprobs(body: ResponseRequest) -> bool:
    return "message.output_text.logprobs" in (body.include or ()) or bool(body.top_logprobs)


def _add(messages: list[dict[str, Any]], item: Mapping[str, Any], what: str) -> None:
    """Adds an item of the input to a chat's messages. Raises RequestError."""
    kind = item.get("type", "message")
    if kind == "reasoning":
        return  # of a turn that is over
    if kind == "message":
        messages.append({"role": item.get("role"), "content": _text(item.get("content"), what)})
    elif kind == "function_call":
        call = {
            "id": item.get("call_id"),
            "type": "function",
            "function": {"name": item.get("name"), "arguments": item.get("arguments")},
        }
        last = messages[-1] if messages else {}
        if last.get("role") == "assistant" and not last.get("content"):
            last["tool_calls"].append(call)
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        messages.append(
            {
                "role": "tool",
                "tool_call_id": item.get("call_id"),
                "content": _text(item.get("output"), what),
            }
        )
    else:
        raise RequestError(f"{what}: its type is {kind!r}, which cannot be used here", "input")


def _text(content: object, what: str) -> object:
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        text = (
            part.get("text") if isinstance(part, Mapping) and part.get("type") in _TEXTS else None
        )
        if not isinstance(text, str):
            raise RequestError(f"{what}: its content has a part that is not text", "input")
        texts.append(text)
    return "".join(texts)


def _format(form: Any) -> dict[str, Any] | None:
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": form}
    return form if isinstance(form, dict) else None


def _tool(tool: Mapping[str, Any], i: int) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise RequestError(f"tools[{i}]: its type is {tool.get('type')!r}, expected 'function'",
                           "tools")  # fmt: skip
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def _choice(choice: Any) -> Any:
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


class _Item:
    """One item of the output, in the making."""

    def __init__(self, kind: str, at: int) -> None:
        self.at, self.text = at, ""
        self.logprobs: list[Any] = []
        short = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        self.body: dict[str, Any] = {"id": f"{short}_{uuid.uuid4().hex}", "type": kind,
                                     "status": "in_progress"}  # fmt: skip
        self.kind = kind
        if kind == "message":
            self.body |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            self.body |= {"summary": [], "content": []}

    @property
    def part(self) -> dict[str, Any]:
        """Its content so far."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [],
                "logprobs": self.logprobs}  # fmt: skip

    def done(self) -> dict[str, Any]:
        """The whole of it."""
        self.body["status"] = "completed"
        if self.kind != "function_call":
            self.body["content"] = [self.part]
        return self.body


class _Answer:
    """A response in the making."""

    def __init__(self, model: str, body: ResponseRequest, turn: Turn) -> None:
        options = turn.options
        self._head = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": now(),
            "model": model,
            "instructions": body.instructions,
            "metadata": body.metadata or {},
            "parallel_tool_calls": bool(body.parallel_tool_calls),
            "temperature": options.sampling.temperature,
            "top_p": options.sampling.top_p,
            "max_output_tokens": options.max_tokens,
            "tools": body.tools or [],
            "tool_choice": body.tool_choice or "auto",
            "text": body.text or {"format": {"type": "text"}},
            "store": False,
            "previous_response_id": None,
            "error": None,
            "incomplete_details": None,
        }
        self._items: list[_Item] = []
        self._verdicts: list[Mapping[str, Any]] = []
        self._ended: Ended | None = None
        self._number = 0

    async def collect(self, job: Job) -> dict[str, Any]:
        """All of it."""
        async for event in job:
            self._take(event)
        return self._whole()

    def _take(self, event: object) -> None:
        if isinstance(event, Ended):
            self._ended = event
        elif isinstance(event, Answered):
            self._verdicts.append(event.result)
        elif isinstance(event, Piece):
            kind = {"content": "message", "reasoning": "reasoning"}.get(event.kind, "function_call")
            if kind == "function_call" or not self._items or self._items[-1].kind != kind:
                self._items.append(_Item(kind, len(self._items)))
            item = self._items[-1]
            item.text += event.text
            if event.call is not None:
                item.body |= {"call_id": event.call.id, "name": event.call.name,
                              "arguments": arguments_of(event.call)}  # fmt: skip
            if event.logprobs:
                item.logprobs += logprobs_of(event.logprobs)["content"]

    def _whole(self) -> dict[str, Any]:
        timings = self._ended.timings if self._ended else ag.Timings()
        usage = usage_of([timings])
        cut = self._ended is not None and self._ended.reason == "length"
        return {
            **self._head,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [item.done() for item in self._items],
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
            "timings": timings_of([timings]),
            "alora": {"reuse_note": timings.reuse_note, "verdicts": self._verdicts},
        }

    # Streamed ------------------------------------------------------------------------------------

    async def events(self, job: Job) -> AsyncIterator[Any]:
        """Its events, as they come."""
        begun = {**self._head, "status": "in_progress", "output": [], "usage": None}
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        async for event in job:
            before = len(self._items)
            self._take(event)
            if not isinstance(event, Piece):
                continue
            if len(self._items) > before:
                for each in self._close(self._items[before - 1 : before] if before else ()):
                    yield each
                for each in self._open(self._items[-1]):
                    yield each
            for each in self._delta(self._items[-1], event):
                yield each
        for each in self._close(self._items[-1:]):
            yield each
        whole = self._whole()
        kind = "response.incomplete" if whole["incomplete_details"] else "response.completed"
        yield self._event(kind, response=whole)

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **more}

    def _open(self, item: _Item) -> list[dict[str, Any]]:
        found = [
            self._event("response.output_item.added", output_index=item.at, item=dict(item.body))
        ]
        if item.kind != "function_call":
            part = {**item.part, "text": ""}
            found.append(self._event("response.content_part.added", part=part, **_place(item)))
        return found

    def _delta(self, item: _Item, event: Piece) -> list[dict[str, Any]]:
        if item.kind == "function_call":
            return [
                self._event(
                    "response.function_call_arguments.delta",
                    item_id=item.body["id"],
                    output_index=item.at,
                    delta=item.body["arguments"],
                )
            ]
        if item.kind == "reasoning":
            return [self._event("response.reasoning_text.delta", delta=event.text, **_place(item))]
        scored = logprobs_of(event.logprobs)["content"] if event.logprobs else []
        return [
            self._event(
                "response.output_text.delta", delta=event.text, logprobs=scored, **_place(item)
            )
        ]

    def _close(self, items: Sequence[_Item]) -> list[dict[str, Any]]:
        found = []
        for item in items:
            if item.kind == "function_call":
                found.append(
                    self._event(
                        "response.function_call_arguments.done",
                        item_id=item.body["id"],
                        output_index=item.at,
                        name=item.body["name"],
                        arguments=item.body["arguments"],
                    )
                )
            else:
                kind = "reasoning_text" if item.kind == "reasoning" else "output_text"
                more = {"logprobs": item.logprobs} if kind == "output_text" else {}
                found += [
                    self._event(f"response.{kind}.done", text=item.text, **more, **_place(item)),
                    self._event("response.content_part.done", part=item.part, **_place(item)),
                ]
            done = item.done()
            found.append(self._event("response.output_item.done", output_index=item.at, item=done))
        return found


def _place(item: _Item) -> dict[str, Any]:
    return {"item_id": item.body["id"], "output_index": item.at, "content_index": 0}
