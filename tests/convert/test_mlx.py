"""Adapters of mlx-lm: told apart from PEFT's by content, read exactly or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.convert import ConversionReport, Pick, convert_adapter, find_source

from alora_gguf.errors import (
    AdapterMismatchError,
    AloraError,
    FileFormatError,
    InputError,
    MissingFileError,
    UnsupportedAdapterError,
)
from alora_gguf.gguf.header import read_header
from tests.support.hub_repos import Hub, fetch_adapter
from tests.support.hub_server import HubServer
from tests.support.mlx_files import Array, delta, linear, write_mlx
from tests.support.peft_files import BLOCK, LAYERS, MODULES, N_EMBD, N_VOCAB, Case, write_base

RANK = 4
Q_PROJ = "model.layers.1.self_attn.q_proj"
V_PROJ = "model.layers.0.self_attn.v_proj"


def tensors() -> dict[str, Array]:
    rng, out = np.random.default_rng(3), dict[str, Array]()
    for layer in range(LAYERS):
        for module, tensor in MODULES.items():
            out |= linear(rng, f"model.layers.{layer}.{module}", *BLOCK[tensor], RANK)
    return out


def convert(folder: Path, **options: Any) -> ConversionReport:
    base = write_base(folder / "base.gguf")
    return convert_adapter(folder / "mlx", base, folder / "it.gguf", outtype="f32", **options)


def test_values_and_what_the_file_says(tmp_path: Path) -> None:
    weights = tensors()
    write_mlx(tmp_path / "mlx", weights, rank=RANK, scale=20.0)
    report = convert(tmp_path)
    assert (report.kind, report.ranks, report.alpha, report.folded) == ("lora", (RANK,), 80.0, 0)
    assert report.name == "mlx"
    header = read_header(report.out)
    assert header.metadata["general.base_model.0.organization"] == "mlx-community"
    a, b = (
        np.frombuffer(header.tensor_data(f"blk.0.attn_v.weight.lora_{side}"), np.float32)
        for side in "ab"
    )
    found = 80.0 / RANK * b.reshape(-1, RANK) @ a.reshape(RANK, -1)
    np.testing.assert_allclose(found, delta(weights, V_PROJ, 20.0), rtol=1e-5, atol=1e-5)


def test_an_odd_scale_and_a_small_one(tmp_path: Path) -> None:
    weights = tensors()
    for i, scale in enumerate((0.3, -1.7)):
        write_mlx(tmp_path / "mlx", weights, rank=RANK, scale=scale)
        report = convert(tmp_path, overwrite=i > 0)
        header = read_header(report.out)
        b = np.frombuffer(header.tensor_data("blk.0.attn_v.weight.lora_b"), np.float32)
        found = report.alpha / RANK * b.reshape(-1, RANK).astype(np.float64)
        np.testing.assert_allclose(found, scale * weights[f"{V_PROJ}.lora_b"].T, rtol=3e-7)


def test_checkpoints_beside_the_weights_are_ignored(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "mlx", tensors(), rank=RANK)
    (folder / "0000100_adapters.safetensors").write_bytes(b"not even a file of weights")
    assert find_source(folder).weights == folder / "adapters.safetensors"
    assert convert(tmp_path).written


def test_content_tells_which_weights_are_meant(case: Case) -> None:
    """PEFT's and mlx-lm's configuration have one name; both files of weights may be there."""
    case.write()
    (case.source / "adapters.safetensors").write_bytes(b"x")
    assert find_source(case.source).weights.name == "adapter_model.safetensors"
    write_mlx(case.source, tensors(), rank=RANK)
    assert find_source(case.source).weights.name == "adapters.safetensors"


def test_from_a_hub(tmp_path: Path, server: HubServer, hub: Hub) -> None:
    folder = write_mlx(tmp_path / "mlx", tensors(), rank=RANK)
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
    server.add("me/mlx", {**files, "0000100_adapters.safetensors": b"x" * 100})
    found = fetch_adapter("hf://me/mlx", Pick(), hub=hub)
    assert found.weights.read_bytes() == files["adapters.safetensors"]
    assert server.files_asked == ["adapter_config.json", "adapters.safetensors"]


# what mlx-lm may write into adapter_config.json, and what is said: lora_parameters, other options
CONFIGS: list[tuple[dict[str, Any], dict[str, Any], type[AloraError], str]] = [
    ({}, {"fine_tune_type": "dora"}, UnsupportedAdapterError,
     'fine_tune_type = "dora" is DoRA, .*--fine-tune-type lora, or merge .* mlx_lm.fuse'),
    ({}, {"fine_tune_type": "full"}, UnsupportedAdapterError, "is a whole fine-tuning"),
    ({}, {"fine_tune_type": "new"}, UnsupportedAdapterError, '"new" is not known here'),
    ({}, {"fine_tune_type": ["lora"]}, UnsupportedAdapterError, "is not known here"),
    ({}, {"lora_parameters": 8}, FileFormatError, "lora_parameters is 8, expected an object"),
    ({"rank": 0}, {}, FileFormatError, "lora_parameters.rank is 0, expected a positive integer"),
    ({"rank": 4.0}, {}, FileFormatError, "lora_parameters.rank is 4.0"),
    ({"rank": 8}, {}, FileFormatError, r"has the rank 4, but adapter_config.json .* says 8"),
    ({"scale": None}, {}, FileFormatError, "lora_parameters.scale is null, expected a finite nu"),
    ({"scale": float("nan")}, {}, FileFormatError, "lora_parameters.scale is NaN"),
    ({"scale": 0}, {}, UnsupportedAdapterError, "scale = 0 makes the adapter change nothing"),
    ({"scale": 3e38}, {}, FileFormatError, "scale is 3e\\+38"),
    ({"scale": 2e38}, {}, FileFormatError, "scale times rank"),
    ({"use_rslora": True}, {}, UnsupportedAdapterError, "use_rslora = true is unknown to this"),
    ({"alpha": 16}, {"num_layers": None, "lora_layers": 16}, UnsupportedAdapterError,
     "alpha = 16 was a factor alpha/rank of the scale in mlx-lm until June 2024"),
]  # fmt: skip


@pytest.mark.parametrize(("parameters", "changes", "error", "message"), CONFIGS)
def test_configurations_that_are_refused(
    tmp_path: Path,
    parameters: dict[str, Any],
    changes: dict[str, Any],
    error: type[AloraError],
    message: str,
) -> None:
    write_mlx(tmp_path / "mlx", tensors(), rank=RANK, parameters=parameters, changes=changes)
    with pytest.raises(error, match=message) as caught:
        convert(tmp_path)
    assert "adapter_config.json" in str(caught.value)
    assert not (tmp_path / "it.gguf").exists()


def test_the_alpha_that_later_versions_ignored(tmp_path: Path) -> None:
    write_mlx(tmp_path / "mlx", tensors(), rank=RANK, parameters={"alpha": 16})
    assert convert(tmp_path).alpha == 80.0


def without(name: str) -> dict[str, Array]:
    return {key: values for key, values in tensors().items() if key != name}


def zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


TENSORS: dict[str, tuple[dict[str, Array], type[AloraError], str]] = {
    "none": ({}, FileFormatError, "holds no LoRA tensors"),
    "half": (without(f"{Q_PROJ}.lora_b"), FileFormatError,
             f"module '{Q_PROJ}' has a lora_a but no lora_b"),
    "other half": (without(f"{Q_PROJ}.lora_a"), FileFormatError, "a lora_b but no lora_a"),
    "as in PEFT": ({**tensors(), f"{Q_PROJ}.lora_a": zeros(RANK, N_EMBD)}, FileFormatError,
                   r"has lora_a \[4, 16\] and lora_b \[4, 16\], expected \[in, r\]"),
    "a vector": ({**tensors(), f"{Q_PROJ}.lora_a": zeros(RANK)}, FileFormatError, "lora_a"),
    "no rank": ({f"{Q_PROJ}.lora_a": zeros(16, 0), f"{Q_PROJ}.lora_b": zeros(0, 16)},
                FileFormatError, "expected"),
    "no experts": ({f"{Q_PROJ}.lora_a": zeros(0, 4, 16), f"{Q_PROJ}.lora_b": zeros(0, 16, 4)},
                   FileFormatError, "expected"),
    "experts that differ": ({f"{Q_PROJ}.lora_a": zeros(2, 4, 16),
                             f"{Q_PROJ}.lora_b": zeros(3, 16, 4)}, FileFormatError, "expected"),
    "DoRA": ({**tensors(), f"{Q_PROJ}.m": zeros(N_EMBD)}, UnsupportedAdapterError,
             "q_proj.m' belongs to DoRA"),
    "whole": ({**tensors(), "model.norm.weight": zeros(N_EMBD)}, UnsupportedAdapterError,
              "'model.norm.weight' is a whole weight"),
    "quantized": ({**tensors(), f"{Q_PROJ}.lora_a_scales": zeros(1)}, UnsupportedAdapterError,
                  "is not one of mlx-lm's lora_a and lora_b"),
    "another base": ({**tensors(), f"{Q_PROJ}.lora_a": zeros(32, RANK)}, AdapterMismatchError,
                     "maps 16 to 16 values, but the adapter's module .* maps 32 to 16"),
    "unknown module": (linear(np.random.default_rng(0), "model.layers.0.x.y", 16, 16, RANK),
                       UnsupportedAdapterError, "module 'model.layers.0.x.y' cannot be converted"),
    "experts of none": (linear(np.random.default_rng(0), "model.layers.0.mlp.switch_mlp.up_proj",
                               16, 16, RANK), AdapterMismatchError, "no tensor 'blk.0.ffn_up_exps"),
    "all zero": ({name: 0 * values for name, values in tensors().items()}, AloraError,
                 "so the adapter changes nothing"),
    "not finite": ({**tensors(), f"{Q_PROJ}.lora_a": zeros(16, RANK) + np.float32(np.nan)},
                   FileFormatError, f"tensor '{Q_PROJ}.lora_a' has 64 values that are NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_weights_that_are_refused(tmp_path: Path, case: str) -> None:
    weights, error, message = TENSORS[case]
    write_mlx(tmp_path / "mlx", weights, rank=RANK)
    with pytest.raises(error, match=message):
        convert(tmp_path)
    assert not (tmp_path / "it.gguf").exists()


def test_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    """mlx-lm adapts it as the output as well; the two are one tensor."""
    embedding = linear(np.random.default_rng(0), "model.embed_tokens", N_VOCAB, N_EMBD, RANK)
    write_mlx(tmp_path / "mlx", embedding, rank=RANK)
    assert convert(tmp_path).targets == {"token_embd": 1}
    tied = write_base(tmp_path / "tied.gguf", tied=True)
    with pytest.raises(UnsupportedAdapterError, match="uses one tensor as embedding and as output"):
        convert_adapter(tmp_path / "mlx", tied, tmp_path / "tied-it.gguf")


def test_directories_that_will_not_do(tmp_path: Path, case: Case) -> None:
    folder = write_mlx(tmp_path / "mlx", tensors(), rank=RANK)
    weights = folder / "adapters.safetensors"
    weights.rename(folder / "0000100_adapters.safetensors")
    with pytest.raises(InputError, match=r"holds checkpoints of a training \(0000100_adapters"):
        convert(tmp_path)
    (folder / "0000100_adapters.safetensors").rename(folder / "adapters.npz")
    with pytest.raises(UnsupportedAdapterError, match=r"holds only adapters\.npz"):
        convert(tmp_path)
    (folder / "adapters.npz").rename(folder / "adapter_model.safetensors")
    with pytest.raises(UnsupportedAdapterError, match=r"its adapter_config.json is mlx-lm's, but"):
        convert(tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"mlx_lm.lora writes it beside adapter_config"):
        convert(tmp_path)
    case.write()
    (case.source / "adapter_model.safetensors").rename(case.source / "adapters.safetensors")
    with pytest.raises(UnsupportedAdapterError, match=r"its adapter_config.json is PEFT's, but"):
        convert_adapter(case.source, case.base, case.out)
    (case.source / "adapter_config.json").unlink()
    with pytest.raises(
        MissingFileError, match=r"holds adapter_config\.json and adapters\.safetens"
    ):
        convert_adapter(case.source, case.base, case.out)


def test_a_file_of_weights_that_is_damaged(tmp_path: Path) -> None:
    folder = write_mlx(tmp_path / "mlx", tensors(), rank=RANK)
    data = (folder / "adapters.safetensors").read_bytes()
    for size in (0, 7, 100, len(data) - 1):
        (folder / "adapters.safetensors").write_bytes(data[:size])
        with pytest.raises(FileFormatError, match=r"adapters\.safetensors: "):
            convert(tmp_path)
