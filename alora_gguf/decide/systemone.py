"""TypeSafe's System One: what a request to `POST /v1/systemone` says, and what is answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from alora_gguf.errors import AloraError, FieldError
from alora_gguf.options import IntrinsicCall

from .answers import Answer, ChoiceAnswer, Decision, FailedAnswer, PredicateAnswer, ScoreAnswer
from .questions import Content, Question, read_questions
from .state import state_messages

_IMAGES: Final = ("assets", "images", "files", "videos")


@dataclass(frozen=True, slots=True)
class SystemOneRequest:
    """What is asked: a model's name or None, the state, and the questions by their ids."""

    model: str | None
    state: Content
    questions: Mapping[str, Question | IntrinsicCall]


def systemone_request(body: object) -> SystemOneRequest:
    """A request's body, parsed as JSON. Fields at its top that are not known are passed over.

    A question has, besides what System One says, `adapter`, `scale` and `temperature`; or it is
    `{"intrinsic": name, "arguments": {...}}`. Raises FieldError.
    """
    if not isinstance(body, Mapping):
        raise FieldError((), "expected an object with state and questions")
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise FieldError(("model",), "is no text, expected a model's name")
    for name in ("state", "questions"):
        if body.get(name) is None:
            raise FieldError((name,), "is missing")
    for name in _IMAGES:
        if body.get(name):
            raise FieldError((name,), "is not supported: the model reads text alone")
    state_messages(body["state"])
    return SystemOneRequest(model, body["state"], read_questions(body["questions"]))


def systemone_response(decision: Decision, model: str) -> dict[str, Any]:
    """The body of an answer; what System One does not have begins with `x_`."""
    usage = decision.usage
    return {
        "model": model,
        "answers": {name: _answer(each) for name, each in decision.answers.items()},
        "usage": {"input_tokens": usage.read + usage.reused, "output_tokens": usage.written},
        "x_usage": asdict(usage),
        "x_timings": asdict(decision.timings),
    }


def _answer(answer: Answer) -> dict[str, Any]:
    said: dict[str, Any]
    if isinstance(answer, PredicateAnswer):
        said = {"noul": answer.probability}
    elif isinstance(answer, ChoiceAnswer):
        said = {
            "choice": _label(answer.choice),
            "probabilities": {_label(name): p for name, p in answer.probabilities.items()},
            "confidence": answer.confidence,
        }
    elif isinstance(answer, ScoreAnswer):
        said = {
            "score": answer.score,
            "legend": {str(i): level for i, level in enumerate(answer.legend)},
            "probabilities": {str(i): p for i, p in enumerate(answer.probabilities)},
            "confidence": answer.confidence,
        }
    else:
        said = {"x_error": _said(answer)}
    return {"type": answer.type, **said, "x_timings": asdict(answer.timings)}


def _label(name: object) -> str:
    return name if isinstance(name, str) else json.dumps(name)


def _said(answer: FailedAnswer) -> dict[str, str]:
    return {"code": answer.error.code, "message": str(answer.error)}


def systemone_error(error: AloraError) -> dict[str, Any]:
    """The body of an error: of a FieldError as of a 422, which names the field; of any other one
    with its code.
    """
    if isinstance(error, FieldError):
        kind = "missing" if error.missing else "value_error"
        return {
            "detail": [{"loc": ["body", *error.path], "msg": str(error), "type": kind}],
        }
    return {"detail": {"error_type": error.code, "message": str(error)}}
