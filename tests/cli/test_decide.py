"""`alora-gguf decide`: a state and questions go in as JSON, and probabilities come out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from alora_gguf import Model, cli, demo

QUESTIONS: dict[str, Any] = {
    "urgent": {"type": "noul", "instructions": "Is it urgent?"},
    "team": {"type": "choice", "instructions": "Which?", "criteria": {"Sales": None, "Help": "x"}},
    "attack": {"intrinsic": "jailbreak"},
    "adapted": {"type": "noul", "instructions": "Is it urgent?", "adapter": "uncertainty"},
}
STATE = "I was charged twice."


class Decide:
    """Runs the command; `file` writes what it reads."""

    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._capsys = tmp_path, capsys

    def file(self, name: str, value: Any) -> str:
        path = self._folder / name
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return str(path)

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        status = cli.run(["decide", *arguments])
        shown = self._capsys.readouterr()
        return status, shown.out, shown.err


@pytest.fixture
def decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Decide:
    return Decide(tmp_path, capsys)


def test_text_and_questions_are_answered_as_in_python(decide: Decide) -> None:
    status, out, err = decide(
        decide.file("state.txt", STATE),
        "--questions",
        decide.file("q.json", QUESTIONS),
        "-c",
        "512",
    )
    assert (status, err) == (0, "")
    found = json.loads(out)
    paths = {name: demo.adapter_path(name) for name in ("jailbreak", "uncertainty")}
    with Model(demo.base_path(), adapters=paths, n_threads=1, n_ctx=512, n_seq_max=64) as model:
        wanted = model.decide(STATE, QUESTIONS)
    answers = found["answers"]
    assert list(answers) == list(QUESTIONS)
    assert answers["team"]["probabilities"] == pytest.approx(wanted["team"].probabilities, abs=0.02)
    for name in ("urgent", "attack", "adapted"):
        assert answers[name]["noul"] == pytest.approx(wanted[name].probability, abs=0.02)
    assert found["model"] == "base"
    assert found["usage"]["input_tokens"] == wanted.usage.read


def test_a_whole_request_comes_through_a_pipe(
    decide: Decide, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"state": {"a": [1]}, "questions": {"q": QUESTIONS["urgent"]}, "model": "jev-latest"}
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(body).encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    status, out, _ = decide("-c", "256", "--orders", "1")
    assert status == 0
    assert 0 < json.loads(out)["answers"]["q"]["noul"] < 1


def test_an_openai_request_gets_openais_answer(decide: Decide) -> None:
    body = {
        "input": STATE,
        "questions": [{"type": "predicate", "name": "u", "instructions": "Is it urgent?"}],
    }
    status, out, _ = decide(decide.file("body.json", body), "-c", "256")
    assert status == 0
    (answer,) = json.loads(out)["answers"]
    assert (answer["type"], answer["name"]) == ("predicate", "u")


@pytest.mark.parametrize(
    ("state", "questions", "words"),
    [
        ('{"a": ', QUESTIONS, "state: is not JSON"),
        (STATE, "[1", "q: is not JSON"),
        (STATE, {"u": {"type": "noul"}}, "q: questions.u.instructions is missing"),
        (STATE, {"u": {"intrinsic": "jailbrake"}}, "the demo model has no adapter 'jailbrake'"),
        (STATE, {"u": {"intrinsic": "query_rewrite"}}, "questions.u is an intrinsic whose answer"),
        (" ", QUESTIONS, "state: state is empty, expected"),
        ({"state": "x"}, None, "state: questions is missing"),
        ({"input": "x", "questions": []}, None, "state: questions: expected an array"),
        (STATE, None, "state: is not JSON"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    decide: Decide, state: Any, questions: Any, words: str
) -> None:
    more = () if questions is None else ("--questions", decide.file("q", questions))
    status, out, err = decide(decide.file("state", state), "-c", "256", *more)
    assert (status, out) == (1, "")
    assert words in err
    assert err.startswith("Error: ")


def test_a_question_without_an_answer_is_status_1(
    decide: Decide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alora_gguf.chat.asking.MAX_TOKENS", 1)
    monkeypatch.setattr("alora_gguf.intrinsics.contract.Contract.max_tokens", 1)
    state = decide.file("state", STATE)
    asked = {"q": {"intrinsic": "answerability"}, "u": QUESTIONS["urgent"]}
    status, out, err = decide(state, "--questions", decide.file("q", asked), "-c", "256")
    assert status == 1
    assert "1 of 2 questions got no answer" in err
    answers = json.loads(out)["answers"]
    assert answers["q"]["x_error"]["code"] == "output"
    assert "noul" in answers["u"]


def test_stdin_can_be_one_of_the_two_only(decide: Decide) -> None:
    status, _, err = decide("-", "--questions", "-")
    assert status == 2
    assert "cannot both be stdin" in err
