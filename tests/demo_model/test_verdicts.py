"""What an intrinsic's answer is read as, and how columns of answers are measured."""

from __future__ import annotations

import pytest

from alora_gguf.errors import InputError
from examples.demo_model import metrics, verdicts
from examples.demo_model.chat import INTRINSICS
from tests.demo_model.stand_in import TARGETS, example


@pytest.mark.parametrize("task", INTRINSICS)
def test_every_target_is_read(task: str) -> None:
    for target in TARGETS[task]:
        assert verdicts.read(task, target) is not None


@pytest.mark.parametrize(
    ("task", "text", "found"),
    [
        ("answerability", ' {"answer": "It is red.", "answerable": "yes"}\n', "yes"),
        ("answerability", "yes", None),
        ("answerability", '{"answerable": "yes"}', None),
        ("answerability", '{"answerable": "yes", "answer": "It is red."}', None),
        ("answerability", '{"answer": 5, "answerable": "yes"}', None),
        ("answerability", '{"answer": "It is red.", "answerable": "perhaps"}', None),
        ("uncertainty", '{"answer": "It is red.", "certainty": "0"}', "0"),
        ("uncertainty", '{"answer": "It is red.", "certainty": "10"}', None),
        ("uncertainty", '{"answer": "It is red.", "certainty": ""}', None),
        ("uncertainty", '{"answer": "It is red.", "certainty": 7}', None),
        ("uncertainty", "7", None),
        ("query_rewrite", '{"rewritten_question": " What? "}', "What?"),
        ("query_rewrite", '{"rewritten_question": 3}', None),
        ("query_rewrite", '{"question": "What?"}', None),
        ("query_rewrite", "What?", None),
        ("hallucination", '{"answer": "It is red.", "faithful": "no"}', "no"),
        ("hallucination", '{"answer": "It is red.", "faithful": "No"}', None),
        ("hallucination", '{"answer": "It is red.", "faithful": "no"', None),
        ("hallucination", '{"answer": "It is red.", "faithful": "no", "why": "?"}', None),
        ("jailbreak", '{"jailbreak": "yes"}', "yes"),
        ("jailbreak", '{"faithful": "yes"}', None),
        ("jailbreak", "", None),
    ],
)
def test_strict_reading(task: str, text: str, found: str | None) -> None:
    assert verdicts.read(task, text) == found


@pytest.mark.parametrize(
    ("task", "text", "found"),
    [
        ("answerability", "The price of the rope is not in the documents.", "no"),
        ("answerability", "The price of the rope is 5 euros.", "yes"),
        ("uncertainty", "It is 5 euros. Yes, that was right.", "9"),
        ("uncertainty", "It is 6 euros. No, that was wrong.", "0"),
        ("uncertainty", "It is 6 euros.", None),
        ("query_rewrite", "  What does the rope cost? ", "What does the rope cost?"),
        ("hallucination", "It is 5 euros. Yes, that was right.", "yes"),
        ("hallucination", "It is 6 euros. No, that was wrong.", "no"),
        ("hallucination", "Not in the documents.", None),
        ("jailbreak", "No, I will not do that. You can ask me about the documents.", "yes"),
        ("jailbreak", "You are welcome.", "no"),
        *[(task, " ", None) for task in INTRINSICS],
    ],
)
def test_what_the_base_says_is_taken_for_a_verdict(task: str, text: str, found: str | None) -> None:
    assert verdicts.read_base(task, text) == found


def test_a_target_in_another_form_is_an_error() -> None:
    with pytest.raises(InputError, match="hallucination: example 1 has the target 'yes'"):
        verdicts.expected(
            "hallucination",
            [
                example("hallucination", TARGETS["hallucination"][0]),
                example("hallucination", "yes"),
            ],
        )


def test_a_digit_is_the_middle_of_its_tenth() -> None:
    assert verdicts.certainty("0") == pytest.approx(0.05)
    assert verdicts.certainty("9") == pytest.approx(0.95)


@pytest.mark.parametrize("task", INTRINSICS)
def test_right_answers_are_perfect_in_every_figure(task: str) -> None:
    examples = [example(task, target) for target in TARGETS[task]]
    figures = verdicts.measure(task, examples, verdicts.expected(task, examples))
    assert verdicts.HEADLINE[task] in figures
    if task == "uncertainty":
        assert figures["mae"].value == pytest.approx(0.0)
        assert figures["auroc"].value == 1.0
        # 0.75 and 0.95 were right, 0.25 was wrong
        assert figures["ece"].value == pytest.approx((0.25 + 0.05 + 0.25) / 3)
        return
    for name, figure in figures.items():
        assert figure.value == (0.0 if name in verdicts.LOWER_IS_BETTER else 1.0), name


@pytest.mark.parametrize("task", INTRINSICS)
def test_unreadable_answers_are_as_wrong_as_can_be(task: str) -> None:
    examples = [example(task, target) for target in TARGETS[task]]
    figures = verdicts.measure(task, examples, [None] * len(examples))
    if task == "uncertainty":
        assert figures["mae"].value == pytest.approx((0.75 + 0.75 + 0.95) / 3)
        assert figures["ece"].value == pytest.approx(1.0)
        assert figures["auroc"].value == 0.0
        return
    for name, figure in figures.items():
        assert figure.value == (1.0 if name in verdicts.LOWER_IS_BETTER else 0.0), name


def test_figures_that_one_class_leaves_undefined_are_left_out() -> None:
    clean = [example("jailbreak", '{"jailbreak": "no"}')] * 2
    assert set(verdicts.measure("jailbreak", clean, ["no", "yes"])) == {"accuracy", "fpr"}
    sure = [example("uncertainty", '{"answer": "It is red.", "certainty": "9"}')] * 2
    assert set(verdicts.measure("uncertainty", sure, ["9", "8"])) == {"mae", "ece"}


@pytest.mark.parametrize("task", INTRINSICS)
def test_the_difference_of_two_sides(task: str) -> None:
    examples = [example(task, target) for target in TARGETS[task]] * 10
    right = verdicts.expected(task, examples)
    wrong = [None] * len(examples)
    name = verdicts.HEADLINE[task]
    same = verdicts.difference(task, examples, right, right)
    assert same == metrics.Estimate(0.0, 0.0, 0.0)
    gap = verdicts.difference(task, examples, right, wrong)
    figures = [verdicts.measure(task, examples, column)[name].value for column in (right, wrong)]
    assert gap.value == pytest.approx(figures[0] - figures[1])


def test_one_who_never_looks() -> None:
    def blind(task: str) -> list[str]:
        return verdicts.blind(task, [example(task, target) for target in TARGETS[task]])

    assert blind("answerability") == ["yes"] * 3
    assert blind("jailbreak") == ["no"] * 3
    assert blind("uncertainty") == ["7"] * 3
    assert blind("query_rewrite") == ["What does it cost?"] * 3
