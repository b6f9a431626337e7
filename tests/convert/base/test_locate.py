"""Where the base's tensors and the adapter's modules are not one to one: what is written is, as
alpha/rank · B·A, the same change of the base's weight as PEFT's, to the last bit of float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.convert import ConversionReport

from alora_gguf.errors import AdapterMismatchError, FileFormatError
from alora_gguf.gguf.header import read_header
from tests.support.gguf_bytes import tensor_array
from tests.support.peft_files import (
    N_EMBD,
    N_FF,
    N_HEADS,
    N_KV_HEADS,
    PREFIX,
    RANK,
    Case,
    write_base,
)

E = 3
WIDTH = N_EMBD // N_HEADS
KV = WIDTH * N_KV_HEADS
ATTENTION = "model.layers.0.self_attn"
EXPERTS = "model.layers.0.mlp.experts"
FUSED = {"attn_qkv": (N_EMBD, N_EMBD + 2 * KV), "attn_output": (N_EMBD, N_EMBD)}
SINGLE = {
    "ffn_gate_exps": (N_EMBD, N_FF, E),
    "ffn_up_exps": (N_EMBD, N_FF, E),
    "ffn_down_exps": (N_FF, N_EMBD, E),
}
JOINED = {"ffn_gate_up_exps": (N_EMBD, 2 * N_FF, E), "ffn_down_exps": (N_FF, N_EMBD, E)}

Array = np.ndarray[Any, np.dtype[np.float64]]


def a_case(folder: Path, architecture: str, block: dict[str, tuple[int, ...]], **more: Any) -> Case:
    case = Case(folder, write_base(folder / "base.gguf", architecture=architecture, block=block))
    case.config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "peft_version": "0.21.2"} | more
    return case


def change(case: Case, module: str, scale: float) -> Array:
    """What a module's pair adds to its weight, [out, in]."""
    a, b = (case.tensors[f"{PREFIX}{module}.lora_{k}.weight"].astype(np.float64) for k in "AB")
    return scale * b @ a


def written(case: Case, target: str) -> Array:
    """What the file adds to a tensor: [out, in] or [experts, out, in]."""
    header = read_header(case.out)
    a, b = (tensor_array(header, f"{target}.weight.lora_{k}").astype(np.float64) for k in "ab")
    alpha = header.metadata["adapter.lora.alpha"]
    assert isinstance(alpha, float)
    return alpha / b.shape[-1] * b @ a


def neighbours(rows: Array, heads: int) -> Array:
    """Row i of a head's first half at 2i, of its second half at 2i + 1."""
    out = np.empty_like(rows)
    half = rows.shape[0] // heads // 2
    for head in range(heads):
        start = head * 2 * half
        out[start : start + 2 * half : 2] = rows[start : start + half]
        out[start + 1 : start + 2 * half : 2] = rows[start + half : start + 2 * half]
    return out


def packed(case: Case, name: str, n_in: int, n_out: int, *, swapped: bool = False) -> Array:
    """Adds the pair of a parameter with E experts and returns its changes, [experts, out, in].

    Written out as PEFT's documentation has it: A's rows expert by expert, B's columns rank by rank.
    """
    rng = np.random.default_rng(len(case.tensors))
    a = rng.standard_normal((E, RANK, n_in)).astype(np.float32)
    b = rng.standard_normal((E, n_out, RANK)).astype(np.float32)
    if swapped:
        first, second = b.transpose(0, 2, 1), a.transpose(0, 2, 1)
    else:
        first, second = a, b
    case.tensors[f"{PREFIX}{name}.lora_A.weight"] = first.reshape(E * RANK, -1).copy()
    case.tensors[f"{PREFIX}{name}.lora_B.weight"] = (
        second.transpose(1, 2, 0).reshape(second.shape[1], RANK * E).copy()
    )
    return b.astype(np.float64) @ a.astype(np.float64)


