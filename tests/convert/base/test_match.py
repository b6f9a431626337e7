"""Names of models: which pairs mean two models, and which leave it open."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from alora_gguf.convert.base.match import compare_base, model_name

from tests.support.peft_files import Case


def compared(trained_on: str | None, *names: str) -> str | None:
    base: Any = SimpleNamespace(label="base.gguf", names=names)
    return compare_base(trained_on, cast("Any", base))


# what the adapter says, and what the base calls itself
SAME = [
    ("ibm-granite/granite-3.3-2b-instruct", "Granite 3.3 2b Instruct"),
    ("ibm-granite/granite-3.3-2b-instruct", "granite-3.3-2b-instruct-Q4_K_M.gguf"),
    ("ibm-granite/granite-4.0-micro", "Granite 4 Micro"),
    ("ibm-granite/granite-3.1-1b-a400m-instruct", "Granite 3.1 1b A400M Instruct"),
    ("meta-llama/Llama-3.2-1B-Instruct", "llama3.2:1b"),
    ("meta-llama/Meta-Llama-3.1-8B-Instruct", "Meta Llama 3.1 8B Instruct"),
    ("unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit", "Llama-3.1-8B-Instruct-Q8_0"),
    ("meta-llama/Llama-3.1-8B", "Llama 3.1 8B Instruct"),  # only one of them says which it is
    ("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5 7B Instruct"),
    ("Qwen/Qwen3-30B-A3B", "Qwen3 30B A3B"),
    ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-500m-instruct"),
    ("google/gemma-2-2b-it", "Gemma 2 2b It"),
    ("google/gemma-2-2b-it", "gemma-2-2b-instruct"),
    ("google/gemma-3-4b-it", "gemma3-4b"),
    ("microsoft/Phi-3-mini-4k-instruct", "Phi 3 Mini 3.8B"),
    ("microsoft/Phi-3-mini-4k-instruct", "phi3"),
    ("mistralai/Mistral-7B-Instruct-v0.2", "mistralai_Mistral-7B-Instruct-v0.2"),
    ("mistralai/Mixtral-8x7B-Instruct-v0.1", "Mixtral 8x7B Instruct v0.1"),
    ("allenai/OLMo-2-1124-7B-Instruct", "OLMo 2 7B Instruct"),
    ("openai-community/gpt2", "gpt-2"),
    ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "tinyllama-1b-chat-v1"),
    ("meta-llama/Llama-3.1-8B-Instruct", "llama-3-1-8b-instruct"),
    ("HuggingFaceTB/SmolLM3-3B", "SmolLM3 3B 128k"),
    # nothing is known of one of them
    ("HuggingFaceH4/zephyr-7b-beta", "Mistral 7B Instruct v0.2"),
    ("org/model", "Granite 3.3 2b Instruct"),
    ("ibm-granite/granite-3.3-2b-instruct", "base"),
    ("ibm-granite/granite-3.3-2b-instruct", "3f2504e04f8911d39a0c0305e82c3301"),
    ("/checkpoints/7b/step-1200", "Granite 3.3 2b Instruct"),
    ("./output-8b", "Granite 3.3 2b Instruct"),
]
OTHER = [
    ("ibm-granite/granite-3.3-8b-instruct", "Granite 3.3 2b Instruct", "8b against 2b"),
    ("ibm-granite/granite-3.2-2b-instruct", "Granite 3.3 2b", "granite 3.2 against 3.3"),
    ("ibm-granite/granite-4.0-h-tiny", "Granite 4.0 H Small", "tiny against small"),
    ("ibm-granite/granite-3.3-2b-base", "Granite 3.3 2b Instruct", "base against instruct"),
    ("google/gemma-2-2b", "qwen2-2b", "gemma against qwen"),
    ("google/gemma-3-4b-pt", "gemma-3-4b-it", "base against instruct"),
    ("Qwen/Qwen2.5-7B-Instruct", "Granite 3.3 8b Instruct", "qwen against granite"),
    ("Qwen/Qwen2.5-7B-Instruct", "Qwen2 7B Instruct", "qwen 2.5 against 2"),
    ("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5 Coder 7B Instruct", "'coder' in its name"),
    ("Qwen/Qwen2.5-0.5B", "Qwen2.5 1.5B", "500m against 1.5b"),
    ("Qwen/Qwen3-30B-A3B", "Qwen3 32B", "30b against 32b"),
    ("meta-llama/Llama-2-7b-hf", "Meta Llama 3 8B", "llama 2 against 3"),
    ("meta-llama/Llama-3.2-1B", "llama3.1-8b", "llama 3.2 against 3.1"),
    ("mistralai/Mistral-7B-Instruct-v0.2", "Mistral 7B Instruct v0.3", "v0.2 against v0.3"),
    ("mistralai/Mixtral-8x7B-v0.1", "Mixtral 8x22B v0.1", "8x7b against 8x22b"),
    ("org/mixtral-8x7b", "mixtral-7b", "8x7b against 7b"),
    ("mistralai/Mistral-7B-v0.1", "Mixtral-8x7B-v0.1", "mistral against mixtral"),
    ("microsoft/Phi-3-mini-4k-instruct", "Phi 3.5 Mini Instruct", "phi 3 against 3.5"),
    ("microsoft/Phi-3-mini-4k-instruct", "Phi-3-medium-4k-instruct", "mini against medium"),
    ("HuggingFaceTB/SmolLM2-1.7B", "SmolLM3 3B", "smollm 2 against 3"),
    ("bigcode/starcoder2-3b", "starcoder2-7b", "3b against 7b"),
    ("openai-community/gpt2-medium", "gpt2-large", "medium against large"),
    ("/models/granite-3.3-8b-instruct", "Granite 3.3 2b Instruct", "8b against 2b"),
    (r"C:\models\granite-3.3-8b-instruct\\", "Granite 3.3 2b Instruct", "8b against 2b"),
    (
        "/root/hub/models--ibm-granite--granite-3.3-8b-instruct/snapshots/0123abcd",
        "Granite 3.3 2b Instruct",
        "8b against 2b",
    ),
]


@pytest.mark.parametrize(("trained_on", "name"), SAME)
def test_names_that_leave_it_open(trained_on: str, name: str) -> None:
    assert compared(trained_on, name) is None


@pytest.mark.parametrize(("trained_on", "name", "problem"), OTHER)
def test_names_of_two_models(trained_on: str, name: str, problem: str) -> None:
    warning = compared(trained_on, name)
    assert warning is not None
    assert f"is called '{model_name(name)}'" in warning
    assert problem in warning


@pytest.mark.parametrize(("a", "b"), [pair for pair in SAME if "/" not in pair[0][:2]])
def test_the_order_does_not_matter_where_it_is_open(a: str, b: str) -> None:
    assert compared(b, a) is None


@pytest.mark.parametrize(("a", "b", "_problem"), OTHER)
def test_the_order_does_not_matter_where_it_is_not(a: str, b: str, _problem: str) -> None:
    assert compared(b, a) is not None


@pytest.mark.parametrize(
    ("names", "warns"),
    [
        # a name that leaves the size open takes nothing back ...
        (("Granite 3.3 8b Instruct", "granite-3.3"), True),
        (("granite-3.3", "Granite 3.3 8b Instruct"), True),
        # ... one that says as much as the adapter's does
        (("granite-3.3-2b-base", "granite-3.3-2b-instruct"), False),
        (("my assistant", "ibm-granite/granite-3.3-2b-instruct"), False),
        ((), False),
    ],
)
def test_several_names(names: Sequence[str], warns: bool) -> None:
    assert bool(compared("ibm-granite/granite-3.3-2b-instruct", *names)) is warns


def test_an_adapter_that_names_no_base() -> None:
    assert compared(None, "Granite 3.3 2b Instruct") is None


@pytest.mark.parametrize("number", ["9" * 400, "9" * 5000, "1." + "9" * 400, "9" * 5000 + "x7"])
def test_numbers_without_end(number: str) -> None:
    assert (
        compared(f"granite-{number}b", f"granite-{number}-8b v{number} {number}x{number}b") is None
    )


def test_a_name_that_would_fill_or_command_the_terminal() -> None:
    warning = compared("granite-3.3-8b\x1b[2J", f"granite-3.3-2b{'-x' * 1000}")
    assert warning is not None
    assert r"trained on 'granite-3.3-8b\x1b[2J' (base" in warning
    assert warning.isprintable()
    assert len(warning) < 400


def test_the_whole_sentence() -> None:
    assert compared("ibm-granite/granite-3.3-8b-instruct", "Granite 3.3 2b Instruct") == (
        "the adapter was trained on 'granite-3.3-8b-instruct' (base_model_name_or_path), but "
        "base.gguf is called 'Granite 3.3 2b Instruct' (8b against 2b); if they are not one model, "
        "convert for the one it was trained on"
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ibm-granite/granite-3.3-2b-instruct", "granite-3.3-2b-instruct"),
        ("/a/b/granite.Q4_K_M.gguf", "granite.Q4_K_M"),
        (r"C:\models\llama-2-7b", "llama-2-7b"),
        ("hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289", "Qwen3-0.6B"),
        ("", ""),
    ],
)
def test_the_models_own_name(text: str, name: str) -> None:
    assert model_name(text) == name


def test_a_conversion_tells(case: Case) -> None:
    case.base = case.base.rename(case.folder / "granite-3.3-2b-instruct-Q8_0.gguf")
    case.config["base_model_name_or_path"] = "ibm-granite/granite-3.3-8b-instruct"
    (warning,) = case.convert().warnings
    assert "is called 'granite-3.3-2b-instruct-Q8_0' (8b against 2b)" in warning
    case.config["base_model_name_or_path"] = "ibm-granite/granite-3.3-2b-instruct"
    assert case.convert(overwrite=True).warnings == ()
