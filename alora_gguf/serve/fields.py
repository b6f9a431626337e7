"""What requests of several doors have in common: reading a body, and sampling options by the names
that clients give them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import Request

import alora_gguf as ag

from .adapters import Adapters, Asked
from .errors import RequestError

_S = TypeVar("_S", bound=msgspec.Struct)
_PATH: Final = re.compile(r" - at `\$\.?(.*)`$")
_MISSING: Final = re.compile(r"missing required field `(\w+)`")
MAX_DEPTH: Final = 100  # of arrays and objects in each other: what reads them afterwards recurses

_SAMPLING: Final = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_penalty", "frequency_penalty",
    "presence_penalty", "repeat_last_n", "grammar",
)  # fmt: skip


class Sampled(msgspec.Struct, kw_only=True):
    """What OpenAI's, llama-server's and vLLM's requests say of how text is generated, and whom they
    ask.
    """

    model: str | None = None
    adapter: str | None = None
    adapter_id: str | None = None
    lora: list[dict[str, Any]] | None = None
    steer: Any = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_last_n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    grammar: str | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_choice: list[str] | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool((self.stream_options or {}).get("include_usage"))


async def read(request: Request, kind: type[_S]) -> _S:
    """A request's body as a record. Raises RequestError, which names the field that is wrong."""
    return convert(await read_json(request), kind)


async def read_json(request: Request) -> Any:
    """A request's body. Raises RequestError if it is no JSON."""
    try:
        body = msgspec.json.decode(await request.body())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    _check_depth(body)
    return body


def convert(body: Any, kind: type[_S]) -> _S:
    """A body as a record. Raises RequestError, which names the field that is wrong."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        text = str(error)
        found = _PATH.search(text)
        field = found[1] if found else None
        text = text[: found.start()] if found else text
        if missing := _MISSING.search(text):
            field, text = ".".join(filter(None, (field, missing[1]))), "is missing"
        raise RequestError(f"{field}: {text}" if field else text, field) from None


def _check_depth(body: Any) -> None:
    level = [body]
    for _ in range(MAX_DEPTH):
        level = [
            part
            for each in level
            for part in (each.values() if isinstance(each, dict) else each)
            if isinstance(part, (dict, list))
        ]
        if not level:
            return
    raise RequestError(f"the body has more than {MAX_DEPTH} arrays and objects in each other")


def asked(adapters: Adapters, body: Sampled, adapter_name: object = None) -> Asked:
    """Whom a request asks."""
    names = (body.model, body.adapter, body.adapter_id, body.lora, adapter_name)
    return adapters.asked(*names, steer=body.steer)


def options(body: Sampled, *, max_tokens: int, logprobs: int | None) -> ag.GenerateOptions:
    """How a request's text is generated; `max_tokens` is the limit where it has none. Raises
    InputError, RequestError.
    """
    sampling: dict[str, Any] = {}
    for name in _SAMPLING:
        value = getattr(body, name)
        if value is not None and value != "":
            sampling[name] = value
    if body.repetition_penalty is not None:  # vLLM's name
        sampling["repeat_penalty"] = body.repetition_penalty
    if body.seed is not None and body.seed != -1:  # llama-server's word for a new one
        sampling["seed"] = body.seed % 2**32  # OpenAI's seeds have 64 bits
    if body.logit_bias:
        sampling["logit_bias"] = _biases(body.logit_bias)
    return ag.GenerateOptions(
        max_tokens=max_tokens if body.max_tokens is None else body.max_tokens,
        sampling=ag.Sampling(**sampling),
        stop=body.stop or (),
        schema=schema(body),
        logprobs=logprobs,
    )


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    try:
        # OpenAI's -100 bans a token
        return {int(k): float("-inf") if v <= -100 else v for k, v in given.items()}
    except ValueError as error:
        raise RequestError(f"logit_bias: a token is an integer: {error}", "logit_bias") from None


def schema(body: Sampled) -> Mapping[str, Any] | None:
    """The JSON Schema that a request's reply is to match, whichever field has it. Raises
    RequestError for two of them, and for what is not a schema.
    """
    found = {
        "response_format": _of_format(body.response_format),
        "structured_outputs": _of_outputs(body.structured_outputs),
        "guided_json": _as_schema(body.guided_json, "guided_json"),
        "guided_choice": None if body.guided_choice is None else choice(body.guided_choice),
    }
    given = [name for name, value in found.items() if value is not None]
    if len(given) > 1:
        raise RequestError(
            f"{given[0]} and {given[1]} both constrain the reply; give one", given[1]
        )
    if given and body.grammar:
        raise RequestError(f"{given[0]} and grammar both constrain the reply; give one", "grammar")
    return found[given[0]] if given else None


def choice(texts: Sequence[Any]) -> dict[str, Any]:
    """A schema of bare texts."""
    if not texts or not all(isinstance(each, str) and each for each in texts):
        raise RequestError("a choice must be a list of texts", "structured_outputs")
    return {"enum": list(texts), "x-alora": {"form": "text"}}


def _of_format(form: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    name = "response_format"
    kind = None if form is None else form.get("type")
    if form is None or kind == "text":
        return None
    if kind == "json_object":
        inner = form.get("schema")
        return {"type": "object"} if inner is None else _as_schema(inner, f"{name}.schema")
    if kind != "json_schema":
        raise RequestError(
            f"{name}.type is {kind!r}, expected 'text', 'json_object' or 'json_schema'", name
        )
    inner = form.get("json_schema", form)
    inner = inner.get("schema") if isinstance(inner, Mapping) else None
    if inner is None:
        raise RequestError(f"{name}.json_schema has no schema", name)
    return _as_schema(inner, f"{name}.json_schema.schema")


def _of_outputs(given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    name = "structured_outputs"
    said = {key: value for key, value in (given or {}).items() if value is not None}
    wanted = [key for key in said if key in ("json", "choice", "json_object", "regex", "grammar",
                                             "structural_tag")]  # fmt: skip
    if not wanted:
        return None
    if len(wanted) > 1 or wanted[0] in ("regex", "grammar", "structural_tag"):
        raise RequestError(f"{name}.{wanted[-1]} cannot be used here; give json or choice", name)
    if wanted[0] == "choice":
        return choice(said["choice"] if isinstance(said["choice"], list) else [])
    if wanted[0] == "json_object":
        return {"type": "object"} if said["json_object"] else None
    return _as_schema(said["json"], f"{name}.json")


def _as_schema(value: Any, name: str) -> Mapping[str, Any] | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{name} is not JSON: {error}", name) from None
    if isinstance(value, bool) or not isinstance(value, Mapping):
        raise RequestError(f"{name} must be a JSON Schema, an object", name)
    return value
