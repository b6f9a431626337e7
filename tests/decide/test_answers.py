"""From log-probabilities to answers: spellings are summed, places cancel, and confidence is what
TypeSafe defines.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence

import pytest

import alora_gguf as ag
from alora_gguf.decide import Answer, choice_confidence, score_confidence
from alora_gguf.decide.answers import choice_answer, score_answer
from alora_gguf.decide.prompts import Prompt, orders
from alora_gguf.decide.readout import FLOOR, averaged, schema, weigh


def spread(n: int, most: float) -> list[float]:
    return [most, *[(1 - most) / (n - 1)] * (n - 1)]


# The values that TypeSafe publishes, to two decimals.


@pytest.mark.parametrize(
    ("n", "most", "published"), [(3, 0.61, 0.42), (4, 0.40, 0.20), (5, 0.74, 0.67), (3, 0.84, 0.76)]
)
def test_the_confidence_of_a_choice_is_typesafes(n: int, most: float, published: float) -> None:
    assert choice_confidence(spread(n, most)) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize(
    ("probabilities", "published"),
    [
        ([0.95, 0.05], 0.90),
        ([0.0, 0.57, 0.43], 0.35),
        ([0.0, 0.74, 0.26], 0.61),
        ([0.0, 0.91, 0.09], 0.87),
        ([0.0, 0.48, 0.52, 0.0], 0.52),
        ([0.0, 0.0, 0.86, 0.14, 0.0], 0.89),
    ],
)
def test_the_confidence_of_a_score_is_typesafes(
    probabilities: list[float], published: float
) -> None:
    assert score_confidence(probabilities) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("measure", [choice_confidence, score_confidence])
def test_one_option_is_certain_and_an_even_split_is_not(measure: object) -> None:
    assert callable(measure)
    assert measure([1.0]) == 1.0
    assert measure([1.0, 0.0]) == 1.0
    for n in range(2, 11):
        assert measure([1 / n] * n) == pytest.approx(0.0, abs=0.01) or n > 2
        assert 0.0 <= measure([1 / n] * n) <= 1.0


def test_answers_say_what_was_likeliest() -> None:
    found = choice_answer(["a", "b", True], [0.2, 0.5, 0.3], ag.Timings())
    assert (found.choice, dict(found.probabilities)) == ("b", {"a": 0.2, "b": 0.5, True: 0.3})
    scored = score_answer(["low", "mid", "high"], [0.1, 0.1, 0.8], ag.Timings())
    assert scored.score == pytest.approx(1.7)
    assert scored.legend == ("low", "mid", "high")


def test_a_decision_is_json() -> None:
    answers: dict[str, Answer] = {
        "sure": ag.PredicateAnswer(0.25),
        "team": choice_answer(["a", True], [0.75, 0.25], ag.Timings()),
        "mood": score_answer(["low", {"is": "high"}], [0.5, 0.5], ag.Timings()),
        "broken": ag.FailedAnswer(ag.OutputError("no number")),
    }
    found = ag.Decision(answers, ag.Usage(read=7), ag.Timings(reused=3))
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (said["usage"]["read"], said["timings"]["reused"]) == (7, 3)
    assert all(each.pop("timings")["total"] == 0 for each in said["answers"].values())
    assert said["answers"] == {
        "sure": {"type": "noul", "probability": 0.25},
        "team": {
            "type": "choice", "choice": "a", "probabilities": {"a": 0.75, "true": 0.25},
            "confidence": 0.5,
        },
        "mood": {
            "type": "score", "score": 0.5, "legend": ["low", {"is": "high"}],
            "probabilities": [0.5, 0.5], "confidence": 0.0,
        },
        "broken": {"type": "error", "error": "no number"},
    }  # fmt: skip


def test_of_equals_the_choice_does_not_depend_on_the_order() -> None:
    for names in (["a", "b"], ["b", "a"]):
        assert choice_answer(names, [0.5, 0.5], ag.Timings()).choice == "a"


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_what_places_add_cancels(n: int) -> None:
    """For logits of the form s(option) + b(place), exactly."""
    chance = random.Random(n)
    said, adds = ([chance.gauss(0, 2) for _ in range(n)] for _ in range(2))
    read = []
    for order in orders(n):
        logits = [said[i] + adds[place] for place, i in enumerate(order)]
        total = math.log(sum(map(math.exp, logits)))
        read.append((Prompt("", (), order), [each - total for each in logits]))
    even = math.fsum(map(math.exp, said))
    assert averaged(read, n, 1.0) == pytest.approx([math.exp(s) / even for s in said])


def test_a_temperature_divides_log_probabilities() -> None:
    read = [(Prompt("", (), (0, 1)), [math.log(0.9), math.log(0.1)])]
    assert averaged(read, 2, 2.0) == pytest.approx([0.75, 0.25])
    assert averaged(read, 2, 1e3) == pytest.approx([0.5, 0.5], abs=0.01)


def test_what_was_not_seen_is_very_unlikely_and_not_impossible() -> None:
    read = [(Prompt("", (), (0, 1)), [0.0, -math.inf])]
    assert averaged(read, 2, 1.0)[1] == pytest.approx(math.exp(FLOOR))


# Spellings ----------------------------------------------------------------------------------------


def top(*choices: tuple[str, float]) -> tuple[ag.TopLogprob, ...]:
    return tuple(ag.TopLogprob(i, text, math.log(p)) for i, (text, p) in enumerate(choices))


def exp(logprobs: Sequence[float]) -> list[float]:
    return [math.exp(each) for each in logprobs]


def test_a_blank_before_a_label_counts_for_it() -> None:
    prompt = Prompt("", ("A", "B"), (0, 1))
    found, unread = weigh(prompt, {(): top(("A", 0.3), (" B", 0.4), (" A", 0.1), ("B", 0.2))})
    assert exp(found) == pytest.approx([0.4, 0.6])
    assert unread == []
    assert schema(prompt.labels)["enum"] == ["A", " A", "B", " B"]


def test_a_label_of_several_tokens_is_read_on() -> None:
    prompt = Prompt("", ("AA", "AB", "BA", "BB"), (0, 1, 2, 3))
    begun = {(): top(("A", 0.6), ("BA", 0.2), (" ", 0.2))}
    found, unread = weigh(prompt, begun)
    assert unread == [(0,), (2,)]
    assert exp(found) == [0.0, 0.0, pytest.approx(0.2), 0.0]
    further = {
        (0,): top(("A", 0.25), ("B", 0.75)),
        (2,): top(("AA", 0.5), ("B", 0.5)),
        (2, 1): top(("A", 0.5), ("B", 0.5)),
    }
    assert weigh(prompt, begun | {path: further[path] for path in ((0,), (2,))})[1] == [(2, 1)]
    found, unread = weigh(prompt, begun | further)
    assert exp(found) == pytest.approx([0.25, 0.45, 0.25, 0.05])
    assert unread == []


def test_what_begins_one_label_alone_is_that_label() -> None:
    prompt = Prompt("", ("Yes", "No"), (0, 1))
    found, unread = weigh(prompt, {(): top(("Y", 0.3), ("No", 0.6), (" Ye", 0.1))})
    assert exp(found) == pytest.approx([0.4, 0.6])
    assert unread == []


def test_what_hardly_counts_is_not_read() -> None:
    prompt = Prompt("", ("AA", "AB"), (0, 1))
    assert weigh(prompt, {(): top(("AA", 0.5), ("AB", 0.4995), ("A", 0.0005))})[1] == []
