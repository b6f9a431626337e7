"""Converted tensors: equal to upstream's converter where it is right, and to float64 elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.convert import convert_adapter
from numpy.typing import NDArray

from alora_gguf.gguf.header import GGUFHeader, read_header
from tests.support.gguf_bytes import tensor_array
from tests.support.peft_files import BLOCK, MODULES, N_EMBD, N_VOCAB, PREFIX, RANK, Case
from tests.support.peft_oracle import TinyAdapter, make_adapter
from tests.support.stock_convert import Request, stock_convert
from tests.support.tiny_models import tiny_model

# the families, and for each the targets, that upstream's converter can do and gets right
STOCK = {
    **dict.fromkeys(
        ("llama", "mistral", "granite", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2",
         "smollm3", "starcoder2"),
        "all-linear",
    ),
    **dict.fromkeys(("mixtral", "granitemoe", "qwen2moe", "qwen3moe"), "attention"),
}  # fmt: skip


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TinyAdapter, Path]]:
    """Adapters by PEFT and what upstream's converter makes of them, all in one run of it."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("stock")
    out: dict[str, tuple[TinyAdapter, Path]] = {}
    requests = []
    cases: list[tuple[str, str, str, dict[str, Any]]] = [
        (f"{family} f32", family, "f32", {"targets": targets}) for family, targets in STOCK.items()
    ]
    cases += [
        ("llama f16", "llama", "f16", {"targets": "all-linear", "seed": 1}),
        ("llama lora", "llama", "f32", {"targets": "attention", "invocation": None}),
        ("llama q8_0", "llama", "q8_0", {"targets": "all-linear", "rank": 32}),
    ]
    for name, family, outtype, options in cases:
        model = tiny_model(family)
        directory = folder / name.replace(" ", "-")
        adapter = make_adapter(model, directory, **{"invocation": [7, 8], **options})
        target = folder / f"{directory.name}.gguf"
        requests.append(Request(directory, model.directory, target, outtype))
        out[name] = (adapter, target)
    stock_convert(requests)
    return out


def ours(adapter: TinyAdapter, out: Path, outtype: str) -> GGUFHeader:
    convert_adapter(adapter.directory, adapter.model.gguf, out, outtype=outtype)
    return read_header(out)


@pytest.mark.parametrize(
    "name", [*(f"{f} f32" for f in STOCK), "llama f16", "llama lora", "llama q8_0"]
)
def test_equals_upstreams_converter(
    stock: dict[str, tuple[TinyAdapter, Path]], name: str, tmp_path: Path
) -> None:
    adapter, path = stock[name]
    outtype = "f32" if name.endswith("lora") else name.split()[1]
    expected, got = read_header(path), ours(adapter, tmp_path / "o.gguf", outtype)
    assert set(got.tensors) == set(expected.tensors)
    for tensor, info in expected.tensors.items():
        assert got.tensors[tensor].shape == info.shape
        assert got.tensors[tensor].type == info.type
        assert got.tensor_data(tensor) == expected.tensor_data(tensor)
    for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
        assert got.metadata[key] == expected.metadata[key]
        assert got.types[key] == expected.types[key]
    key = "adapter.alora.invocation_tokens"
    assert (key in got.metadata) == (key in expected.metadata)
    if key in got.metadata:
        np.testing.assert_array_equal(got.array(key), expected.array(key))


def delta(header: GGUFHeader, target: str) -> NDArray[np.float64]:
    """The change of a weight [out, in] as llama.cpp computes it: alpha/rank · B·A."""
    a = tensor_array(header, f"{target}.weight.lora_a").astype(np.float64)
    b = tensor_array(header, f"{target}.weight.lora_b").astype(np.float64)
    alpha = header.metadata["adapter.lora.alpha"]
    assert isinstance(alpha, float)
    change: NDArray[np.float64] = alpha / a.shape[0] * (b @ a)
    return change


def unpermuted(rows: NDArray[np.float64], heads: int) -> NDArray[np.float64]:
    """Back to transformers' order, row by row: 2i came from i, 2i + 1 from i + half."""
    size = rows.shape[0] // heads
    out = np.empty_like(rows)
    for row in range(rows.shape[0]):
        head, i = divmod(row, size)
        out[head * size + i // 2 + (size // 2) * (i % 2)] = rows[row]
    return out


SCALES: dict[str, tuple[dict[str, Any], Callable[[str], float]]] = {
    "plain": ({}, lambda module: 2.0),
    "rslora": ({"use_rslora": True}, lambda module: 8 / math.sqrt(4)),
    "alpha missing": ({"lora_alpha": None}, lambda module: 8 / 4),
    "odd alpha": ({"lora_alpha": 0.1}, lambda module: 0.1 / 4),
    "negative alpha": ({"lora_alpha": -3}, lambda module: -3 / 4),
    "alpha_pattern": (
        {"alpha_pattern": {"q_proj": 5, r"layers\.1\.mlp\.up_proj": 7.5, "_proj": 3}},
        lambda module: (
            (5 if "q_proj" in module else 7.5 if module == "model.layers.1.mlp.up_proj" else 8) / 4
        ),
    ),
    "whole name": (
        {"alpha_pattern": {"model.layers.0.self_attn.k_proj": 1}, "use_rslora": True},
        lambda module: (1 if module == "model.layers.0.self_attn.k_proj" else 8) / 2,
    ),
}


@pytest.mark.parametrize("name", SCALES)
def test_every_scale_is_folded_once(case: Case, name: str) -> None:
    fields, scale = SCALES[name]
    case.config |= fields
    case.convert()
    header = read_header(case.out)
    heads = {"attn_q": 4, "attn_k": 2}
    for layer in range(2):
        for module, tensor in MODULES.items():
            full = f"model.layers.{layer}.{module}"
            a = case.tensors[f"{PREFIX}{full}.lora_A.weight"].astype(np.float64)
            b = case.tensors[f"{PREFIX}{full}.lora_B.weight"].astype(np.float64)
            got = delta(header, f"blk.{layer}.{tensor}")
            if tensor in heads:
                got = unpermuted(got, heads[tensor])
            expected = scale(full) * (b @ a)
            # one rounding of B to float32 is all that may differ
            bound = 2.0**-24 * abs(scale(full)) * (np.abs(b) @ np.abs(a)) + 1e-12
            assert (np.abs(got - expected) <= bound).all(), full


def test_rank_pattern(case: Case) -> None:
    case.config |= {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 6}}
    for layer in range(2):
        case.add(f"model.layers.{layer}.self_attn.v_proj", *BLOCK["attn_v"], rank=2)
    report = case.convert()
    assert report.ranks == (2, RANK)
    assert report.folded == 2
    module = f"{PREFIX}model.layers.1.self_attn.v_proj"
    a, b = (case.tensors[f"{module}.lora_{k}.weight"].astype(np.float64) for k in "AB")
    np.testing.assert_allclose(
        delta(read_header(case.out), "blk.1.attn_v"), 6 / 2 * (b @ a), rtol=1e-5, atol=1e-6
    )


