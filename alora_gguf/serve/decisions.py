"""POST /v1/systemone and /v1/decisions: typed questions about one state, in TypeSafe's format and
in OpenAI's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

import alora_gguf as ag
from alora_gguf import decide

from . import fields, streams
from .adapters import Asked, View
from .service import service_of
from .work import Job

ALIAS: Final = "jev-"
"""What names of TypeSafe's own models begin with: its clients send them to any server."""


async def systemone(request: Request) -> Response:
    """Answers in TypeSafe's format."""
    asked = decide.systemone_request(await fields.read_json(request))
    model = None if (asked.model or "").startswith(ALIAS) else asked.model
    return await _decided(request, model, asked.state, asked.questions, decide.systemone_response)


async def decisions(request: Request) -> Response:
    """Answers in OpenAI's format."""
    asked = decide.openai_request(await fields.read_json(request))

    def said(decision: ag.Decision, model: str) -> dict[str, Any]:
        return decide.openai_response(asked, decision, model)

    return await _decided(request, asked.model, asked.state, asked.questions, said)


async def _decided(
    request: Request,
    model: str | None,
    state: Any,
    questions: Mapping[str, Any],
    said: Callable[[ag.Decision, str], dict[str, Any]],
) -> Response:
    service = service_of(request)
    whom = service.adapters.asked(model)

    def work(view: View, job: Job) -> None:
        known = {name: _loaded(each, whom, view) for name, each in questions.items()}
        decision = service.model.decide(
            state, known, template=service.settings.template, cancel=job.cancel
        )
        for answer in decision.answers.values():
            if isinstance(answer, ag.FailedAnswer):
                answer.error.args = (service.shown(view.shown(str(answer.error))),)
        job.tell(decision)

    async def collect(job: Job) -> dict[str, Any]:
        (decision,) = [each async for each in job if isinstance(each, ag.Decision)]
        return said(decision, service.model_name(whom))

    return await streams.whole(request, service.start(work), collect)


def _loaded(question: Any, whom: Asked, view: View) -> Any:
    """A question to whom it names, or else to whom the request does, as the model calls them."""
    if isinstance(question, ag.IntrinsicCall):
        return replace(question, name=view.loaded(question.name))
    if question.adapter is not None:
        return replace(question, adapter=view.loaded(question.adapter))
    if (by := view.computed_by(whom)) is not None:
        return replace(question, adapter=by)
    return question
