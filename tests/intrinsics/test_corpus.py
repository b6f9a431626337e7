"""The corpus has everything that a contract can say, so that the comparison with mellea has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from alora_gguf import demo
from alora_gguf.intrinsics import Contract, load_contract, rewrite, transform
from alora_gguf.intrinsics.contract import OPTIONAL, REQUIRED
from alora_gguf.intrinsics.fields import EXTRA, OUTPUTS, PARAMETERS
from alora_gguf.intrinsics.rules import RULES
from alora_gguf.intrinsics.sentences import PLACES

from .corpus_cases import CORPUS, Case, all_cases

RAW: list[dict[str, Any]] = [
    yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(CORPUS.glob("*.yaml"))
]
ALL_RULES: list[dict[str, Any]] = [rule for raw in RAW for rule in raw["transformations"] or []]


def test_it_is_large_enough() -> None:
    assert len(RAW) >= 16
    assert len(all_cases()) >= 40
    assert {p.stem for p in CORPUS.glob("*.yaml")} == {p.stem for p in CORPUS.glob("*.json")}


def test_every_field_is_used_and_every_required_one_is_null_somewhere() -> None:
    for field in {*REQUIRED, *OPTIONAL} - {"choices"}:  # which mellea has not
        assert any(raw.get(field) is not None for raw in RAW), field
    assert any(raw["model"] is None for raw in RAW)
    assert any(raw["transformations"] is None for raw in RAW)
    assert any(raw["transformations"] == [] for raw in RAW)
    assert any("name" not in raw for raw in RAW)
    for field in ("instruction", "parameters", "sentence_boundaries", "docs_as_message"):
        assert any(field in raw and raw[field] is None for raw in RAW), field
        assert any(field not in raw for raw in RAW), field
    assert {type(raw["response_format"]) for raw in RAW} == {str, dict}


def test_every_value_of_a_choice_is_used() -> None:
    assert {raw.get("docs_as_message") for raw in RAW} == {None, "string", "json", "roles"}
    assert {place for raw in RAW for place in raw.get("sentence_boundaries") or {}} == set(PLACES)
    fields = {f for case in all_cases() for f in case.contract.instruction_fields}
    assert fields >= {"last_message", "requirement", "criteria", "target_role"}


def test_every_rule_and_argument_is_used() -> None:
    assert {rule["type"] for rule in ALL_RULES} == set(RULES)
    for kind, rule in RULES.items():
        required, optional = rule.arguments()
        used = [set(rule) for rule in ALL_RULES if rule["type"] == kind]
        assert set().union(*used) == {"type", *required, *optional}
        for name in optional:
            assert any(name not in fields for fields in used), name
    steps = [step for rule in ALL_RULES for step in rule["input_path"]]
    assert {type(step) for step in steps} == {str, int, type(None)}
    assert any(rule["input_path"] == [] for rule in ALL_RULES)


def test_every_option_of_the_rules_is_used() -> None:
    decoding = [rule for rule in ALL_RULES if rule["type"] == "decode_sentences"]
    assert {key for rule in decoding for key in rule["output_names"]} == set(OUTPUTS)
    sources = {rule["source"] if isinstance(rule["source"], str) else tuple(rule["source"])
               for rule in decoding}  # fmt: skip
    assert sources >= {*PLACES, ("documents",), ("documents", "all_but_last_message")}
    kept = [rule["retained_fields"] for rule in ALL_RULES if rule["type"] == "project"]
    assert {type(fields) for fields in kept} == {list, dict}
    weighed = [rule["categories_to_values"] for rule in ALL_RULES if rule["type"] == "likelihood"]
    assert {type(key) for mapping in weighed for key in mapping} == {str, int}


def test_most_parameters_are_used() -> None:
    parameters = [raw.get("parameters") or {} for raw in RAW]
    used = {name for mapping in parameters for name in mapping}
    extra = {name for mapping in parameters for name in mapping.get("extra_body", {})}
    assert used <= set(PARAMETERS)
    assert extra <= set(EXTRA)
    # what mellea would pass on as it is needs no comparison
    assert used >= {"temperature", "max_completion_tokens", "max_tokens", "stop", "extra_body"}


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.id)
def test_the_tokens_that_were_weighed_are_named(case: Case) -> None:
    request = rewrite(case.contract, case.messages, case.documents, case.raw["arguments"])
    outcome = transform(case.contract, case.raw["content"], case.tokens, request)
    assert bool(outcome.used) <= case.contract.needs_logprobs == request.want_logprobs
    assert all(token in (case.tokens or []) for token in outcome.used)


@pytest.mark.parametrize("name", sorted(demo.adapter_paths()))
def test_the_demo_models_contracts_are_read(name: str) -> None:
    contract = Contract.read(demo.io_yaml_path(name))
    assert contract.name == name
    assert contract.response_format is not None
    assert contract.temperature == 0
    assert contract.max_tokens is not None
    assert not contract.tags_history


JUDGED = {
    "answerability": ("question", "high"),
    "hallucination": ("answer", "high"),
    "jailbreak": ("question", "low"),
    "query_rewrite": ("question", None),
    "uncertainty": ("answer", "high"),
}


@pytest.mark.parametrize("name", sorted(demo.adapter_paths()))
def test_the_demo_models_contracts_say_what_they_judge(name: str) -> None:
    contract = load_contract(demo.adapter_path(name))
    assert (contract.judges, contract.good) == JUDGED[name]
    on_disk = Contract.read(demo.io_yaml_path(name))
    assert replace(contract, source="") == replace(on_disk, source="")
