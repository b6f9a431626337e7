"""`alora-gguf inspect`: the whole table, the same as JSON, and what a hostile file cannot do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.cli.inspect import _by_layer, _ranges
from alora_gguf.cli.render import size_text

from alora_gguf.gguf.inspection import inspect_gguf
from alora_gguf.gguf.parser import ValueType
from tests.support.gguf_bytes import Tensors, gguf_bytes
from tests.support.inspect_command import inspect, shown
from tests.support.inspected import pairs

IO_YAML = "model: ~\nresponse_format: ~\ntransformations: ~\nname: ü\n"


ADAPTER: dict[str, Any] = {
    "general.architecture": "granite",
    "general.type": "adapter",
    "general.name": "answerability",
    "general.file_type": 1,
    "general.license": "apache-2.0",
    "general.base_model.count": 1,
    "general.base_model.0.name": "granite-4.0-micro",
    "general.base_model.0.organization": "ibm-granite",
    "general.base_model.0.repo_url": "https://huggingface.co/ibm-granite/granite-4.0-micro",
    "adapter.type": "lora",
    "adapter.lora.alpha": 32.0,
    "adapter.alora.invocation_tokens": [49152, 2, 49153],
    "alora.invocation_text": "<|start_of_role|>answerability<|end_of_role|>",
    "alora.vocab.sha256": "0123456789abcdef" * 4,
    "alora.source.repo": "ibm-granite/granitelib-rag-r1.0",
    "alora.source.peft_version": "0.21.2",
    "alora.io_yaml": IO_YAML,
}
ADAPTER_TENSORS = {
    **pairs([*range(40)], "attn_q", 64, 64, 32),
    **pairs([0, 1, 2, 3, 7, 9, 10, 11], "attn_k", 64, 16, 32),
    **pairs([5], "attn_k", 64, 16, 16),
    **pairs([*range(1, 40, 2)], "ffn_up", 64, 96, 32),
    "blk.0.ffn_gate_up_exps.weight.lora_a": ("BF16", (64, 32, 40)),
    "blk.0.ffn_gate_up_exps.weight.lora_b": ("BF16", (32, 96, 40)),
    "token_embd.weight.lora_a": ("F32", (32, 512)),
    "token_embd.weight.lora_b": ("F32", (32, 64)),
}
ADAPTER_TABLE = """\
file.gguf: aLoRA adapter, 1.1 MB
  name           answerability
  architecture   granite
  invocation     '<|start_of_role|>answerability<|end_of_role|>'
  tokens         49152, 2, 49153
  alpha          32
  rank           16, 32
  scale          2 at rank 16, 1 at rank 32
  file           GGUF version 3, 142 tensors
  weights        511,232 parameters, 1.1 MB
                 F16      576.0 kB in 138 tensors
                 BF16     409.6 kB in 2 tensors
                 F32       73.7 kB in 2 tensors

  target            rank  type  n_in -> n_out  experts      size  layers
  attn_k              32  F16   64 -> 16             -   41.0 kB  0-3, 7, 9-11
  attn_k              16  F16   64 -> 16             -    2.6 kB  5
  attn_q              32  F16   64 -> 64             -  327.7 kB  0-39
  ffn_gate_up_exps    32  BF16  64 -> 96            40  409.6 kB  0
  ffn_up              32  F16   64 -> 96             -  204.8 kB  below
                    layers 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27,
                    29, 31, 33, 35, 37, 39
  token_embd          32  F32   512 -> 64            -   73.7 kB  -

  metadata
    general.file_type: 1
    general.license: apache-2.0
    general.base_model.count: 1
    general.base_model.0.name: granite-4.0-micro
    general.base_model.0.organization: ibm-granite
    general.base_model.0.repo_url:
      https://huggingface.co/ibm-granite/granite-4.0-micro
    alora.vocab.sha256:
      0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    alora.source.repo: ibm-granite/granitelib-rag-r1.0
    alora.source.peft_version: 0.21.2
    io.yaml: 56 bytes
