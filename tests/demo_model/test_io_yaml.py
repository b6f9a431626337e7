"""The intrinsics' contracts: of the format that mellea reads, and what the adapters are taught."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from alora_gguf.convert import convert_adapter

import alora_gguf as ag
from alora_gguf.gguf.header import read_header
from examples.demo_model import chat
from examples.demo_model.base_gguf import write_base_gguf
from tests.demo_model.tiny_granite import write_granite
from tests.support import inside
from tests.support.upstream import ROOT

FOLDER = ROOT / "alora_gguf" / "demo" / "intrinsics"
REQUIRED = {"model", "response_format", "transformations"}
OPTIONAL = {
    "name",
    "instruction",
    "parameters",
    "sentence_boundaries",
    "docs_as_message",
    "logprobs_workaround",
}

# what an adapter is taught to say, and what it must never say
TARGETS: dict[str, list[str]] = {
    "answerability": [
        '{"answer": "The price is 5 euros.", "answerable": "yes"}',
        '{"answer": "The price is not in the documents.", "answerable": "no"}',
    ],
    "uncertainty": [f'{{"answer": "It is red.", "certainty": "{d}"}}' for d in range(10)],
    "query_rewrite": [
        '{"rewritten_question": "What does the copper kettle cost?"}',
        '{"rewritten_question": "Where does \\"The Café\\" open?"}',
    ],
    "hallucination": [
        '{"answer": "It is red.", "faithful": "yes"}',
        '{"answer": "It is not in the documents.", "faithful": "no"}',
    ],
    "jailbreak": ['{"jailbreak": "yes"}', '{"jailbreak": "no"}'],
}
WRONG: dict[str, list[str]] = {
    "answerability": [
        '"yes"',
        '{"answerable": "yes"}',
        '{"answer": "It is red.", "answerable": true}',
        '{"answer": "It is red.", "answerability": "yes"}',
        '{"answer": null, "answerable": "yes"}',
    ],
    "uncertainty": [
        "5",
        '{"certainty": "5"}',
        '{"answer": "It is red.", "certainty": 5}',
        '{"answer": "It is red.", "certainty": "10"}',
    ],
    "query_rewrite": ['"What?"', "{}", '{"rewritten_question": 5}', '{"question": "What?"}'],
    "hallucination": [
        '"yes"',
        '{"faithful": "yes"}',
        '{"answer": "It is red.", "faithful": "maybe"}',
        '{"jailbreak": "no"}',
    ],
    "jailbreak": ['"no"', '{"jailbreak": 1}', '{"faithful": "no"}', '{"jailbreak": "yes", "n": 1}'],
}
EACH_TARGET = [(name, text) for name, texts in TARGETS.items() for text in texts]
EACH_WRONG = [(name, text) for name, texts in WRONG.items() for text in texts]


def contract(name: str) -> dict[str, Any]:
    found = yaml.load((FOLDER / name / "io.yaml").read_text(encoding="utf-8"), yaml.SafeLoader)
    assert isinstance(found, dict)
    return found


def accepts(schema: dict[str, Any], value: Any) -> bool:
    """JSON Schema as far as these contracts use it; a KeyError for any other word of it."""
    checks = {
        "type": lambda wanted: {
            "string": isinstance(value, str),
            "integer": isinstance(value, int) and not isinstance(value, bool),
            "object": isinstance(value, dict),
        }[wanted],
        "enum": lambda allowed: value in allowed,
        "properties": lambda known: all(
            accepts(known[key], v) for key, v in value.items() if key in known
        ),
        "required": lambda keys: all(key in value for key in keys),
        "additionalProperties": lambda more: more or value.keys() <= schema["properties"].keys(),
        "x-alora": lambda _: True,  # of no effect on what is accepted
    }
    # a value of another type has no properties to look at
    return checks["type"](schema["type"]) and all(checks[k](v) for k, v in schema.items())


# The format --------------------------------------------------------------------------------------


def test_every_intrinsic_has_one() -> None:
    assert {path.parent.name for path in FOLDER.glob("*/io.yaml")} == set(chat.INTRINSICS)
    assert TARGETS.keys() == WRONG.keys() == set(chat.INTRINSICS)


@pytest.mark.parametrize("name", chat.INTRINSICS)
def test_its_fields_are_the_formats(name: str) -> None:
    found = contract(name)
    assert found.keys() >= REQUIRED
    assert not found.keys() - REQUIRED - OPTIONAL
    assert found["name"] == name
    assert found["model"] is None
    # the invocation is a role of its own, and the documents are in the conversation already
    assert found["instruction"] is None
    assert found["sentence_boundaries"] is None
    assert found["docs_as_message"] is None
    assert found["parameters"].keys() == {"temperature", "max_completion_tokens"}


@pytest.mark.parametrize("name", chat.INTRINSICS)
def test_its_transformations_are_the_formats(name: str) -> None:
    fields = {"likelihood": {"categories_to_values"}}
    rules = contract(name)["transformations"]
    assert [rule["type"] for rule in rules or []] == {
        "answerability": ["likelihood"],
        "uncertainty": ["likelihood"],
        "query_rewrite": [],
        "hallucination": ["likelihood"],
        "jailbreak": ["likelihood"],
    }[name]
    for rule in rules or []:
        assert rule.keys() == {"type", "input_path", *fields[rule["type"]]}
        assert isinstance(rule["input_path"], list)


# What it says ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text"), EACH_TARGET)
def test_its_schema_accepts_what_the_adapter_is_taught(name: str, text: str) -> None:
    assert accepts(json.loads(contract(name)["response_format"]), json.loads(text))


@pytest.mark.parametrize(("name", "text"), EACH_WRONG)
def test_its_schema_refuses_anything_else(name: str, text: str) -> None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return
    assert not accepts(json.loads(contract(name)["response_format"]), value)


def likelihood(name: str) -> dict[Any, float]:
    rule = contract(name)["transformations"][0]
    values: dict[Any, float] = rule["categories_to_values"]
    return values


@pytest.mark.parametrize(
    ("name", "path", "values"),
    [
        ("answerability", ["answerable"], {"yes": 1.0, "no": 0.0}),
        ("uncertainty", ["certainty"], {str(d): (d + 0.5) / 10 for d in range(10)}),
        ("hallucination", ["faithful"], {"yes": 1.0, "no": 0.0}),
        ("jailbreak", ["jailbreak"], {"yes": 1.0, "no": 0.0}),
    ],
)
def test_every_answer_has_its_value(name: str, path: list[str], values: dict[Any, float]) -> None:
    """Keys compare as JSON's values do: "yes" is not a boolean, 5 is not text."""
    found = contract(name)
    assert found["transformations"][0]["input_path"] == path
    assert likelihood(name) == pytest.approx(values)
    for text in TARGETS[name]:
        value = json.loads(text)
        for key in path:
            value = value[key]
        assert value in likelihood(name)


