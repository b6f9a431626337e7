"""docs/intrinsics.md names what there is, and its examples are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alora_gguf.errors import ContractError
from alora_gguf.intrinsics import Contract
from alora_gguf.intrinsics.contract import OPTIONAL, REQUIRED
from alora_gguf.intrinsics.fields import EXTRA, OUTPUTS, PARAMETERS
from alora_gguf.intrinsics.rules import RULES
from alora_gguf.intrinsics.sentences import PLACES

PAGE = (Path(__file__).parents[2] / "docs" / "intrinsics.md").read_text(encoding="utf-8")


def test_the_example_is_a_contract() -> None:
    example, words = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    contract = Contract.parse(example)
    assert contract.name == "citations"
    assert len(contract.transformations) == 3
    assert Contract.parse(words).choices == ("yes", "no")


def test_the_message_is_one_that_is_given() -> None:
    (message,) = re.findall(r"```\n(io\.yaml:.*)\n```", PAGE)
    text = "\n" * 12 + "transformations:\n  - {type: nest, input_path: score, field_name: a}\n"
    with pytest.raises(ContractError) as caught:
        Contract.parse(f"{text}model: ~\nresponse_format: ~\n")
    assert str(caught.value) == message


def test_everything_is_named() -> None:
    arguments = [name for rule in RULES.values() for names in rule.arguments() for name in names]
    names = [*REQUIRED, *OPTIONAL, *RULES, *arguments, *PARAMETERS, *EXTRA, *PLACES, *OUTPUTS]
    assert [name for name in names if f"`{name}`" not in PAGE] == []