"""

BASE: dict[str, Any] = {
    "general.architecture": "granitehybrid",
    "general.type": "model",
    "general.name": "Granite 4.0 H Tiny",
    "general.size_label": "64x994M",
    "general.license": "apache-2.0",
    "general.quantization_version": 2,
    "general.tags": ["language", "granite-4.0"],
    "granitehybrid.block_count": 40,
    "granitehybrid.embedding_length": 256,
    "granitehybrid.attention.head_count": 12,
    "granitehybrid.attention.head_count_kv": [4 if i % 10 == 5 else 0 for i in range(40)],
    "granitehybrid.context_length": 1048576,
    "granitehybrid.expert_count": 64,
    "granitehybrid.expert_used_count": 6,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "dbrx",
    "tokenizer.ggml.tokens": [f"t{i}" for i in range(512)],
    "tokenizer.chat_template": "{% for message in messages %}",
    "split.no": (ValueType.UINT16, 0),
    "split.count": (ValueType.UINT16, 2),
    "split.tensors.count": (ValueType.INT32, 7),
}
BASE_TENSORS: Tensors = {
    "token_embd.weight": ("Q6_K", (256, 512)),
    "output.weight": ("Q6_K", (256, 512)),
    "blk.0.ffn_up_exps.weight": ("Q4_K", (256, 256, 64)),
    "output_norm.weight": ("F32", (256,)),
}
BASE_TABLE = """\
file.gguf: base model, 2.6 MB
  name           Granite 4.0 H Tiny
  architecture   granitehybrid
  size label     64x994M
  split          part 1 of 2, with 4 of 7 tensors
  layers         40
  embedding      256
  heads          12
  kv heads       0, but 4 in layers 5, 15, 25, 35
  context        1048576
  experts        64, 6 used for each token
  vocabulary     512 tokens, tokenizer gpt2, pre-tokenizer dbrx
  chat template  yes
  output         has its own weight
  file           GGUF version 3, 4 tensors
  weights        4,456,704 parameters, 2.6 MB
                 Q4_K       2.4 MB in 1 tensor
                 Q6_K     215.0 kB in 2 tensors
                 F32        1.0 kB in 1 tensor

  metadata
    general.license: apache-2.0
    general.quantization_version: 2
    general.tags: language, granite-4.0
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the first line is the same everywhere."""
    monkeypatch.chdir(tmp_path)


def test_an_adapter_for_people() -> None:
    assert shown(ADAPTER, ADAPTER_TENSORS) == ADAPTER_TABLE


def test_a_base_for_people() -> None:
    assert shown(BASE, BASE_TENSORS) == BASE_TABLE


def test_json_says_the_same_of_an_adapter() -> None:
    result = inspect(ADAPTER, ADAPTER_TENSORS, "--json")
    found = json.loads(result.output)
    assert found == inspect_gguf(Path("file.gguf")).to_dict()
    assert found["kind"] == "alora"
    assert found["name"] == "answerability"
    assert found["invocation"] == [49152, 2, 49153]
    assert found["invocation_text"] == "<|start_of_role|>answerability<|end_of_role|>"
    assert (found["alpha"], found["ranks"]) == (32.0, [16, 32])
    assert found["n_parameters"] == 511232
    assert found["types"][2] == {
        "type": "F32",
        "n_tensors": 2,
        "n_parameters": 18432,
        "nbytes": 73728,
    }
    assert found["targets"][0] == {
        "name": "attn_k",
        "layers": [0, 1, 2, 3, 7, 9, 10, 11],
        "rank": 32,
        "scale": 1.0,
        "type": "F16",
        "n_in": 64,
        "n_out": 16,
        "n_experts": None,
        "nbytes": 40960,
    }
    assert found["metadata"]["alora.io_yaml"] == IO_YAML
    assert found["metadata"]["alora.vocab.sha256"] == "0123456789abcdef" * 4
    assert found["problems"] == []


def test_json_says_the_same_of_a_base() -> None:
    found = json.loads(inspect(BASE, BASE_TENSORS, "--json").output)
    assert (found["layers"], found["n_embd"], found["heads"]) == (40, 256, 12)
    assert found["kv_heads"] == BASE["granitehybrid.attention.head_count_kv"]
    assert (found["experts"], found["experts_used"]) == (64, 6)
    assert found["vocabulary"] == {
        "size": 512,
        "model": "gpt2",
        "pre": "dbrx",
        "has_chat_template": True,
    }
    assert found["split"] == {"part": 1, "n_parts": 2, "n_tensors": 7}
    assert found["tied_output"] is False
    assert found["metadata"]["tokenizer.ggml.tokens"] == {"array_of": "string", "count": 512}
    assert found["metadata"]["general.tags"] == ["language", "granite-4.0"]


def test_a_plain_lora_that_others_made() -> None:
    metadata = {key: ADAPTER[key] for key in ("general.architecture", "general.type")}
    metadata |= {"adapter.type": "lora", "adapter.lora.task_name": "summarise"}
    assert (
        shown(metadata, pairs([0], "attn_q", 64, 64, 8))
        == """\
