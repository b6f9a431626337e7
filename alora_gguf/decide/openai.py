"""OpenAI's Decisions: what a request to `POST /v1/decisions` says, and what is answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from alora_gguf.errors import FieldError
from alora_gguf.messages import Message
from alora_gguf.options import IntrinsicCall

from .answers import Answer, ChoiceAnswer, Decision, PredicateAnswer, ScoreAnswer
from .questions import (
    MAX_OPTIONS,
    MAX_QUESTIONS,
    Choice,
    Predicate,
    Question,
    Score,
    check_known,
    content_text,
    kind_of,
    made,
    read_question,
)

_Path = tuple[str | int, ...]
_ROLES: Final = {
    "user": "user", "assistant": "assistant", "system": "system", "developer": "system"
}  # fmt: skip
_TYPES: Final = ("predicate", "choice", "score", "intrinsic")
_OURS: Final = ("adapter", "scale", "temperature")
_FIELDS: Final = {
    "predicate": ("type", "instructions", "name", *_OURS),
    "choice": ("type", "instructions", "name", "choices", *_OURS),
    "score": ("type", "instructions", "name", "levels", *_OURS),
    "intrinsic": ("type", "intrinsic", "arguments", "name", "scale"),
}


@dataclass(frozen=True, slots=True)
class OpenAIRequest:
    """What is asked: a model's name or None, the input as messages, and the questions by their
    places, "0" for the first; with the names that they were given, and the labels of scores.
    """

    model: str | None
    messages: tuple[Message, ...]
    questions: Mapping[str, Question | IntrinsicCall]
    names: tuple[str | None, ...]
    labels: Mapping[str, tuple[str, ...]]

    @property
    def state(self) -> list[dict[str, str]]:
        """The messages as Model.decide() takes them."""
        return [{"role": each.role, "content": each.content} for each in self.messages]


def openai_request(body: object) -> OpenAIRequest:
    """A request's body, parsed as JSON. Fields at its top that are not known are passed over. A
    question has, besides what OpenAI says, `adapter`, `scale` and `temperature`, or the type
    "intrinsic" with `intrinsic`, its name, and `arguments`. Raises FieldError.
    """
    if not isinstance(body, Mapping):
        raise FieldError((), "expected an object with input and questions")
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise FieldError(("model",), "is no text, expected a model's name")
    for name in ("input", "questions"):
        if body.get(name) is None:
            raise FieldError((name,), "is missing")
    asked = body["questions"]
    if not isinstance(asked, (list, tuple)) or not 1 <= len(asked) <= MAX_QUESTIONS:
        raise FieldError(("questions",), f"expected an array of 1 to {MAX_QUESTIONS} questions")
    questions, labels = dict[str, Question | IntrinsicCall](), dict[str, tuple[str, ...]]()
    for i, each in enumerate(asked):
        questions[str(i)] = _question(each, ("questions", i))
        if each["type"] == "score":
            labels[str(i)] = tuple(level["label"] for level in each["levels"])
    names = tuple(each.get("name") for each in asked)
    return OpenAIRequest(model, _messages(body["input"]), questions, names, labels)


# The input ---------------------------------------------------------------------------------------


def _messages(given: object) -> tuple[Message, ...]:
    """Turns of one speaker in a row are one turn, which any template takes."""
    if isinstance(given, str):
        if not given.strip():
            raise FieldError(("input",), "is empty, expected what the questions are about")
        return (Message("user", content_text(given, "input")),)
    if not isinstance(given, (list, tuple)) or not given:
        raise FieldError(("input",), "expected text, or an array of messages that is not empty")
    turns: list[Message] = []
    calls: dict[str, str] = {}
    for i, item in enumerate(given):
        turn = _turn(item, ("input", i), calls)
        if turns and turns[-1].role == turn.role:
            turn = Message(turn.role, f"{turns.pop().content}\n\n{turn.content}")
        turns.append(turn)
    return tuple(turns)


def _turn(item: object, path: _Path, calls: dict[str, str]) -> Message:
    if not isinstance(item, Mapping):
        raise FieldError(path, "expected an object with role and content")
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise FieldError((*path, "role"), f"is {role!r:.40}, expected {', '.join(_ROLES)}")
        text = _text(item.get("content"), (*path, "content"))
        return Message(_ROLES[role], text)
    if kind in ("function_call", "custom_tool_call"):
        said = {"name": _string(item, "name", path)}
        key = "arguments" if kind == "function_call" else "input"
        said[key] = _string(item, key, path)
        calls[_string(item, "call_id", path)] = said["name"]
        return Message("assistant", json.dumps(said, ensure_ascii=False))
    if kind in ("function_call_output", "custom_tool_call_output"):
        call = _string(item, "call_id", path)
        if call not in calls:
            raise FieldError((*path, "call_id"), f"is {call!r:.40}, which no call before it has")
        output = _text(item.get("output"), (*path, "output"))
        return Message("user", f"Result of {calls[call]}: {output}")
    raise FieldError((*path, "type"), f"is {kind!r:.40}, expected a message, a call or its output")


def _string(item: Mapping[str, Any], name: str, path: _Path) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise FieldError((*path, name), "is missing" if value is None else "expected text")
    return content_text(value, *path, name)


def _text(content: object, path: _Path) -> str:
    """Text, or parts of it and of JSON."""
    if isinstance(content, str):
        return content_text(content, *path)
    if not isinstance(content, (list, tuple)):
        problem = "is missing" if content is None else "expected text or an array of parts"
        raise FieldError(path, problem)
    return "\n".join(_part(part, (*path, i)) for i, part in enumerate(content))


def _part(part: object, path: _Path) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or not isinstance(kind, str):
        raise FieldError(path, "expected an object with a type")
    if kind in ("input_text", "output_text"):
        return _string(part, "text", path)
    if kind == "refusal":
        return _string(part, "refusal", path)
    if kind == "input_json":
        data = part.get("data")
        if isinstance(data, (Mapping, list, tuple)):
            return content_text(data, *path, "data")
        raise FieldError((*path, "data"), "expected an object or an array")
    problem = "is not supported: the model reads text alone" if kind == "input_image" else ""
    raise FieldError(
        (*path, "type"), problem or f"is {kind!r:.40}, expected input_text, input_json"
    )


# The questions -----------------------------------------------------------------------------------


def _question(given: object, path: _Path) -> Question | IntrinsicCall:
    if not isinstance(given, Mapping):
        example = '{"type": "predicate", "instructions": "Is it urgent?"}'
        raise FieldError(path, f"is {kind_of(given)}, expected a question such as {example}")
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise FieldError((*path, "type"), f"is {kind!r:.40}, expected {', '.join(_TYPES)}")
    name = given.get("name")
    if name is not None and not isinstance(name, str):
        raise FieldError((*path, "name"), "expected text")
    check_known(given, _FIELDS[kind], *path)
    if kind == "intrinsic":
        _string(given, "intrinsic", path)
        return read_question({k: v for k, v in given.items() if k not in ("type", "name")}, path)
    instructions = _text(given.get("instructions"), (*path, "instructions"))
    ours = {each: given[each] for each in _OURS if given.get(each) is not None}
    make: Callable[[], Any]  # of one kind or another
    if kind == "predicate":
        make = lambda: Predicate(instructions, **ours)  # noqa: E731
    elif kind == "choice":
        choices = _choices(given.get("choices"), (*path, "choices"))
        make = lambda: Choice(instructions, options=choices, **ours)  # noqa: E731
    else:
        levels = _levels(given.get("levels"), (*path, "levels"))
        make = lambda: Score(instructions, levels=levels, **ours)  # noqa: E731
    found: Any = made(path, make, {"choice": ["choices"], "score": ["levels"]}.get(kind, []))
    return found  # type: ignore[no-any-return]


def _choices(given: object, path: _Path) -> dict[str | bool, str | None]:
    if not isinstance(given, (list, tuple)) or not 2 <= len(given) <= MAX_OPTIONS:
        raise FieldError(path, f"expected an array of 2 to {MAX_OPTIONS} choices")
    found = dict[str | bool, str | None]()
    for i, choice in enumerate(given):
        where = (*path, i)
        value = choice.get("value") if isinstance(choice, Mapping) else None
        if not isinstance(choice, Mapping) or not isinstance(value, (str, bool)):
            raise FieldError((*where, "value"), "expected text or a boolean")
        if value in found:
            raise FieldError((*where, "value"), "is there twice, expected each once")
        found[value] = _description(choice, where)
    return found


def _levels(given: object, path: _Path) -> list[str]:
    if not isinstance(given, (list, tuple)):
        raise FieldError(path, "expected an array of levels, lowest first")
    found = []
    for i, level in enumerate(given):
        where = (*path, i)
        if not isinstance(level, Mapping):
            raise FieldError(where, "expected an object with a label")
        label, description = _string(level, "label", where), _description(level, where)
        found.append(label if description is None else f"{label}: {description}")
    return found


def _description(given: Mapping[str, Any], path: _Path) -> str | None:
    return None if given.get("description") is None else _string(given, "description", path)


# The answer --------------------------------------------------------------------------------------


def openai_response(request: OpenAIRequest, decision: Decision, model: str) -> dict[str, Any]:
    """The body of an answer. A question that got none is a refusal, whose `error` says why."""
    usage = decision.usage
    n = usage.read + usage.reused
    return {
        "model": model,
        "answers": [
            {
                **_answer(decision[str(i)], request.labels.get(str(i), ())),
                "name": name,
            }
            for i, name in enumerate(request.names)
        ],
        "usage": {
            "input_tokens": n,
            "input_tokens_details": {
                "cached_tokens": usage.reused, "cache_write_tokens": usage.kept
            },
            "output_tokens": usage.written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": n + usage.written,
        },
        "timings": asdict(decision.timings),
    }  # fmt: skip


def _answer(answer: Answer, labels: Sequence[str]) -> dict[str, Any]:
    if isinstance(answer, PredicateAnswer):
        return {"type": "predicate", "probability": answer.probability}
    if isinstance(answer, ChoiceAnswer):
        pairs = [{"value": _value(v), "probability": p} for v, p in answer.probabilities.items()]
        chosen = _value(answer.choice)
        return {
            "type": "choice", "choice": chosen, "confidence": answer.confidence,
            "probabilities": pairs,
        }  # fmt: skip
    if isinstance(answer, ScoreAnswer):
        levels = enumerate(zip(labels, answer.probabilities, strict=True))
        pairs = [{"value": i, "label": label, "probability": p} for i, (label, p) in levels]
        return {
            "type": "score", "score": answer.score, "confidence": answer.confidence,
            "probabilities": pairs,
        }  # fmt: skip
    return {"type": "refusal", "error": {"code": answer.error.code, "message": str(answer.error)}}


def _value(value: object) -> str | bool:
    return value if isinstance(value, (str, bool)) else json.dumps(value)
