"""What `run` prints beside JSON lines: CSV, how far it is, and that there is nothing to ask."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from alora_gguf.cli import progress
from alora_gguf.cli.progress import Progress

from tests.support.running import QUESTIONS, Runner, talk


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(monkeypatch, capsys)


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def test_ids_and_values_as_csv(run: Runner) -> None:
    given = (talk(QUESTIONS[0], id="a,b"), talk(QUESTIONS[0]), {"id": 7, "nope": 1})
    found = run("--csv", "--intrinsic", "jailbreak", given=given)
    head, first, second, third = rows(found.out)
    assert (found.status, head) == (1, ["id", "jailbreak"])
    assert (first[0], second[0], third) == ("a,b", "2", ["7", ""])
    assert 0 <= float(first[1]) < 0.5  # of an object with one field the field
    both = ("--csv", "--intrinsic", "jailbreak", "--intrinsic", "answerability")
    head, first = rows(run(*both, given=talk(QUESTIONS[0])).out)
    assert head == ["id", "jailbreak", "answerability"]
    assert set(json.loads(first[2])) == {"answer", "answerable"}
    head, first = rows(run("--csv", "--reply", "--max-tokens", "20", given=talk(QUESTIONS[0])).out)
    assert (head, first[0], "9:30" in first[1]) == (["id", "reply"], "1", True)


def test_no_conversations_are_no_failure_but_said(run: Runner, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    found = run("--intrinsic", "jailbreak", empty)
    assert (found.status, found.out, found.err) == (0, "", f"{empty}: holds no conversations\n")
    assert run("--intrinsic", "jailbreak", "--jsonl").err == "stdin: holds no conversations\n"


def test_answers_that_are_missing_are_said(run: Runner) -> None:
    found = run("--intrinsic", "uncertainty", given=talk(QUESTIONS[0]))
    assert found.status == 0
    assert "1 conversation without an answer at the end, which is what uncertainty is" in found.err
    assert run("--intrinsic", "answerability", given=talk(QUESTIONS[0])).err == ""
    assert (
        "without an answer"
        not in run("--reply", "--intrinsic", "uncertainty", given=talk(QUESTIONS[0])).err
    )


def test_a_refused_line_keeps_its_id(run: Runner) -> None:
    said = b'{"id": 5, "messages": [{"role": "user", "content": "\\ud800"}]}'
    found = run("--intrinsic", "jailbreak", "--jsonl", given=said)
    assert found.lines[0]["id"] == 5
    assert "half of a surrogate pair" in found.lines[0]["error"]


def test_a_model_in_place_of_conversations(run: Runner) -> None:
    found = run("small.gguf")
    assert found.status == 2
    assert found.err.endswith(
        "give --intrinsic NAME, what to ask; or --reply; to talk with a model: alora-gguf chat "
        "small.gguf\n"
    )


def test_how_far_it_is_is_said_now_and_then_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress("Asking", counted=True) as told, Progress("Loading") as other:
        for done in range(1, 41):
            now += 2.0
            told(done, 100)
            other(done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "Asking: 15 of 100, 0.5 a second, 0:02:50 left",
        "Asking: 30 of 100, 0.5 a second, 0:02:20 left",
    ]