file.gguf: LoRA adapter, 2.4 kB
  architecture   granite
  invocation     none; it is on for every token
  alpha          none
  rank           8
  scale          1, as there is no alpha
  file           GGUF version 3, 2 tensors
  weights        1,024 parameters, 2.0 kB
                 F16        2.0 kB in 2 tensors

  target  rank  type  n_in -> n_out    size  layers
  attn_q     8  F16   64 -> 64       2.0 kB  0

  metadata
    adapter.lora.task_name: summarise
"""
    )


def test_a_tied_base_that_says_little() -> None:
    text = shown({"general.architecture": "llama"}, {"token_embd.weight": ("F32", (8, 16))})
    assert (
        text
        == """\
file.gguf: base model, 640 B
  architecture   llama
  vocabulary     16 tokens
  chat template  none
  output         tied to token_embd
  file           GGUF version 3, 1 tensor
  weights        128 parameters, 512 B
                 F32         512 B in 1 tensor
"""
    )


def test_a_later_part_of_a_split_model() -> None:
    split = {
        "split.no": (ValueType.UINT16, 1),
        "split.count": (ValueType.UINT16, 2),
    }
    assert (
        shown(split, {"blk.9.attn_q.weight": ("F32", (8, 8))})
        == """\
file.gguf: base model, 416 B
  split          part 2 of 2, with 1 tensor
                 part 1 has the metadata
  file           GGUF version 3, 1 tensor
  weights        64 parameters, 256 B
                 F32         256 B in 1 tensor
