"""Clients that ask typed questions: jevcompat's suite, TypeSafe's client, OpenAI's, Ollama's."""

from __future__ import annotations

from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.serve import Server
from tests.support.serving import open_demo, serving

from .conftest import package

STATE = "Customer: my parcel is three weeks late and nobody answers. I want my money back today!"
QUESTIONS: dict[str, Any] = {
    "urgent": {"type": "noul", "instructions": "Is it urgent?"},
    "topic": {
        "type": "choice",
        "instructions": "What is it about?",
        "criteria": {"delivery": "a parcel", "invoice": None, "praise": None},
    },
    "anger": {"type": "score", "instructions": "How angry is it?",
              "criteria": ["calm", "annoyed", "furious"]},
}  # fmt: skip


def results(only: set[str] | None = None, **settings: Any) -> Any:
    """What jevcompat says of a server whose cache has room for a question of 255 options."""
    runner = package("jevcompat.runner")
    with serving(lambda: open_demo(n_ctx=16_384), **settings) as server:
        return runner.run(server.url, key=settings.get("api_key"), only=only)


def test_jevcompat() -> None:
    """Every MUST and every SHOULD: those about keys with one, those about none without."""
    keyed, open_ = results({"auth"}, api_key="secret"), results()
    status = {}
    for report in (keyed, open_):
        assert not report.case_errors
        assert not report.inconclusive
        for each in report.results:
            found = [finding.message for finding in each.findings]
            assert each.status != "fail", (each.id, found)
            if status.get(each.id) != "pass":
                status[each.id] = each.status
    assert set(status.values()) == {"pass"}, status


@pytest.fixture(scope="module")
def wanted(model: ag.Model) -> ag.Decision:
    return model.decide(STATE, QUESTIONS)


def test_typesafe(server: Server, wanted: ag.Decision) -> None:
    typesafe = package("typesafe_sdk")
    client = typesafe.TypeSafeClient(api_key="any", base_url=server.url)
    got = client.system_one(
        state=STATE,
        questions={
            "urgent": typesafe.Noul(instructions="Is it urgent?"),
            "topic": typesafe.Choice(
                instructions="What is it about?", criteria=QUESTIONS["topic"]["criteria"]
            ),
            "anger": typesafe.Score(
                instructions="How angry is it?", criteria=QUESTIONS["anger"]["criteria"]
            ),
        },
    )
    same(got.answers["urgent"].noul, got.answers["topic"].probabilities,
         [got.answers["anger"].probabilities[i] for i in range(3)], wanted)  # fmt: skip


def test_openai(server: Server, wanted: ag.Decision) -> None:
    client = package("openai").OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    topics = [{"value": "delivery", "description": "a parcel"}, {"value": "invoice"},
              {"value": "praise"}]  # fmt: skip
    levels = [{"label": level} for level in QUESTIONS["anger"]["criteria"]]
    got = client.decisions.create(
        model="demo",
        input=STATE,
        questions=[
            {"type": "predicate", "instructions": "Is it urgent?", "name": "urgent"},
            {"type": "choice", "instructions": "What is it about?", "choices": topics},
            {"type": "score", "instructions": "How angry is it?", "levels": levels},
        ],
    )
    urgent, topic, anger = got.answers
    same(urgent.probability, {each.value: each.probability for each in topic.probabilities},
         [each.probability for each in anger.probabilities], wanted)  # fmt: skip
    assert got.usage.total_tokens == got.usage.input_tokens + got.usage.output_tokens


def test_ollama(server: Server, wanted: ag.Decision) -> None:
    client = package("ollama").Client(host=server.url)
    got = client.systemone(model="demo", state=STATE, questions=QUESTIONS)
    same(got.answers["urgent"].noul, got.answers["topic"].probabilities,
         [got.answers["anger"].probabilities[str(i)] for i in range(3)], wanted)  # fmt: skip


def same(urgent: float, topic: Any, anger: list[float], wanted: ag.Decision) -> None:
    answers: Any = wanted
    assert urgent == pytest.approx(answers["urgent"].probability, abs=1e-2)
    assert dict(topic) == pytest.approx(dict(answers["topic"].probabilities), abs=1e-2)
    assert anger == pytest.approx(list(answers["anger"].probabilities), abs=1e-2)
