"""`alora-gguf merge`: a merged model computes what the adapter does on its base, by our runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from alora_gguf import cli
from alora_gguf.analyse import merge
from alora_gguf.errors import (
    AdapterFormatError,
    AdapterMismatchError,
    AloraError,
    ConvertError,
    InputError,
    UnsupportedAdapterError,
)
from alora_gguf.gguf.header import read_header
from alora_gguf.verification.ggml import quantize_rows
from tests.support import tiny_base
from tests.support.make_gguf import adapter_keys, make_gguf, rewritten, token_ids
from tests.support.tiny_base import N_EMBD, N_FF, N_VOCAB

Kind = gguf.GGMLQuantizationType
RANK = 4


def write_lora(path: Path, *, size: float = 0.3, experts: int = 0, **keys: Any) -> Path:
    """A LoRA of an attention projection, an FFN one, and the output."""
    rng = np.random.default_rng(5)
    shapes: dict[str, tuple[int, int]] = {
        "blk.0.attn_q": (N_EMBD, N_EMBD),
        f"blk.1.ffn_down{'_exps' * bool(experts)}": (N_FF, N_EMBD),
        "output": (N_EMBD, N_VOCAB),
    }
    tensors = {}
    for name, (n_in, n_out) in shapes.items():
        stack = (experts,) if name.endswith("_exps") else ()
        a, b = rng.standard_normal((*stack, RANK, n_in)), rng.standard_normal((*stack, n_out, RANK))
        tensors[f"{name}.weight.lora_a"] = (a * n_in**-0.5).astype(np.float32)
        tensors[f"{name}.weight.lora_b"] = (b * size).astype(np.float32)
    return make_gguf(path, adapter_keys(8.0, **keys), tensors)


def quantized_base(path: Path, kind: Kind) -> Path:
    """A base whose FFN has rows of 256 values, as K quants need, quantized."""
    name = "blk.1.ffn_down.weight"
    base = tiny_base.write_base(path.with_name("plain.gguf"))
    header = read_header(base)
    # attn_q has rows of 64 values, which Q4_K cannot have
    weights: dict[str, Any] = {}
    for each in (name, "blk.0.attn_q.weight", "output.weight"):
        info = header.tensors[each]
        rows = np.frombuffer(header.tensor_data(each), np.float32).reshape(-1, info.shape[0])
        if info.shape[0] % gguf.GGML_QUANT_SIZES[kind][0]:
            continue
        nbytes = rows.size // gguf.GGML_QUANT_SIZES[kind][0] * gguf.GGML_QUANT_SIZES[kind][1]
        data = quantize_rows(rows, int(kind), nbytes)
        assert data is not None
        weights[each] = (np.frombuffer(data, np.uint8).reshape(len(rows), -1), kind)
    return rewritten(base, path, tensors=weights)


def test_f32_is_the_adapter(tmp_path: Path) -> None:
    base, lora = tiny_base.write_base(tmp_path / "b.gguf"), write_lora(tmp_path / "l.gguf")
    found = merge(base, lora, tmp_path / "m.gguf")
    assert found.types == {"F32": 3}
    assert found.cost is not None
    assert found.cost.n_tokens > 100
    assert found.cost.largest < 1e-4
    assert found.cost.kl < 1e-6
    assert found.cost.top_changed < 0.01
    assert found.cost.kl_adapter > 0.05
    assert_untouched(base, tmp_path / "m.gguf", 3)


def assert_untouched(base: Path, merged: Path, changed: int) -> None:
    """Every byte outside the changed tensors."""
    one, other = read_header(base), read_header(merged)
    assert one.entries == other.entries
    before, after = base.read_bytes(), merged.read_bytes()
    assert len(before) == len(after)
    differing = [n for n in one.tensors if one.tensor_data(n) != other.tensor_data(n)]
    assert len(differing) == changed
    spans = [(i.offset, i.offset + i.nbytes) for n, i in one.tensors.items() if n in differing]
    kept = np.ones(len(before), bool)
    for first, end in spans:
        kept[first:end] = False
    assert (np.frombuffer(before, "u1") == np.frombuffer(after, "u1"))[kept].all()


@pytest.mark.parametrize(
    ("kind", "kl"),
    [(Kind.F16, 1e-5), (Kind.BF16, 1e-3), (Kind.Q8_0, 1e-3), (Kind.Q4_0, 0.1), (Kind.Q4_1, 0.1)],
)
def test_types(tmp_path: Path, kind: Kind, kl: float) -> None:
    base = quantized_base(tmp_path / "b.gguf", kind)
    found = merge(base, write_lora(tmp_path / "l.gguf"), tmp_path / "m.gguf")
    assert found.types == {kind.name: 3}
    assert found.cost is not None
    assert found.cost.kl < kl < found.cost.kl_adapter
    assert_untouched(base, tmp_path / "m.gguf", 3)


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K, Kind.Q2_K, Kind.IQ4_XS])
def test_k_quants_are_as_near_as_the_type_is(tmp_path: Path, kind: Kind) -> None:
    """W + dW as the type rounds it, by rows, against what numpy makes of it."""
    from gguf.quants import dequantize

    rng = np.random.default_rng(2)
    n_in, n_out = 512, 24
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    weights = rng.standard_normal((n_out, n_in)).astype(np.float32)
    data = quantize_rows(weights, int(kind), weights.size // block * nbytes)
    assert data is not None
    packed = np.frombuffer(data, np.uint8).reshape(n_out, -1)
    plain = tiny_base.write_base(tmp_path / "p.gguf")
    name = "blk.0.extra.weight"  # which no graph reads
    base = rewritten(plain, tmp_path / "b.gguf", tensors={name: (packed, kind)})
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, n_in), (n_out, 4)))
    lora = make_gguf(
        tmp_path / "l.gguf", adapter_keys(2.0), {f"{name}.lora_a": a, f"{name}.lora_b": b}
    )
    found = merge(base, lora, tmp_path / "m.gguf", measure=False)
    assert found.cost is None
    header = read_header(tmp_path / "m.gguf")
    stored = np.frombuffer(header.tensor_data(name), np.uint8).reshape(n_out, -1)
    wanted = dequantize(packed, kind) + 0.5 * b @ a
    again = quantize_rows(wanted.astype(np.float32), int(kind), packed.nbytes)
    error = np.abs(dequantize(stored, kind) - wanted).mean()
    assert again is not None
    ideal = np.abs(dequantize(np.frombuffer(again, np.uint8).reshape(n_out, -1), kind) - wanted)
    assert error <= 1.001 * ideal.mean()
    assert error < 0.5 * np.abs(0.5 * b @ a).mean()


def test_rows_are_merged_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, lora = tiny_base.write_base(tmp_path / "b.gguf"), write_lora(tmp_path / "l.gguf")
    merge(base, lora, tmp_path / "whole.gguf", measure=False)
    monkeypatch.setattr("alora_gguf.analyse.merging._CHUNK", 3 * N_EMBD)
    monkeypatch.setattr("alora_gguf.analyse.merging._COPY", 1000)
    merge(base, lora, tmp_path / "rows.gguf", measure=False)
    whole, rows = (
        np.frombuffer(read_header(tmp_path / name).tensor_data("blk.0.attn_q.weight"), np.float32)
        for name in ("whole.gguf", "rows.gguf")
    )
    np.testing.assert_allclose(whole, rows, rtol=1e-6, atol=1e-7)


def test_experts(tmp_path: Path) -> None:
    base = tiny_base.write_base(tmp_path / "b.gguf", experts=3)
    lora = write_lora(tmp_path / "l.gguf", experts=3)
    found = merge(base, lora, tmp_path / "m.gguf")
    assert found.cost is not None
    assert found.cost.largest < 1e-4
    assert found.cost.kl_adapter > 0.05


def test_an_embedding_of_its_own(tmp_path: Path) -> None:
    base, rng = tiny_base.write_base(tmp_path / "b.gguf"), np.random.default_rng(1)
    tensors = {
        "token_embd.weight.lora_a": rng.standard_normal((N_VOCAB, RANK)).astype(np.float32),
        "token_embd.weight.lora_b": rng.standard_normal((N_EMBD, RANK)).astype(np.float32),
    }
    lora = make_gguf(tmp_path / "l.gguf", adapter_keys(), tensors)
    found = merge(base, lora, tmp_path / "m.gguf")
    assert found.cost is not None
    assert found.cost.largest < 1e-4
    assert found.cost.kl_adapter > 0.05
    tied = tiny_base.write_base(tmp_path / "tied.gguf", tied=True)
    with pytest.raises(UnsupportedAdapterError, match=r"which .* uses as its output too; merged"):
        merge(tied, lora, tmp_path / "t.gguf")


def test_a_base_without_a_vocabulary(tmp_path: Path) -> None:
    base = tiny_base.write_base(tmp_path / "b.gguf", text=False)
    found = merge(base, write_lora(tmp_path / "l.gguf"), tmp_path / "m.gguf")
    assert found.cost is not None
    assert found.cost.largest < 1e-4


def refused(tmp_path: Path, base: Path, lora: Path, error: type[AloraError], message: str) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        merge(base, lora, tmp_path / "m.gguf")
    assert sorted(tmp_path.iterdir()) == before


def test_the_weights_are_those_of_numpy(tmp_path: Path) -> None:
    base, lora = tiny_base.write_base(tmp_path / "b.gguf"), write_lora(tmp_path / "l.gguf")
    merge(base, lora, tmp_path / "m.gguf", measure=False)
    name, factors = "blk.0.attn_q.weight", read_header(lora)
    w, merged = (
        np.frombuffer(read_header(path).tensor_data(name), "<f4").reshape(N_EMBD, N_EMBD)
        for path in (base, tmp_path / "m.gguf")
    )
    a = np.frombuffer(factors.tensor_data(f"{name}.lora_a"), "<f4").reshape(RANK, N_EMBD)
    b = np.frombuffer(factors.tensor_data(f"{name}.lora_b"), "<f4").reshape(N_EMBD, RANK)
    assert np.allclose(merged, w + 8.0 / RANK * (b @ a), rtol=1e-5, atol=1e-6)


def test_a_merge_that_costs_much_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, noted in ((Kind.Q4_0, True), (Kind.F32, False)):
        base = tiny_base.write_base(tmp_path / "b.gguf")
        base = base if kind is Kind.F32 else quantized_base(tmp_path / "q.gguf", kind)
        lora = write_lora(tmp_path / "l.gguf", size=0.003)
        cli.run(["merge", str(base), str(lora), "-o", str(tmp_path / "m.gguf"), "--force"])
        assert ("Note: requantizing undoes" in capsys.readouterr().err) is noted


def test_refusals(tmp_path: Path) -> None:
    base, lora = tiny_base.write_base(tmp_path / "b.gguf"), write_lora(tmp_path / "l.gguf")
    alora = write_lora(tmp_path / "a.gguf", adapter__alora__invocation_tokens=token_ids([1, 2]))
    refused(tmp_path, base, alora, UnsupportedAdapterError, "is an activated LoRA, on from its inv")
    other = tiny_base.write_swa(tmp_path / "swa.gguf")
    refused(tmp_path, other, lora, AdapterMismatchError, "made for the architecture 'llama', but")
    moe = write_lora(tmp_path / "moe.gguf", experts=3)
    refused(tmp_path, base, moe, AdapterMismatchError, "no tensor 'blk.1.ffn_down_exps.weight'")
    tied = tiny_base.write_base(tmp_path / "tied.gguf", tied=True)
    refused(tmp_path, tied, lora, AdapterMismatchError, "this base ties its output")
    refused(tmp_path, base, base, AdapterFormatError, "expected 'adapter'")
    loud = write_lora(tmp_path / "loud.gguf", size=1e30)
    scaled = rewritten(base, tmp_path / "s.gguf", tensors={"blk.0.attn_q.scale": np.ones(1, "f4")})
    refused(
        tmp_path, scaled, lora, UnsupportedAdapterError, "is multiplied by 'blk.0.attn_q.scale'"
    )
    half = quantized_base(tmp_path / "half.gguf", Kind.F16)
    refused(tmp_path, half, loud, ConvertError, "gives values that F16 cannot hold")


def test_types_that_need_an_importance_matrix(tmp_path: Path) -> None:
    """ggml would end the process."""
    packed = np.zeros((4, 66), np.uint8)
    name = "blk.0.extra.weight"
    base = rewritten(
        tiny_base.write_base(tmp_path / "p.gguf"),
        tmp_path / "b.gguf",
        tensors={name: (packed, Kind.IQ2_XXS)},
    )
    a, b = np.ones((4, 256), np.float32), np.ones((4, 4), np.float32)
    lora = make_gguf(
        tmp_path / "l.gguf", adapter_keys(), {f"{name}.lora_a": a, f"{name}.lora_b": b}
    )
    refused(tmp_path, base, lora, UnsupportedAdapterError, "is IQ2_XXS, which cannot be written")


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    base, lora = tiny_base.write_base(tmp_path / "b.gguf"), write_lora(tmp_path / "l.gguf")
    with pytest.raises(InputError, match="exists already"):
        merge(base, lora, base)
    for path in (base, lora):
        with pytest.raises(InputError, match="is one of the files to merge"):
            merge(base, lora, path, overwrite=True)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, lora = tiny_base.write_base(tmp_path / "b.gguf"), write_lora(tmp_path / "l.gguf")
    out = tmp_path / "m.gguf"
    arguments = ["merge", str(base), str(lora), "-o", str(out)]
    assert cli.run([*arguments, "-t", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{out}: ")
    assert lines[1] == "  changed  F32 x3"
    assert lines[2].startswith("  cost     KL ")
    assert cli.run(arguments) == 1
    assert "pass --force" in capsys.readouterr().err
    assert cli.run([*arguments, "--force", "--no-measure", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["types"], said["cost"], said["path"]) == ({"F32": 3}, None, str(out))
