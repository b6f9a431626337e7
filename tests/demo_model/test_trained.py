"""The shipped files, asked anew: are they as good as results.json says?

Fails where they are missing or other ones: what is shipped and what is told must go together.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from alora_gguf import Model
from examples.demo_model import metrics, report, runtime, tasks, verdicts
from examples.demo_model.chat import INTRINSICS
from examples.demo_model.runtime import SHIPPED, Files, Models
from examples.demo_model.tables import Results

pytestmark = pytest.mark.slow

N = 50
Z95, Z999 = 1.96, 3.2905  # the normal distribution's 97.5 % and 99.95 % points
# the figure of each intrinsic that is a share of examples, whose spread is the binomial one
SHARES = {
    "answerability": "accuracy",
    "query_rewrite": "exact_match",
    "hallucination": "accuracy",
    "jailbreak": "accuracy",
}
SIDES = ("alora", "lora")


@pytest.fixture(scope="module")
def results() -> Results:
    return Results.read(Path(runtime.EXAMPLE) / "results.json")


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    files = Files.shipped()
    with Models(files.bases[SHIPPED], files.adapters(), os.cpu_count() or 1) as opened:
        yield opened


def _ask(task: str, model: Model, prompt: str) -> dict[str, str]:
    return runtime.ask(model, task, prompt)


@pytest.fixture(scope="module")
def answers(models: Models) -> dict[str, dict[str, list[str | None]]]:
    """What the adapters answer, by intrinsic and side."""
    found = {}
    for task in INTRINSICS:
        prompts = [example.prompt for example in tasks.examples(task, "eval", N)]
        texts = models.map(functools.partial(_ask, task), prompts)
        found[task] = {
            side: [runtime.read(side, task, text[side]) for text in texts] for side in SIDES
        }
    return found


def test_the_pages_tell_of_these_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("task", SHARES)
def test_as_often_right_as_reported(
    results: Results, answers: dict[str, dict[str, list[str | None]]], task: str, side: str
) -> None:
    told = results.figure(task, side, SHARES[task])
    share = metrics.Estimate(told.value, told.low, told.high)
    fewest, most = metrics.plausible_counts(share, N)
    truth = verdicts.expected(task, tasks.examples(task, "eval", N))
    right = sum(a == b for a, b in zip(truth, answers[task][side], strict=True))
    assert fewest <= right <= most, f"{right} of {N} right; reported {told}"


@pytest.mark.parametrize("side", SIDES)
def test_as_certain_as_reported(
    results: Results, answers: dict[str, dict[str, list[str | None]]], side: str
) -> None:
    told = results.figure("uncertainty", side, "mae")
    examples = tasks.examples("uncertainty", "eval", N)
    assert len(examples) == N
    targets, given = verdicts.certainty_columns(examples, answers["uncertainty"][side])
    errors = np.abs(targets - given)
    # Large errors are few, and few examples may have none: the spread is that of all of them.
    spread = (told.high - told.low) / (2 * Z95) * math.sqrt(results.n)
    margin = Z999 * spread / math.sqrt(N)
    assert abs(errors.mean() - told.value) <= margin, f"{errors.mean():.3f}; reported {told}"


@pytest.mark.parametrize("task", INTRINSICS)
def test_every_answer_is_the_promised_json(
    answers: dict[str, dict[str, list[str | None]]], task: str
) -> None:
    assert sum(answer is None for answer in answers[task]["alora"]) <= 1


@pytest.mark.parametrize("questions", ["answerable", "unanswerable"])
def test_the_base_is_as_good_as_reported(results: Results, models: Models, questions: str) -> None:
    row = next(
        row
        for row in results.found["replies"]
        if (row["base"], row["sampling"], row["questions"]) == (SHIPPED, "greedy", questions)
    )
    asked = [
        question
        for question in tasks.questions("eval", 4 * N)
        if (question.value is not None) == (questions == "answerable")
    ][:N]
    told = models.map(lambda model, question: runtime.reply(model, question, 0)[0], asked)
    right = sum(question.is_right(text) for question, text in zip(asked, told, strict=True))
    fewest, most = metrics.plausible_counts(metrics.Estimate(**row["right"]), len(asked))
    assert fewest <= right <= most, f"{right} of {len(asked)} right; reported {row['right']}"