"""
    )


def test_files_of_other_kinds_show_all_their_keys() -> None:
    clip = {"general.architecture": "clip", "clip.has_vision_encoder": True, "clip.scale": 0.1}
    text = shown(clip, {})
    assert text.startswith("file.gguf: multimodal projector (mmproj), ")
    assert "  metadata\n    clip.has_vision_encoder: True\n    clip.scale: 0.1\n" in text
    text = shown({"general.type": "imatrix", "imatrix.datasets": ["a", "b"]}, {})
    assert text.startswith("file.gguf: importance matrix (imatrix), ")
    assert "    imatrix.datasets: a, b\n" in text
    text = shown({"general.type": "x\x1b[31m", "imatrix.numbers": [1] * 2000}, {})
    assert text.startswith("file.gguf: file of the kind 'x\\x1b[31m', ")
    assert "    imatrix.numbers: 2000 values of type uint32\n" in text
    text = shown({"general.architecture": "llama", "tokenizer.ggml.tokens": ["a"]}, {})
    assert text.startswith("file.gguf: vocabulary without weights, ")
    assert "tokenizer.ggml.tokens" not in text


def test_a_malformed_adapter_is_shown_with_its_problems() -> None:
    tensors = pairs([0, 1], "attn_q", 64, 64, 8)
    del tensors["blk.1.attn_q.weight.lora_b"]
    result = inspect(ADAPTER, tensors)
    assert result.exit_code == 0
    assert "\n  scale          4 (alpha/rank)\n" in result.output
    assert "\n  attn_q     8  F16   64 -> 64       2.0 kB  0\n" in result.output
    assert result.output.endswith(
        "\n\n  problems\n    'blk.1.attn_q.weight.lora_b' is missing, its counterpart is there\n"
    )
    found = json.loads(inspect(ADAPTER, tensors, "--json").output)
    assert found["problems"] == [
        "'blk.1.attn_q.weight.lora_b' is missing, its counterpart is there"
    ]


def test_of_many_problems_the_first_are_shown() -> None:
    tensors: Tensors = {f"blk.{i}.attn_q.bias": ("F32", (8,)) for i in range(13)}
    text = shown(ADAPTER, tensors)
    assert "'blk.9.attn_q.bias' ends in neither" in text
    assert "blk.10." not in text
    assert text.endswith("    and 3 more; --json has them all\n")
    found = json.loads(inspect(ADAPTER, tensors, "--json").output)
    assert len(found["problems"]) == 13
    ten = shown(ADAPTER, dict([*tensors.items()][:10]))
    assert ten.endswith("\n    tensor 'blk.9.attn_q.bias' ends in neither .lora_a nor .lora_b\n")


def test_a_contract_of_the_wrong_type_is_shown_as_it_is() -> None:
    text = shown({**ADAPTER, "alora.io_yaml": 5}, ADAPTER_TENSORS)
    assert "\n    alora.io_yaml: 5\n" in text


def test_alpha_zero_counts_as_none() -> None:
    text = shown({**ADAPTER, "adapter.lora.alpha": 0.0}, ADAPTER_TENSORS)
    assert "\n  alpha          0\n" in text
    assert "\n  scale          1, as alpha is 0\n" in text


def test_a_value_that_fits_no_longer_takes_a_line_of_its_own() -> None:
    def lines(length: int) -> list[str]:
        metadata = {"general.architecture": "llama", "general.x": "v" * length}
        return shown(metadata, {"x": ("F32", (1,))}).split("  metadata\n")[1].splitlines()

    assert lines(65) == ["    general.x: " + "v" * 65]
    assert lines(66) == ["    general.x:", "      " + "v" * 66]
    assert lines(74) == ["    general.x:", "      " + "v" * 74]
    assert lines(75) == ["    general.x: " + "v" * 64 + "…"]


# ---- parts, and the whole process


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((), "-"),
        ((3,), "3"),
        ((0, 1, 2, 3), "0-3"),
        ((0, 1, 2, 3, 7, 9, 10, 11), "0-3, 7, 9-11"),
        ((1, 2), "1-2"),
    ],
)
def test_ranges(layers: tuple[int, ...], text: str) -> None:
    assert _ranges(layers) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((8, 8, 8), "8 in every layer"),
        ((0, 8, 0, 0, 8), "0, but 8 in layers 1, 4"),
        ((0, 8, 0, 4, 8, 0), "0, but 8 in layers 1, 4; 4 in layers 3"),
        ((1, 2, 3, 4), "1 to 4, differing by layer"),
    ],
)
def test_by_layer(values: tuple[int, ...], text: str) -> None:
    assert _by_layer(values) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (4_920_000_000, "4.9 GB"),
        (2**63, "9223372.0 TB"),
    ],
)
def test_size(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text


def test_the_whole_process_loads_neither_numpy_nor_gguf() -> None:
    Path("file.gguf").write_bytes(gguf_bytes(ADAPTER, ADAPTER_TENSORS))
    code = (
        "import sys; from alora_gguf.cli import run; status = run(sys.argv[1:]);"
        "print(status, [m for m in ('numpy', 'gguf', 'llama_cpp', 'yaml') if m in sys.modules])"
    )
    for without_contract, loaded in ((False, "['yaml']"), (True, "[]")):
        if without_contract:
            metadata = {key: value for key, value in ADAPTER.items() if key != "alora.io_yaml"}
            Path("file.gguf").write_bytes(gguf_bytes(metadata, ADAPTER_TENSORS))
        run = subprocess.run(
            [sys.executable, "-c", code, "inspect", "file.gguf"], capture_output=True, text=True
        )
        assert run.stdout.endswith(f"0 {loaded}\n"), run.stderr
        assert without_contract or run.stdout == f"{ADAPTER_TABLE}0 {loaded}\n"


def test_a_contract_that_only_names_it_is_told() -> None:
    out = shown({**ADAPTER, "alora.io_yaml": "name: x\nmodel: ~\n"}, ADAPTER_TENSORS)
    assert "    io.yaml: 17 bytes, a name alone: answers are free text\n" in out


@pytest.mark.parametrize("contract", ["model: [\n", "name: x\nrules: ~\n", "a\x1b[2J"])
def test_a_contract_that_cannot_be_read_is_a_problem(contract: str) -> None:
    metadata = {**ADAPTER, "alora.io_yaml": contract}
    out = shown(metadata, ADAPTER_TENSORS)
    assert (
        "\n  problems\n    the adapter cannot be asked as an intrinsic: file.gguf(io.yaml):" in out
    )
    (problem,) = json.loads(inspect(metadata, ADAPTER_TENSORS, "--json").stdout)["problems"]
    assert problem.startswith("the adapter cannot be asked as an intrinsic: file.gguf(io.yaml):")