def test_qwen_keeps_the_order_of_heads(case: Case) -> None:
    from tests.support.peft_files import write_base

    write_base(case.base, architecture="qwen2")
    case.convert()
    header = read_header(case.out)
    np.testing.assert_array_equal(
        tensor_array(header, "blk.0.attn_q.weight.lora_b"),
        case.tensors[f"{PREFIX}model.layers.0.self_attn.q_proj.lora_B.weight"],
    )


def test_embedding_and_head_of_an_untied_base(case: Case) -> None:
    del case.config["alora_invocation_tokens"]
    case.add("lm_head", N_EMBD, N_VOCAB)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((RANK, N_VOCAB)).astype(np.float32)
    b = rng.standard_normal((N_EMBD, RANK)).astype(np.float32)
    case.tensors[f"{PREFIX}model.embed_tokens.lora_embedding_A"] = a
    case.tensors[f"{PREFIX}model.embed_tokens.lora_embedding_B"] = b
    # PEFT saves the untouched embeddings along with such an adapter
    case.tensors[f"{PREFIX}model.embed_tokens.base_layer.weight"] = np.zeros((N_VOCAB, N_EMBD))
    report = case.convert()
    assert len(report.warnings) == 1
    assert "is taken to equal the base's token_embd.weight" in report.warnings[0]
    header = read_header(case.out)
    # llama.cpp picks a token's row of A, so that A stands [vocab, r]
    assert header.tensors["token_embd.weight.lora_a"].shape == (RANK, N_VOCAB)
    assert header.tensors["token_embd.weight.lora_b"].shape == (RANK, N_EMBD)
    np.testing.assert_array_equal(tensor_array(header, "token_embd.weight.lora_a"), a.T)
    np.testing.assert_array_equal(tensor_array(header, "token_embd.weight.lora_b"), b)
    assert header.tensors["output.weight.lora_b"].shape == (RANK, N_VOCAB)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sources_are_read_exactly(case: Case, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    case.write()
    tensors = {n: torch.from_numpy(v).to(getattr(torch, dtype)) for n, v in case.tensors.items()}
    save_file(tensors, case.source / "adapter_model.safetensors")
    convert_adapter(case.source, case.base, case.out, outtype="f32")
    name = "model.layers.0.mlp.up_proj.lora_A.weight"
    np.testing.assert_array_equal(
        tensor_array(read_header(case.out), "blk.0.ffn_up.weight.lora_a"),
        tensors[PREFIX + name].float().numpy(),
    )


def test_metadata(case: Case) -> None:
    report = case.convert(name="certainty")
    header = read_header(case.out)
    weights = (case.source / "adapter_model.safetensors").read_bytes()
    import hashlib

    assert header.metadata["general.name"] == "certainty"
    assert header.metadata["general.file_type"] == 0
    assert header.metadata["general.base_model.count"] == 1
    assert header.metadata["general.base_model.0.name"] == "model"
    assert header.metadata["general.base_model.0.organization"] == "org"
    assert header.metadata["general.base_model.0.repo_url"] == "https://huggingface.co/org/model"
    assert header.metadata["alora.source.peft_version"] == "0.21.2"
    assert header.metadata["alora.source.sha256"] == hashlib.sha256(weights).hexdigest()
    assert report.source_sha256 == header.metadata["alora.source.sha256"]
    assert list(header.array("adapter.alora.invocation_tokens")) == [7, 8]
    assert report.nbytes == case.out.stat().st_size
    assert report.targets == dict.fromkeys(sorted(BLOCK), 2)
    assert report.to_dict()["out"] == str(case.out)


def test_the_same_input_gives_the_same_bytes(case: Case) -> None:
    case.convert(name="a")
    first = case.out.read_bytes()
    case.tensors = dict(reversed(case.tensors.items()))
    case.convert(name="a", overwrite=True)
    assert case.out.read_bytes() == first


def test_ggufs_own_reader_agrees(case: Case) -> None:
    import gguf

    case.convert(outtype="f16")
    header = read_header(case.out)
    reader = gguf.GGUFReader(case.out)
    assert [t.name for t in reader.tensors] == list(header.tensors)
    for tensor in reader.tensors:
        np.testing.assert_array_equal(tensor.data, tensor_array(header, tensor.name))