def close(found: Array, wanted: Array) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_separate_projections_into_a_fused_tensor(tmp_path: Path) -> None:
    case = a_case(tmp_path, "llama", FUSED, rank_pattern={"k_proj": 2}, alpha_pattern={"v_proj": 3})
    case.add(f"{ATTENTION}.q_proj", N_EMBD, N_EMBD)
    case.add(f"{ATTENTION}.k_proj", N_EMBD, KV, rank=2)
    case.add(f"{ATTENTION}.v_proj", N_EMBD, KV)
    report = case.convert()
    assert report.targets == {"attn_qkv": 1}
    assert report.ranks == (2 * RANK + 2,)
    wanted = [
        neighbours(change(case, f"{ATTENTION}.q_proj", 6 / RANK), N_HEADS),
        neighbours(change(case, f"{ATTENTION}.k_proj", 6 / 2), N_KV_HEADS),
        change(case, f"{ATTENTION}.v_proj", 3 / RANK),
    ]
    close(written(case, "blk.0.attn_qkv"), np.concatenate(wanted))


def test_one_projection_into_a_fused_tensor(tmp_path: Path) -> None:
    case = a_case(tmp_path, "qwen2", FUSED)
    case.add(f"{ATTENTION}.v_proj", N_EMBD, KV)
    case.convert()
    found = written(case, "blk.0.attn_qkv")
    assert not found[: N_EMBD + KV].any()
    close(found[N_EMBD + KV :], change(case, f"{ATTENTION}.v_proj", 6 / RANK))


def test_heads_wider_than_the_embedding_needs(tmp_path: Path) -> None:
    rows = (N_HEADS * 8, N_KV_HEADS * 8, N_KV_HEADS * 6)
    case = a_case(tmp_path, "qwen3", {})
    write_base(
        case.base,
        architecture="qwen3",
        block={"attn_qkv": (N_EMBD, sum(rows))},
        changes={"attention.key_length": 8, "attention.value_length": 6},
    )
    for name, n_out in zip("qkv", rows, strict=True):
        case.add(f"{ATTENTION}.{name}_proj", N_EMBD, n_out)
    case.convert()
    wanted = [change(case, f"{ATTENTION}.{name}_proj", 6 / RANK) for name in "qkv"]
    close(written(case, "blk.0.attn_qkv"), np.concatenate(wanted))


def test_a_fused_module_stays_whole_in_a_fused_tensor(tmp_path: Path) -> None:
    case = a_case(tmp_path, "phi3", FUSED)
    case.add(f"{ATTENTION}.qkv_proj", N_EMBD, N_EMBD + 2 * KV)
    assert case.convert().ranks == (RANK,)
    close(written(case, "blk.0.attn_qkv"), change(case, f"{ATTENTION}.qkv_proj", 6 / RANK))


def test_a_fused_module_is_shared_out_to_separate_tensors(tmp_path: Path) -> None:
    block = {"attn_q": (N_EMBD, N_EMBD), "attn_k": (N_EMBD, KV), "attn_v": (N_EMBD, KV)}
    case = a_case(tmp_path, "phi3", block)
    case.add(f"{ATTENTION}.qkv_proj", N_EMBD, N_EMBD + 2 * KV)
    assert case.convert().ranks == (RANK,)
    found = [written(case, f"blk.0.attn_{name}") for name in "qkv"]
    close(np.concatenate(found), change(case, f"{ATTENTION}.qkv_proj", 6 / RANK))


@pytest.mark.parametrize("block", [SINGLE, JOINED], ids=["separate", "joined"])
def test_an_adapter_of_each_expert(tmp_path: Path, block: dict[str, tuple[int, ...]]) -> None:
    case = a_case(tmp_path, "qwen3moe", block, rank_pattern={"experts.2.gate_proj": 2})
    gates = {e: f"{EXPERTS}.{e}.gate_proj" for e in (0, 2)}  # expert 1 has no adapter
    case.add(gates[0], N_EMBD, N_FF)
    case.add(gates[2], N_EMBD, N_FF, rank=2)
    up, down = f"{EXPERTS}.0.up_proj", f"{EXPERTS}.1.down_proj"
    case.add(up, N_EMBD, N_FF)
    case.add(down, N_FF, N_EMBD)
    case.convert()
    wanted = np.zeros((E, 2 * N_FF, N_EMBD))
    wanted[0, :N_FF] = change(case, gates[0], 6 / RANK)
    wanted[2, :N_FF] = change(case, gates[2], 6 / 2)
    wanted[0, N_FF:] = change(case, up, 6 / RANK)
    if block is JOINED:
        found = written(case, "blk.0.ffn_gate_up_exps")
    else:
        names = ("blk.0.ffn_gate_exps", "blk.0.ffn_up_exps")
        found = np.concatenate([written(case, name) for name in names], axis=1)
    close(found, wanted)
    down_found = written(case, "blk.0.ffn_down_exps")
    close(down_found[1], change(case, down, 6 / RANK))
    assert not down_found[[0, 2]].any()


