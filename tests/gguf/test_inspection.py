"""inspect_gguf: what it says of adapters, bases and the rest, and what it does not read for it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alora_gguf.errors import FileFormatError
from alora_gguf.gguf.header import GGUFHeader
from alora_gguf.gguf.inspection import (
    AdapterSummary,
    ArraySummary,
    BaseSummary,
    Split,
    Target,
    TypeTotal,
    Vocabulary,
    inspect_gguf,
)
from alora_gguf.gguf.parser import ValueType
from tests.support import corrupt
from tests.support import tiny_base as tb
from tests.support.gguf_bytes import Tensors, gguf_bytes
from tests.support.inspected import ADAPTER, adapter, base, lora, write
from tests.support.peft_files import MODULES, N_EMBD, N_FF, RANK, sound_case

N_VOCAB = 128_256


# ---- adapters


def test_what_the_converter_wrote(tmp_path: Path) -> None:
    case = sound_case(tmp_path)
    report = case.convert(name="sure")
    summary = inspect_gguf(case.out)
    assert isinstance(summary, AdapterSummary)
    assert (summary.kind, summary.architecture, summary.name) == ("alora", "llama", "sure")
    assert summary.invocation == (7, 8)
    assert summary.alpha == 2 * RANK
    assert summary.ranks == (RANK,)
    assert {t.name: len(t.layers) for t in summary.targets} == dict.fromkeys(MODULES.values(), 2)
    assert summary.nbytes == case.out.stat().st_size
    assert summary.n_tensors == 2 * 2 * len(MODULES)
    assert summary.n_parameters == sum(values.size for values in case.tensors.values())
    assert summary.weights_nbytes == 4 * summary.n_parameters
    assert summary.metadata["alora.source.sha256"] == report.source_sha256
    assert summary.problems == ()
    up = next(t for t in summary.targets if t.name == "ffn_up")
    assert up == Target(
        name="ffn_up",
        layers=(0, 1),
        rank=RANK,
        scale=2.0,
        type="F32",
        n_in=N_EMBD,
        n_out=N_FF,
        n_experts=None,
        nbytes=2 * 4 * RANK * (N_EMBD + N_FF),
    )


def test_an_adapter_that_others_made(tmp_path: Path) -> None:
    """Written by gguf's writer with the keys of the stock converter, none of ours."""
    path = corrupt.adapter(tmp_path / "stock.gguf")
    summary = inspect_gguf(path)
    assert isinstance(summary, AdapterSummary)
    assert (summary.kind, summary.name) == ("lora", None)
    assert (summary.invocation, summary.invocation_text) == ((), None)
    assert [(t.name, t.layers, t.scale) for t in summary.targets] == [("attn_q", (0,), 2.0)]
    assert list(summary.metadata) == list(ADAPTER)
    assert summary.problems == ()


def test_layers_that_are_alike_share_a_target(tmp_path: Path) -> None:
    tensors: Tensors = {}
    for layer in (64, 9, 0, 10, 1, 7):
        tensors |= lora(f"blk.{layer}.attn_q", 32, 32)
    tensors |= lora("blk.3.attn_q", 32, 32, rank=4)
    tensors |= lora("blk.4.attn_q", 32, 32, kind="F32")
    tensors |= lora("blk.5.attn_q", 32, 64)
    tensors |= lora("enc.blk.0.attn_q", 32, 32)
    tensors |= lora("blk.01.attn_q", 32, 32)
    found = [
        (t.name, t.layers, t.rank, t.type, t.n_out) for t in adapter(tmp_path, tensors).targets
    ]
    assert found == [
        ("attn_q", (0, 1, 7, 9, 10, 64), 8, "F16", 32),
        ("attn_q", (3,), 4, "F16", 32),
        ("attn_q", (4,), 8, "F32", 32),
        ("attn_q", (5,), 8, "F16", 64),
        ("blk.01.attn_q", (), 8, "F16", 32),
        ("enc.attn_q", (0,), 8, "F16", 32),
    ]


