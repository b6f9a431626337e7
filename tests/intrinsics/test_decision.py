"""Which contracts decide, between what, and which are refused by name."""

from __future__ import annotations

import pytest

import alora_gguf as ag
from alora_gguf.intrinsics import Contract
from alora_gguf.intrinsics.decision import Categories

RULE = "  - {type: likelihood, input_path: [%s], categories_to_values: {%s}}\n"


def contract(rules: str, more: str = "response_format: ~") -> Contract:
    return Contract.parse(f"model: ~\n{more}\ntransformations:{rules or ' ~'}\n", "judge.yaml")


def test_one_and_zero_are_yes_and_no() -> None:
    found = Categories.of(contract("\n" + RULE % ("score", '"no": 0.0, "yes": 1.0')))
    assert (found.place, found.names, found.yes) == (("score",), ("no", "yes"), 1)


def test_other_numbers_are_a_choice() -> None:
    for categories in ('"a": 0.0, "b": 0.5, "c": 1.0', '"a": 0.0, "b": 10.0', "1: 0.2, 2: 0.4"):
        found = Categories.of(contract("\n" + RULE % ("", categories)))
        assert (found.place, found.yes) == ((), None)
        assert len(found.names) == categories.count(":")


def test_choices_are_weighed_though_the_contract_does_not() -> None:
    found = Categories.of(contract("", "choices: [low, high]\nresponse_format: ~"))
    assert (found.place, found.names, found.yes) == ((), ("low", "high"), None)
    assert found.contract.needs_logprobs


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("", "found none"),
        ("\n  - {type: nest, input_path: [], field_name: a}\n", "found none"),
        ("\n" + (RULE % ("a", '"x": 1.0')) + RULE % ("b", '"x": 1.0'), "found 2, or one for many"),
        ("\n" + RULE % ("a, null", '"x": 1.0'), "found 1, or one for many places"),
    ],
)
def test_contracts_that_decide_nothing_are_refused_by_name(rules: str, words: str) -> None:
    with pytest.raises(ag.InputError, match=r"^judge\.yaml: its answer is no decision") as caught:
        Categories.of(contract(rules))
    assert words in str(caught.value)