@pytest.mark.parametrize("block", [SINGLE, JOINED], ids=["separate", "joined"])
@pytest.mark.parametrize("swapped", [False, True], ids=["PEFT 0.21", "PEFT 0.18"])
def test_parameters_with_all_experts(
    tmp_path: Path, block: dict[str, tuple[int, ...]], swapped: bool
) -> None:
    case = a_case(
        tmp_path,
        "qwen3moe",
        block,
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        alpha_pattern={"experts.down_proj": 3},
    )
    gate_up = packed(case, f"{EXPERTS}.base_layer", N_EMBD, 2 * N_FF, swapped=swapped)
    down = packed(case, EXPERTS, N_FF, N_EMBD, swapped=swapped)
    report = case.convert()
    assert report.ranks == (RANK,)
    if block is JOINED:
        found = written(case, "blk.0.ffn_gate_up_exps")
    else:
        names = ("blk.0.ffn_gate_exps", "blk.0.ffn_up_exps")
        found = np.concatenate([written(case, name) for name in names], axis=1)
    close(found, 6 / RANK * gate_up)
    close(written(case, "blk.0.ffn_down_exps"), 3 / RANK * down)


@pytest.mark.parametrize(
    ("version", "swapped"),
    [("0.21.2", False), ("0.19.0", False), ("0.18.1", True), ("0.9", True), (None, True)],
)
def test_where_shapes_cannot_tell_the_version_does(
    tmp_path: Path, version: str | None, swapped: bool
) -> None:
    size = N_EMBD // 2  # gate and up together are square
    case = a_case(
        tmp_path,
        "granitemoe",
        {"ffn_gate_exps": (N_EMBD, size, E), "ffn_up_exps": (N_EMBD, size, E)},
        target_parameters=["block_sparse_moe.input_linear.weight"],
        peft_version=version,
    )
    name = "model.layers.0.block_sparse_moe.input_linear"
    wanted = packed(case, name, N_EMBD, 2 * size, swapped=swapped)
    case.convert()
    names = ("blk.0.ffn_gate_exps", "blk.0.ffn_up_exps")
    found = np.concatenate([written(case, name) for name in names], axis=1)
    close(found, 6 / RANK * wanted)


def test_patterns_know_parameters_by_their_full_names(tmp_path: Path) -> None:
    case = a_case(
        tmp_path,
        "qwen3moe",
        {"ffn_gate_inp": (N_EMBD, E)},
        target_parameters=["gate.weight"],
        rank_pattern={"mlp.gate.weight": 2, "mlp.gate": 7},
        alpha_pattern={"gate": 9, r"layers\.0\.mlp\.gate\.weight": 5},
    )
    router = "model.layers.0.mlp.gate"
    case.add(router, N_EMBD, E, rank=2)
    case.convert()
    close(written(case, "blk.0.ffn_gate_inp"), change(case, router, 5 / 2))
    case.config["target_parameters"] = None  # the same tensors of a linear layer
    with pytest.raises(FileFormatError, match=r"rank 2, but adapter_config.json .* says 7"):
        case.convert(overwrite=True)


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("granite", ("ffn_gate", "ffn_up", "ffn_down")),
        ("granitehybrid", ("ffn_gate", "ffn_up", "ffn_down")),
        ("granitehybrid", ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")),
        ("granitemoe", ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")),
    ],
)
def test_granites_shared_mlp(tmp_path: Path, architecture: str, names: tuple[str, ...]) -> None:
    shapes = ((N_EMBD, N_FF), (N_EMBD, N_FF), (N_FF, N_EMBD))
    case = a_case(tmp_path, architecture, dict(zip(names, shapes, strict=True)))
    mlp = "model.layers.1.shared_mlp"
    case.add(f"{mlp}.input_linear", N_EMBD, 2 * N_FF)
    case.add(f"{mlp}.output_linear", N_FF, N_EMBD)
    case.convert()
    gate, up, down = (written(case, f"blk.1.{name}") for name in names)
    wanted = change(case, f"{mlp}.input_linear", 6 / RANK)
    close(np.concatenate([gate, up]), wanted)
    close(down, change(case, f"{mlp}.output_linear", 6 / RANK))