def test_weights_that_are_no_plain_matrix_of_a_layer(tmp_path: Path) -> None:
    tensors: Tensors = {
        "token_embd.weight.lora_a": ("F32", (4, 64)),
        "token_embd.weight.lora_b": ("F32", (4, 32)),
        **lora("output", 32, 64, rank=4),
        "blk.2.ffn_down_exps.weight.lora_a": ("Q8_0", (96, 2, 5)),
        "blk.2.ffn_down_exps.weight.lora_b": ("F16", (2, 32, 5)),
    }
    summary = adapter(tmp_path, tensors)
    expected = {
        "token_embd": ((), 64, 32, None, "F32", 4.0, 4 * (4 * 64 + 4 * 32)),
        "output": ((), 32, 64, None, "F16", 4.0, 2 * (4 * 64 + 4 * 32)),
        "ffn_down_exps": ((2,), 96, 32, 5, "Q8_0/F16", 8.0, 5 * (2 * 96 // 32 * 34 + 2 * 2 * 32)),
    }
    assert {
        t.name: (t.layers, t.n_in, t.n_out, t.n_experts, t.type, t.scale, t.nbytes)
        for t in summary.targets
    } == expected
    assert summary.ranks == (2, 4)
    assert summary.types == (
        TypeTotal("F32", 2, 384, 1536),
        TypeTotal("F16", 3, 384 + 320, 768 + 640),
        TypeTotal("Q8_0", 1, 960, 1020),
    )
    assert summary.problems == ()


def test_an_embedding_with_experts(tmp_path: Path) -> None:
    tensors: Tensors = {
        "token_embd.weight.lora_a": ("F32", (4, 64, 2)),
        "token_embd.weight.lora_b": ("F32", (4, 32, 2)),
    }
    (target,) = adapter(tmp_path, tensors).targets
    assert (target.n_in, target.n_out, target.rank, target.n_experts) == (64, 32, 4, 2)


@pytest.mark.parametrize("alpha", [None, 0.0])
def test_without_alpha_the_scale_is_one(alpha: float | None, tmp_path: Path) -> None:
    summary = adapter(tmp_path, changes={"adapter.lora.alpha": alpha})
    assert summary.alpha == alpha
    assert summary.targets[0].scale == 1.0
    assert summary.problems == ()


def test_every_key_is_in_the_metadata(tmp_path: Path) -> None:
    ours = {
        "adapter.alora.invocation_tokens": [5, 6],
        "alora.invocation_text": "<|judge|>",
        "alora.io_yaml": "model: ~\n",
        "alora.source.revision": "0" * 40,
        "alora.some.later.key": True,
        "general.tags": ["rag", "judge"],
        "general.short": [1] * 1024,
        "general.long": [1] * 1025,
        "adapter.lora.task_name": "answerability",
        "tokenizer.ggml.tokens": ["a", "b"],
    }
    summary = adapter(tmp_path, changes=ours)
    assert summary.kind == "alora"
    assert summary.invocation == (5, 6)
    assert summary.invocation_text == "<|judge|>"
    assert summary.metadata == {
        **ADAPTER,
        **ours,
        "adapter.alora.invocation_tokens": (5, 6),
        "general.tags": ("rag", "judge"),
        "general.short": (1,) * 1024,
        "general.long": ArraySummary("uint32", 1025),
        "tokenizer.ggml.tokens": ArraySummary("string", 2),
    }
    assert summary.problems == ()


# ---- bases


def test_a_base_with_a_vocabulary(tmp_path: Path) -> None:
    path = tb.write_base(tmp_path / "tiny.gguf")
    summary = inspect_gguf(path)
    assert isinstance(summary, BaseSummary)
    assert (summary.kind, summary.architecture) == ("model", "llama")
    assert (summary.layers, summary.n_embd) == (tb.N_LAYER, tb.N_EMBD)
    assert (summary.heads, summary.kv_heads) == (tb.N_HEAD, tb.N_HEAD_KV)
    assert summary.vocabulary == Vocabulary(tb.N_VOCAB, "gpt2", "gpt-2", has_chat_template=False)
    assert summary.tied_output is False
    assert summary.split is None
    assert summary.problems == ()


def test_a_mixture_of_experts_with_attention_in_some_layers(tmp_path: Path) -> None:
    summary = base(
        tmp_path,
        {
            "general.architecture": "granitehybrid",
            "general.type": "model",
            "general.name": "Granite",
            "general.size_label": "32x1B",
            "granitehybrid.block_count": 4,
            "granitehybrid.attention.head_count": 12,
            "granitehybrid.attention.head_count_kv": [0, 4, 0, 0],
            "granitehybrid.context_length": 131072,
            "granitehybrid.expert_count": 64,
            "granitehybrid.expert_used_count": 6,
            "granitehybrid.vocab_size": 60,
            "tokenizer.chat_template": "{{ messages }}",
        },
    )
    assert (summary.name, summary.size_label) == ("Granite", "32x1B")
    assert (summary.heads, summary.kv_heads) == (12, (0, 4, 0, 0))
    assert (summary.experts, summary.experts_used) == (64, 6)
    assert summary.context_length == 131072
    assert summary.n_embd is None
    assert summary.vocabulary == Vocabulary(60, None, None, has_chat_template=True)
    assert summary.tied_output is True
    assert summary.types == (TypeTotal("F16", 1, 2048, 4096),)
    assert summary.problems == ()


def test_the_embedding_tells_the_vocabulary_where_nothing_else_does(tmp_path: Path) -> None:
    summary = base(tmp_path, {"general.architecture": "llama"})
    assert summary.vocabulary == Vocabulary(64, None, None, has_chat_template=False)
    summary = base(tmp_path, {"general.architecture": "llama"}, {"x": ("F32", (1,))})
    assert summary.vocabulary is None
    assert summary.tied_output is None


def test_parts_of_a_split_model(tmp_path: Path) -> None:
    parts = {"split.count": (ValueType.UINT16, 3), "split.tensors.count": (ValueType.INT32, 291)}
    first = {"general.architecture": "llama", "split.no": (ValueType.UINT16, 0), **parts}
    summary = base(tmp_path, first)
    assert summary.split == Split(part=1, n_parts=3, n_tensors=291)
    assert summary.tied_output is None  # another part may hold output.weight
    assert summary.problems == ()
    later = base(tmp_path, {"split.no": (ValueType.UINT16, 2), **parts})
    assert later.split == Split(part=3, n_parts=3, n_tensors=291)
    assert (later.kind, later.architecture, later.problems) == ("model", None, ())
    alone = base(tmp_path, {**first, "split.count": (ValueType.UINT16, 1)})
    assert alone.split is None
    assert base(tmp_path, parts).split is None


OTHERS: dict[str, tuple[str, dict[str, Any], Tensors]] = {
    "mmproj": ("mmproj", {"general.architecture": "clip", "general.type": "mmproj"}, {}),
    "older mmproj": ("mmproj", {"general.architecture": "clip"}, {}),
    "imatrix": (
        "imatrix",
        {"general.type": "imatrix", "imatrix.chunk_count": 5, "imatrix.datasets": ["wiki.txt"]},
        {"blk.0.attn_q.weight.in_sum2": ("F32", (32, 1))},
    ),
    "vocabulary": (
        "vocabulary",
        {"general.architecture": "llama", "tokenizer.ggml.tokens": ["a", "b"]},
        {},
    ),
    "unheard-of": ("psyche", {"general.type": "psyche"}, {}),
}


@pytest.mark.parametrize("case", OTHERS)
def test_files_of_other_kinds(case: str, tmp_path: Path) -> None:
    kind, metadata, tensors = OTHERS[case]
    summary = base(tmp_path, metadata, tensors)
    assert summary.kind == kind
    assert set(summary.metadata) == set(metadata)
    assert summary.problems == ()


# ---- what it costs, and damage


def large_base(folder: Path) -> Path:
    metadata = {
        "general.architecture": "llama",
        "llama.attention.head_count_kv": [8, 0, 8],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [f"token{i}" for i in range(N_VOCAB)],
        "tokenizer.ggml.token_type": [1] * N_VOCAB,
    }
    return write(folder, metadata, {"token_embd.weight": ("F16", (1, N_VOCAB + 64))})


def test_a_vocabulary_is_counted_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def note(header: GGUFHeader, key: str) -> memoryview:
        read.append(key)
        return original(header, key)

    original = GGUFHeader.array_bytes
    monkeypatch.setattr(GGUFHeader, "array_bytes", note)
    summary = inspect_gguf(large_base(tmp_path))
    assert isinstance(summary, BaseSummary)
    assert summary.vocabulary == Vocabulary(N_VOCAB, "gpt2", None, has_chat_template=False)
    assert summary.metadata["tokenizer.ggml.tokens"] == ArraySummary("string", N_VOCAB)
    assert set(read) == {"llama.attention.head_count_kv"}


def test_needs_neither_numpy_nor_gguf(tmp_path: Path) -> None:
    code = (
        "import sys; from alora_gguf.gguf.inspection import inspect_gguf;"
        "print(inspect_gguf(sys.argv[1]).kv_heads);"
        "print([m for m in ('numpy', 'gguf', 'llama_cpp', 'yaml', 'click') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(large_base(tmp_path))], capture_output=True, text=True
    )
    assert run.stdout.splitlines() == ["(8, 0, 8)", "[]"], run.stderr


def test_to_dict_is_json(tmp_path: Path) -> None:
    summary = adapter(
        tmp_path,
        changes={
            "adapter.lora.alpha": float("nan"),
            "adapter.alora.invocation_tokens": [1, 2],
            "general.numbers": [1.0, float("-inf")],
            "general.long": [1] * 2000,
        },
    )
    found = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert found == summary.to_dict()
    assert found["path"] == str(tmp_path / "file.gguf")
    assert found["alpha"] == "nan"
    assert found["invocation"] == [1, 2]
    assert found["metadata"]["general.numbers"] == [1.0, "-inf"]
    assert found["metadata"]["general.long"] == {"array_of": "uint32", "count": 2000}
    assert found["targets"][0]["layers"] == [0]
    assert list(found)[-2:] == ["metadata", "problems"]


def test_truncated_anywhere_is_an_error(tmp_path: Path) -> None:
    case = sound_case(tmp_path)
    case.convert()
    data = case.out.read_bytes()
    assert len(data) > 2 * 4096
    for size in {*range(0, len(data), 4096), *range(1, len(data), 997)}:
        case.out.write_bytes(data[:size])
        with pytest.raises(FileFormatError, match=r"out\.gguf: .*(truncated|empty)"):
            inspect_gguf(case.out)


def test_damage_is_described_or_refused(tmp_path: Path) -> None:
    """Some files of which one to three bytes of the header were changed."""
    path, rng = tmp_path / "file.gguf", random.Random(7)
    metadata = {**ADAPTER, "adapter.alora.invocation_tokens": [1, 2], "general.tags": ["a"]}
    data = gguf_bytes(
        metadata, {**lora("blk.1.attn_q", 32, 32), **lora("token_embd", 8, 8, kind="F32")}
    )
    described, messages = 0, []
    for _ in range(1000):
        copy = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            copy[rng.randrange(600)] = rng.randrange(256)
        path.write_bytes(copy)
        try:
            json.dumps(inspect_gguf(path).to_dict(), allow_nan=False)
            described += 1
        except FileFormatError as error:
            messages.append(str(error))
    assert described > 50
    assert messages
    assert all(message.startswith(f"{path}: ") for message in messages)
