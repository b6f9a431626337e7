"""POST /v1/systemone and /v1/decisions answer as Model.decide()."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from alora_gguf.serve import Server
from tests.support.serving import open_exact, serving

STATE = "Customer: my parcel is three weeks late and nobody answers. I want my money back today!"
QUESTIONS: dict[str, Any] = {
    "urgent": {"type": "noul", "instructions": "Is it urgent?"},
    "topic": {"type": "choice", "instructions": "What is it about?",
              "criteria": {"delivery": "a parcel", "invoice": None, "praise": None}},
    "anger": {"type": "score", "instructions": "How angry?", "criteria": ["calm", "furious"]},
    "attack": {"intrinsic": "jailbreak"},
    "adapted": {"type": "noul", "instructions": "Is it urgent?", "adapter": "answerability"},
}  # fmt: skip
NEAR = 0.01


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(open_exact) as server:
        yield server


def ask(client: httpx.Client, **changes: Any) -> Any:
    body = {"state": STATE, "questions": QUESTIONS} | changes
    answer = client.post("/v1/systemone", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_system_one(client: httpx.Client) -> None:
    with open_exact() as model:
        wanted: Any = model.decide(STATE, QUESTIONS)
    got = ask(client)
    answers = got["answers"]
    assert [*answers] == [*QUESTIONS]
    assert got["model"] == "demo"
    for name in ("urgent", "attack", "adapted"):
        assert answers[name]["noul"] == pytest.approx(wanted[name].probability, abs=NEAR)
    assert answers["topic"]["probabilities"] == pytest.approx(
        dict(wanted["topic"].probabilities), abs=NEAR
    )
    assert answers["anger"]["score"] == pytest.approx(wanted["anger"].score, abs=2 * NEAR)
    again = ask(client)
    assert again["x_usage"]["reused"] >= again["usage"]["input_tokens"] // 10


def test_openais(client: httpx.Client) -> None:
    body = {
        "model": "demo",
        "input": STATE,
        "questions": [
            {"type": "predicate", "instructions": "Is it urgent?", "name": "urgent"},
            {"type": "intrinsic", "intrinsic": "jailbreak"},
        ],
    }
    urgent, attack = client.post("/v1/decisions", json=body).json()["answers"]
    mine = ask(client)["answers"]
    assert (urgent["type"], urgent["name"]) == ("predicate", "urgent")
    assert urgent["probability"] == pytest.approx(mine["urgent"]["noul"], abs=NEAR)
    assert attack["probability"] == pytest.approx(mine["attack"]["noul"], abs=NEAR)


def test_a_model_may_be_an_adapter_or_a_name_of_typesafes(client: httpx.Client) -> None:
    urgent = {"questions": {"urgent": QUESTIONS["urgent"]}}
    by_adapter = ask(client, model="demo:answerability", **urgent)
    assert by_adapter["model"] == "demo:answerability"
    assert by_adapter["answers"]["urgent"]["noul"] == pytest.approx(
        ask(client)["answers"]["adapted"]["noul"], abs=NEAR
    )
    assert ask(client, model="jev-latest", **urgent)["model"] == "demo"


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"state": None}, 422, "state"),
        ({"questions": {}}, 422, "questions"),
        ({"questions": {"a": {"type": "noul", "instructions": ""}}}, 422, "questions.a"),
        ({"questions": {"a": {"type": "boolean"}}}, 422, "questions.a.type"),
        ({"questions": {"a": {"type": "choice", "instructions": "?", "criteria": {}}}}, 422,
         "questions.a.criteria"),
        ({"questions": {"a": {**QUESTIONS["urgent"], "adapter": "nobody"}}}, 404, "nobody"),
        ({"questions": {"a": {"intrinsic": "query_rewrite"}}}, 422, "questions.a is an"),
        ({"model": "nobody"}, 404, "nobody"),
    ],
)  # fmt: skip
def test_a_question_that_is_wrong(
    client: httpx.Client, changes: dict[str, Any], status: int, says: str
) -> None:
    body = {"state": STATE, "questions": QUESTIONS} | changes
    answer = client.post("/v1/systemone", json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, list if status == 422 and "loc" in answer.text else dict)
    if "questions" in changes:
        named = client.post("/v1/decisions", json={"input": STATE, "questions": [{"type": "x"}]})
        assert named.status_code == 400
        assert named.json()["error"]["param"] == "questions.0.type"


def test_a_full_cache_is_waited_for() -> None:
    """Six at a time that find room for two; and one for which there never is any."""
    with (
        serving(lambda: open_exact(n_ctx=1024), n_parallel=6) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
        ThreadPoolExecutor(6) as pool,
    ):
        states = [f"{i} " + STATE * 12 for i in range(6)]

        def urgent(state: str) -> float:
            got = ask(client, state=state, questions={"urgent": QUESTIONS["urgent"]})
            return float(got["answers"]["urgent"]["noul"])

        wanted = list(map(urgent, states))
        assert list(pool.map(urgent, states * 2)) == pytest.approx(wanted * 2, abs=NEAR)
        body = {"state": STATE * 60, "questions": QUESTIONS}
        answer = client.post("/v1/systemone", json=body)
        assert answer.status_code == 422
        assert answer.json()["detail"]["error_type"] == "context_length_exceeded"
        assert server.service.model.cache_report().promised == 0


def test_the_models_own_words(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()
    assert "decisions" in listed["data"][0]["architecture"]["output_modalities"]
    assert all({"name", "description", "release_date"} <= set(each) for each in listed["models"])