@pytest.mark.parametrize(
    "prefix", ["model.layers", "model.language_model.layers", "language_model.model.layers"]
)
def test_the_language_model_of_a_multimodal_one(tmp_path: Path, prefix: str) -> None:
    case = a_case(tmp_path, "gemma3", {"attn_q": (N_EMBD, N_EMBD)})
    case.add(f"{prefix}.1.self_attn.q_proj", N_EMBD, N_EMBD)
    report: ConversionReport = case.convert()
    assert report.targets == {"attn_q": 1}
    close(written(case, "blk.1.attn_q"), change(case, f"{prefix}.1.self_attn.q_proj", 6 / RANK))


def test_other_parts_of_a_multimodal_model_are_refused(tmp_path: Path) -> None:
    case = a_case(tmp_path, "gemma3", {"attn_q": (N_EMBD, N_EMBD)})
    case.add("model.vision_tower.encoder.layers.0.self_attn.q_proj", N_EMBD, N_EMBD)
    with pytest.raises(Exception, match=r"'model\.vision_tower.* cannot be converted for gemma3"):
        case.convert()


def test_two_spellings_of_one_module_are_refused(tmp_path: Path) -> None:
    case = a_case(tmp_path, "gemma3", {"attn_q": (N_EMBD, N_EMBD)})
    for prefix in ("model", "language_model.model"):
        case.add(f"{prefix}.layers.0.self_attn.q_proj", N_EMBD, N_EMBD)
    with pytest.raises(FileFormatError, match=r"both change 'blk.0.attn_q.weight'; keep the one"):
        case.convert()


@pytest.mark.parametrize("one", [0, E - 1])
def test_one_expert_and_all_of_them_are_refused(tmp_path: Path, one: int) -> None:
    case = a_case(tmp_path, "qwen3moe", SINGLE)
    packed(case, EXPERTS, N_EMBD, 2 * N_FF)
    case.add(f"{EXPERTS}.{one}.up_proj", N_EMBD, N_FF)
    with pytest.raises(FileFormatError, match=r"both change 'blk.0.ffn_up_exps.weight'"):
        case.convert()


def test_an_expert_that_the_base_has_not(tmp_path: Path) -> None:
    case = a_case(tmp_path, "qwen3moe", SINGLE)
    case.add(f"{EXPERTS}.3.gate_proj", N_EMBD, N_FF)
    with pytest.raises(AdapterMismatchError, match=r"'blk.0.ffn_gate_exps.weight' holds 3 experts"):
        case.convert()


def test_a_parameter_of_other_experts(tmp_path: Path) -> None:
    case = a_case(tmp_path, "qwen3moe", SINGLE)
    packed(case, EXPERTS, N_FF, N_EMBD)
    case.config["r"] = RANK + 1
    with pytest.raises(FileFormatError, match=r"has the rank 12, .* says 5 for each of 3 experts"):
        case.convert()
    packed(case, EXPERTS, N_FF + 1, N_EMBD)
    with pytest.raises(AdapterMismatchError, match="is it another base"):
        case.convert()


def test_a_fused_tensor_of_other_heads(tmp_path: Path) -> None:
    case = a_case(tmp_path, "llama", {"attn_qkv": (N_EMBD, N_EMBD + KV)})
    case.add(f"{ATTENTION}.q_proj", N_EMBD, N_EMBD)
    with pytest.raises(FileFormatError, match=r"has 24 rows, but .* need 16 \+ 8 \+ 8"):
        case.convert()


def test_a_family_that_has_no_such_module(tmp_path: Path) -> None:
    case = a_case(tmp_path, "granite", {"attn_q": (N_EMBD, N_EMBD)})
    case.add("model.layers.0.shared_mlp.input_linear", N_EMBD, 2 * N_FF)
    with pytest.raises(AdapterMismatchError, match=r"has no tensor 'blk.0.ffn_gate.weight'"):
        case.convert()