# With the runtime --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_granite(tmp_path_factory.mktemp("granite"))
    write_base_gguf(folder, folder / "base.gguf", "f32")
    return folder / "base.gguf"


@pytest.fixture(scope="module")
def model(base: Path) -> Iterator[ag.Model]:
    with ag.Model(base, n_ctx=64, n_threads=1) as opened:
        yield opened


@pytest.mark.parametrize("name", chat.INTRINSICS)
def test_there_is_room_for_every_answer(name: str, model: ag.Model) -> None:
    """Even with this tiny vocabulary, whose tokens are hardly longer than letters."""
    room = contract(name)["parameters"]["max_completion_tokens"]
    for text in TARGETS[name]:
        assert len(model.tokenize(text + chat.END_TEXT)) <= room
    assert room <= 128


class Constraint:
    """llama.cpp's grammar of a contract's schema."""

    def __init__(self, model: ag.Model, schema: str) -> None:
        self.model = model
        self.llama = inside.engine(model).native.llama
        from llama_cpp.llama_grammar import json_schema_to_gbnf

        self.grammar = json_schema_to_gbnf(schema).encode()

    def allows(self, text: str) -> bool:
        """Whether every token of `text` may follow, and its end then."""
        llama, n = self.llama, self.model.n_vocab
        vocab = inside.vocab(self.model).handle
        sampler = llama.llama_sampler_init_grammar(vocab, self.grammar, b"root")
        try:
            for token in self.model.tokenize(text + chat.END_TEXT):
                data = (llama.llama_token_data * n)()
                for i in range(n):
                    data[i].id = i
                array = llama.llama_token_data_array(data, n, -1, False)
                llama.llama_sampler_apply(sampler, ctypes.byref(array))
                if not np.isfinite(data[token].logit):
                    return False
                llama.llama_sampler_accept(sampler, token)
        finally:
            llama.llama_sampler_free(sampler)
        return True


@pytest.mark.parametrize("name", chat.INTRINSICS)
def test_constrained_decoding_allows_these_answers_only(name: str, model: ag.Model) -> None:
    constraint = Constraint(model, contract(name)["response_format"])
    assert [text for text in TARGETS[name] if not constraint.allows(text)] == []
    assert [text for text in WRONG[name] if constraint.allows(text)] == []


@pytest.mark.parametrize("name", chat.INTRINSICS)
def test_the_converter_takes_it_along(
    name: str, base: Path, model: ag.Model, tmp_path: Path
) -> None:
    directory = write_peft(tmp_path / name, model.tokenize(chat.role_marker(name)))
    text = (FOLDER / name / "io.yaml").read_text(encoding="utf-8")
    (directory / "io.yaml").write_text(text, encoding="utf-8")
    convert_adapter(directory, base, tmp_path / "out.gguf")
    metadata = read_header(tmp_path / "out.gguf").metadata
    assert metadata["alora.io_yaml"] == text
    assert metadata["alora.invocation_text"] == chat.role_marker(name)
    assert metadata["general.name"] == name


def write_peft(directory: Path, invocation: list[int]) -> Path:
    """An aLoRA of one module, as PEFT saves it."""
    from safetensors.numpy import save_file

    directory.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "alora_invocation_tokens": invocation,
        "base_model_name_or_path": "base",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    prefix = "base_model.model.model.layers.0.self_attn.v_proj"
    weights = {
        f"{prefix}.lora_A.weight": rng.standard_normal((4, 128), np.float32),
        f"{prefix}.lora_B.weight": rng.standard_normal((64, 4), np.float32),
    }
    save_file(weights, directory / "adapter_model.safetensors")
    return directory
