"""Our tables of PEFT's tuners and their fields, held against the PEFT that is installed."""

from __future__ import annotations

import dataclasses

import pytest
from alora_gguf.convert.peft.fields import HARMLESS, HONOURED, REFUSED
from alora_gguf.convert.peft.tuners import (
    READ_AS_LORA,
    REFUSED_TUNERS,
    TUNER_HARMLESS,
    TUNER_HONOURED,
    TUNER_REFUSED,
)

from alora_gguf.errors import FileFormatError, UnsupportedAdapterError
from tests.support.peft_files import Case

peft = pytest.importorskip("peft")

# of IBM's activated-lora, and of PEFT's after 0.21
_ELSEWHERE = {"invocation_string", "cross_stream"}
TABLES = {
    "LORA": (HONOURED, HARMLESS, frozenset(REFUSED)),
    **{
        tuner: (TUNER_HONOURED[tuner], TUNER_HARMLESS[tuner], frozenset(TUNER_REFUSED[tuner]))
        for tuner in ("VERA", "ADALORA")
    },
}
CONFIGS = {"LORA": "LoraConfig", "VERA": "VeraConfig", "ADALORA": "AdaLoraConfig"}


def fields_of(tuner: str) -> set[str]:
    return {field.name for field in dataclasses.fields(getattr(peft, CONFIGS[tuner]))}


def test_every_tuner_is_read_or_refused_by_name() -> None:
    known = {each.value for each in peft.PeftType}
    assert {*READ_AS_LORA, *REFUSED_TUNERS} == known
    assert not REFUSED_TUNERS.keys() & {*READ_AS_LORA}
    assert {*READ_AS_LORA} == {*CONFIGS}


@pytest.mark.parametrize("tuner", CONFIGS)
def test_every_field_is_in_one_table(tuner: str) -> None:
    honoured, harmless, refused = TABLES[tuner]
    assert fields_of(tuner) == (honoured | harmless | refused) - _ELSEWHERE
    assert not honoured & harmless
    assert not honoured & refused
    assert not harmless & refused


@pytest.mark.parametrize("tuner", sorted(REFUSED_TUNERS))
def test_a_refusal_names_the_tuner_the_reason_and_the_way_out(case: Case, tuner: str) -> None:
    case.config["peft_type"] = tuner
    with pytest.raises(UnsupportedAdapterError) as caught:
        case.convert()
    reason, way_out = REFUSED_TUNERS[tuner]
    assert f'peft_type = "{tuner}" {reason}; {way_out}' in str(caught.value)
    assert not case.out.exists()


@pytest.mark.parametrize("tuner", ["VERA", "ADALORA"])
def test_fields_of_another_tuner_are_refused(case: Case, tuner: str) -> None:
    case.config = {"peft_type": tuner, "task_type": "CAUSAL_LM", "alora_invocation_tokens": [7]}
    with pytest.raises(UnsupportedAdapterError, match=r"alora_invocation_tokens = \[7\] is "):
        case.convert()
    case.config = {"peft_type": tuner, "modules_to_save": ["lm_head"]}
    with pytest.raises(UnsupportedAdapterError, match="modules_to_save"):
        case.convert()


def test_what_pefts_own_conversion_is_recommended_for_supports_it() -> None:
    """save_as_lora() refuses layers that cannot be converted."""
    import importlib

    for tuner, refusal in REFUSED_TUNERS.items():
        if "save_as_lora" not in refusal.way_out:
            continue
        layers = importlib.import_module(f"peft.tuners.{tuner.lower()}.layer")
        own = [
            each
            for each in vars(layers).values()
            if isinstance(each, type)
            and each.__module__ == layers.__name__
            and "supports_lora_conversion" in vars(each)
        ]
        assert own, tuner


def test_projections_that_are_not_saved(case: Case) -> None:
    case.config = {"peft_type": "VERA", "r": 4, "save_projection": False}
    with pytest.raises(UnsupportedAdapterError, match="leaves out vera_A and vera_B, which only"):
        case.convert()


def test_masks_that_are_none(case: Case) -> None:
    case.config = {"peft_type": "ADALORA", "init_r": 4, "rank_pattern": {"a.lora_E": [1, 0]}}
    with pytest.raises(FileFormatError, match="expected module names with lists of true and false"):
        case.convert()
