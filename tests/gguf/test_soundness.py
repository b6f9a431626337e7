"""Bases that llama.cpp would end the process over: each of its asserts has a sentence of ours, and
a few hundred mutants of sound ones open or are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.gguf import soundness
from alora_gguf.gguf.base import BaseFile
from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.parser import nbytes_of
from tests.support import base_mutants, tiny_base
from tests.support.base_mutants import Parts, V
from tests.support.gguf_bytes import gguf_bytes
from tests.support.upstream import upstream_tree

# what is changed -> what is said; values are u32 unless typed
NUMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"block_count": 0}, "llama.block_count is 0, expected 1 to 512"),
    "too many layers": ({"block_count": 513}, "llama.block_count is 513, expected 1 to 512"),
    "more predicted than layers": (
        {"nextn_predict_layers": 3}, "llama.nextn_predict_layers is 3, expected at most the 2"),
    "too many experts": (
        {"expert_count": 1025, "expert_used_count": 2}, "llama.expert_count is 1025"),
    "no expert used": (
        {"expert_count": 4, "expert_used_count": 0}, "llama.expert_used_count is 0, expected 1"),
    "more used than there are": (
        {"expert_used_count": 2}, "llama.expert_used_count is 2, expected 0 to the 0"),
    "as many groups as experts": (
        {"expert_count": 4, "expert_used_count": 2, "expert_group_count": 4},
        "llama.expert_group_count is 4, expected less than the 4"),
    "groups of unequal size": (
        {"expert_count": 4, "expert_used_count": 2, "expert_group_count": 3,
         "expert_group_used_count": 1},
        "llama.expert_group_count is 3, which does not divide the 4 experts"),
    "no group used": (
        {"expert_count": 4, "expert_used_count": 2, "expert_group_count": 2},
        "llama.expert_group_used_count is 0, expected 1 to 1"),
    "part of a head rotated": (
        {"rope.dimension_count": 8}, "llama.rope.dimension_count is 8, expected the 16 of a head"),
    "keys longer than values": (
        {"attention.key_length": 32}, "llama.attention.key_length is 32 and value_length 16"),
    "keys longer in windows": (
        {"attention.key_length_swa": 32},
        "llama.attention.key_length_swa is 32 and value_length_swa 16"),
    "no heads": ({"attention.head_count": 0}, "llama.attention.head_count is 0 or missing"),
    "an unknown scaling": (
        {"rope.scaling.type": (V.STRING, "x")}, "llama.rope.scaling.type is 'x', expected one of"),
    "an unknown pooling": ({"pooling_type": 5}, "llama.pooling_type is 5, expected 0 to 4"),
    "a negative epsilon": (
        {"attention.layer_norm_rms_epsilon": (V.FLOAT32, -1e-5)},
        "llama.attention.layer_norm_rms_epsilon is -"),
    "an epsilon that is no number": (
        {"attention.layer_norm_rms_epsilon": (V.FLOAT32, float("nan"))},
        "llama.attention.layer_norm_rms_epsilon is nan"),
    "not causal": ({"attention.causal": (V.BOOL, False)}, "its attention is not causal"),
}  # fmt: skip


def changed(path: Path, **keys: Any) -> Path:
    """A tiny base with other values for keys of its architecture."""
    parts = Parts.read(tiny_base.write_base(path))
    for name, value in keys.items():
        parts.keys[f"llama.{name}"] = value if isinstance(value, tuple) else (V.UINT32, value)
    path.write_bytes(parts.encode())
    return path


@pytest.mark.parametrize("case", NUMBERS)
def test_a_number_that_upstream_asserts_on(case: str, tmp_path: Path) -> None:
    keys, said = NUMBERS[case]
    path = changed(tmp_path / "base.gguf", **keys)
    with pytest.raises(ag.ModelError, match=re.escape(said)) as error:
        ag.Model(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["I8", "I16", "I32", "I64", "F64", "Q8_1"])
def test_weights_that_no_kernel_multiplies(kind: str, tmp_path: Path) -> None:
    parts = Parts.read(tiny_base.write_base(tmp_path / "base.gguf"))
    number = int(gguf.GGMLQuantizationType[kind])
    shape = parts.tensors["blk.0.attn_q.weight"][1]
    data = bytes(nbytes_of(shape, number))
    parts.tensors["blk.0.attn_q.weight"] = number, shape, data
    path = tmp_path / "odd.gguf"
    path.write_bytes(parts.encode())
    with pytest.raises(ag.ModelError, match=f"tensor 'blk.0.attn_q.weight' is {kind}, which"):
        ag.Model(path)


def test_norms_are_f32(tmp_path: Path) -> None:
    path = tiny_base.write_base(
        tmp_path / "base.gguf",
        replace={"blk.0.attn_norm.weight": (np.ones(64, np.float16), None)},
    )
    with pytest.raises(ag.ModelError, match=r"'blk.0.attn_norm.weight' is F16, expected F32"):
        ag.Model(path)


def test_where_llama_cpp_computes_otherwise_than_transformers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = Parts.read(tiny_base.write_base(tmp_path / "base.gguf"))
    parts.keys["llama.rope.scaling.original_context_length"] = V.UINT32, 256
    parts.keys["llama.rope.scaling.type"] = V.STRING, "longrope"
    for kind in ("long", "short"):
        ones = np.ones(8, np.float32).tobytes()
        parts.tensors[f"rope_factors_{kind}.weight"] = 0, (8,), ones
    path = tmp_path / "long.gguf"
    path.write_bytes(parts.encode())
    assert [n for n, _ in BaseFile.read(path).departures] == [256]
    with ag.Model(path, n_ctx=256):
        assert not caplog.records
    with ag.Model(path, n_ctx=512):
        assert "chooses LongRoPE's factors by n_ctx" in caplog.text
    header = read_header(
        gguf_bytes(
            {"general.architecture": "phi3", "phi3.attention.sliding_window": 2047},
            {"x": ("F32", (32,))},
        )
    )
    ((n, how),) = soundness.departures(header)
    assert n == 2047
    assert "ignores this phi3's sliding window of 2047 tokens" in how


def test_a_layer_without_attention(tmp_path: Path) -> None:
    parts = Parts.read(tiny_base.write_base(tmp_path / "base.gguf"))
    for name in ("attn_q", "attn_k", "attn_v"):
        del parts.tensors[f"blk.1.{name}.weight"]
    path = tmp_path / "odd.gguf"
    path.write_bytes(parts.encode())
    with pytest.raises(ag.ModelError, match=r"neither 'blk.1.attn_qkv.weight' nor"):
        ag.Model(path)


def _vocabulary(path: Path, model: bytes, tokens: list[bytes] | None = None) -> Path:
    parts = Parts.read(tiny_base.write_base(path))
    parts.keys["tokenizer.ggml.model"] = V.STRING, model
    if tokens is not None:
        parts.put("tokenizer.ggml.tokens", tokens)
    path.write_bytes(parts.encode())
    return path


@pytest.mark.parametrize(
    ("twins", "said"),
    [((b"dog", b"dog"), "'dog'"), ((b"dog", b"dog\0s"), "'dog'"), ((b"", b"[EMPTY_3]"), "EMPTY")],
)
def test_two_tokens_alike(twins: tuple[bytes, bytes], said: str, tmp_path: Path) -> None:
    tokens = Parts.read(tiny_base.write_base(tmp_path / "x.gguf")).array("tokenizer.ggml.tokens")
    assert tokens is not None
    tokens[3], tokens[9] = twins
    path = _vocabulary(tmp_path / "base.gguf", b"gpt2", tokens)
    with pytest.raises(ag.ModelError, match=f"tokens 3 and 9 are both .*{said}"):
        ag.Model(path)


def test_several_empty_tokens_are_sound(tmp_path: Path) -> None:
    tokens = Parts.read(tiny_base.write_base(tmp_path / "x.gguf")).array("tokenizer.ggml.tokens")
    assert tokens is not None
    tokens[3] = tokens[9] = b""
    with ag.Model(_vocabulary(tmp_path / "base.gguf", b"gpt2", tokens), n_ctx=64):
        pass


def test_an_rwkv_vocabulary_that_would_be_read_for_ever(tmp_path: Path) -> None:
    n = tiny_base.N_VOCAB
    tokens = [b"\\x%02x" % i if i != 65 else b"Ab" for i in range(256)]
    tokens += [b"x%d" % i for i in range(n - 256)]
    path = _vocabulary(tmp_path / "base.gguf", b"rwkv", tokens)
    with pytest.raises(ag.ModelError, match="no token of byte 65 alone, with which others begin"):
        ag.Model(path)
    tokens[65] = b"A"
    with ag.Model(_vocabulary(path, b"rwkv", tokens), n_ctx=64) as model:
        assert len(model.tokenize("Abc")) == 3


def test_a_character_that_a_sentencepiece_vocabulary_cannot_write(tmp_path: Path) -> None:
    base = base_mutants.write_bases(tmp_path)[-1]
    with ag.Model(base, n_ctx=64) as model:
        assert model.tokenize("a 😊")
    parts = Parts.read(base)
    tokens = parts.array("tokenizer.ggml.tokens")
    assert tokens is not None
    parts.put("tokenizer.ggml.tokens", [t.replace(b"<0xF0>", b"zzz") for t in tokens])
    base.write_bytes(parts.encode())
    with ag.Model(base, n_ctx=64) as model:
        assert model.tokenize("a b é")
        with pytest.raises(ag.InputError, match="no token for '😊', nor for its bytes"):
            model.tokenize("a 😊")


def test_overrides_are_checked_too(tmp_path: Path) -> None:
    base = tiny_base.write_base(tmp_path / "base.gguf")
    for key, value in (("block_count", 0), ("rope.scaling.type", "x"), ("expert_count", 2000)):
        with pytest.raises(ag.ModelError, match=re.escape(f"llama.{key}")):
            ag.Llama(str(base), kv_overrides={f"llama.{key}": value}, n_ctx=64, verbose=False)
    keys = {"llama.rope.freq_base": 1e5}
    ag.Llama(str(base), kv_overrides=keys, n_ctx=64, verbose=False).close()


def test_the_tables_are_those_of_upstreams_asserts() -> None:
    source = upstream_tree() / "src"
    names = dict(
        re.findall(r'\{\s*(LLM_ARCH_\w+),\s*"([^"]+)"', (source / "llama-arch.cpp").read_text())
    )
    cases = re.findall(
        r"((?:case LLM_ARCH_\w+:\s*)+)\s*return new (llama_model_\w+)",
        (source / "llama-model.cpp").read_text(),
    )
    texts = {
        path: re.sub(r"//.*", "", path.read_text()) for path in (source / "models").glob("*.cpp")
    }
    graphs = dict(
        re.findall(
            r"struct (llama_model_\w+) : [^{]*\{(?:(?!\n\};).)*?using graph = (llama_model_\w+)::",
            (source / "models" / "models.h").read_text(),
            re.DOTALL,
        )
    )
    found: dict[str, set[str]] = {"whole": set(), "same": set(), "not causal": set()}
    graph_of = {
        model: text
        for text in texts.values()
        for model in re.findall(r"(llama_model_\w+)::graph(?:<[^>]*>)?::graph\(", text)
    }
    for several, model in cases:
        text = graph_of.get(graphs.get(model, model), "")
        own = next((t for t in texts.values() if f"{model}::load_arch_hparams" in t), "")
        for case in re.findall(r"LLM_ARCH_\w+", several):
            if "GGML_ASSERT(n_embd_head == n_rot)" in text:
                found["whole"].add(names[case])
            if re.search(r"GGML_ASSERT\(n_embd_head == hparams.n_embd_head_[kv]\(\)\)", text):
                found["same"].add(names[case])
            if re.search(r"causal_attn\s*=\s*false", own):
                found["not causal"].add(names[case])
    assert found["whole"] == soundness.WHOLE_HEADS
    assert found["same"] == soundness.SAME_HEADS
    assert found["not causal"] == soundness.NOT_CAUSAL
    limits = (source / "llama-hparams.h").read_text()
    assert f"LLAMA_MAX_LAYERS  {soundness.MAX_LAYERS}" in limits
    assert f"LLAMA_MAX_EXPERTS {soundness.MAX_EXPERTS}" in limits
