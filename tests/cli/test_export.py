"""`alora-gguf export`: what it writes, says and refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.convert import convert_adapter, export_adapter

from alora_gguf import cli
from alora_gguf.errors import (
    AdapterFormatError,
    AdapterMismatchError,
    AloraError,
    ConvertError,
    InputError,
    UnsupportedAdapterError,
)
from alora_gguf.gguf.header import read_header
from tests.support.make_gguf import adapter_keys, make_gguf, rewritten
from tests.support.peft_files import BLOCK, MODULES, N_EMBD, RANK, Case, sound_case, write_base

CONTRACT = "model: ~\nresponse_format: ~\ntransformations: ~\n"


@pytest.fixture
def case(tmp_path: Path) -> Case:
    case = sound_case(tmp_path)
    case.write()
    (case.source / "io.yaml").write_text(CONTRACT)
    (case.source / "README.md").write_text("---\nlicense: apache-2.0\n---\n# It\n")
    case.convert()
    return case


def test_a_directory_as_peft_writes_it(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "back"
    assert cli.run(["export", str(case.out), str(out), "--base", str(case.base)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{out}: aLoRA for llama, 10.9 kB",
        "  14 modules of rank 4",
    ]
    assert json.loads((out / "adapter_config.json").read_text()) == {
        "alora_invocation_tokens": [7, 8],
        "alpha_pattern": {},
        "base_model_name_or_path": "org/model",
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "r": 4,
        "rank_pattern": {},
        "target_modules": sorted(path.rpartition(".")[2] for path in MODULES),
        "task_type": "CAUSAL_LM",
    }
    assert (out / "io.yaml").read_text() == CONTRACT
    from safetensors.numpy import load_file

    found = load_file(out / "adapter_model.safetensors")
    assert found.keys() == case.tensors.keys()
    for name, values in case.tensors.items():
        np.testing.assert_array_equal(found[name], values, name)
    again = convert_adapter(out, case.base, tmp_path / "again.gguf", outtype="f32", name="adapter")
    first, second = read_header(case.out), read_header(again.out)
    assert first.metadata["general.license"] == second.metadata["general.license"] == "apache-2.0"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter", "again.gguf", "back", "base.gguf", "out.gguf",
    ]  # fmt: skip


def test_some_layers_are_named_whole(case: Case, tmp_path: Path) -> None:
    case.tensors = {n: v for n, v in case.tensors.items() if "layers.0" in n or "q_proj" in n}
    case.convert(overwrite=True)
    export_adapter(case.out, case.base, tmp_path / "back")
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert "q_proj" in config["target_modules"]
    assert "model.layers.0.mlp.up_proj" in config["target_modules"]
    assert not {"mlp.up_proj", "up_proj"} & {*config["target_modules"]}


def test_what_has_no_place_is_told(case: Case, tmp_path: Path) -> None:
    other = rewritten(case.out, tmp_path / "other.gguf", {"mine.key": "x"})
    report = export_adapter(other, case.base, tmp_path / "back")
    assert report.warnings == ("PEFT's files have no place for mine.key; left out",)


def test_json(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(case.out), str(tmp_path / "back"), "--base", str(case.base)]
    assert cli.run([*arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["modules"], said["ranks"]) == ("alora", 14, [4])


def test_a_directory_that_is_there(case: Case, tmp_path: Path) -> None:
    for taken in (case.source, case.base):
        with pytest.raises(InputError, match=r"exists already; name a directory that does not"):
            export_adapter(case.out, case.base, taken)
    with pytest.raises(InputError, match=r"there is no directory .*none; create it first"):
        export_adapter(case.out, case.base, tmp_path / "none" / "back")
    (tmp_path / "empty").mkdir()
    assert export_adapter(case.out, case.base, tmp_path / "empty").modules == 14


@pytest.mark.skipif(os.name == "nt", reason="links and modes of Unix")
def test_a_link_a_mode_and_where_one_is(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir(mode=0o700)
    link.symlink_to(real)
    assert export_adapter(case.out, case.base, link).modules == 14
    assert (real / "adapter_config.json").is_file()
    assert real.stat().st_mode & 0o777 == 0o700
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="is where you are"):
        export_adapter(case.out, case.base, ".")


def adapter(path: Path, target: str, a: tuple[int, ...], b: tuple[int, ...], **keys: Any) -> Path:
    values = np.random.default_rng(1)
    tensors = {
        f"{target}.lora_a": values.standard_normal(a, np.float32),
        f"{target}.lora_b": values.standard_normal(b, np.float32),
    }
    return make_gguf(path, adapter_keys(**keys), tensors)


Q_PROJ = ("blk.0.attn_q.weight", (RANK, N_EMBD), (N_EMBD, RANK))


def test_a_file_without_alpha_has_the_scale_1(case: Case, tmp_path: Path) -> None:
    file = adapter(tmp_path / "a.gguf", *Q_PROJ, alpha=None)
    export_adapter(file, case.base, tmp_path / "back")
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == RANK


REFUSED: list[tuple[tuple[str, tuple[int, ...], tuple[int, ...]], type[AloraError], str]] = [
    (("blk.0.attn_q.weight", (RANK, 8), (N_EMBD, RANK)), AdapterMismatchError,
     r"'blk.0.attn_q.weight' is \[8, 16\] in the adapter, but \[16, 16\] in"),
    (("blk.7.attn_q.weight", (RANK, 16), (N_EMBD, RANK)), AdapterMismatchError, "but not there in"),
    (("blk.0.attn_norm.weight", (RANK, 16), (16, RANK)), UnsupportedAdapterError,
     "'blk.0.attn_norm.weight' is no module of llama in transformers"),
]  # fmt: skip


@pytest.mark.parametrize(("pair", "error", "message"), REFUSED)
def test_another_base(
    case: Case, tmp_path: Path, pair: Any, error: type[AloraError], message: str
) -> None:
    base = write_base(tmp_path / "b.gguf", block={**BLOCK, "attn_norm": (16, 16)})
    with pytest.raises(error, match=message):
        export_adapter(adapter(tmp_path / "a.gguf", *pair), base, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_another_architecture(case: Case, tmp_path: Path) -> None:
    other = write_base(tmp_path / "qwen.gguf", architecture="qwen2")
    with pytest.raises(AdapterMismatchError, match=r"for the architecture 'llama', but .* 'qwen2'"):
        export_adapter(case.out, other, tmp_path / "back")


def test_experts_that_no_module_can_have(tmp_path: Path) -> None:
    """Granite has one module for the gate and up projections, and so one A."""
    shape = {"ffn_gate_exps": (16, 24, 2), "ffn_up_exps": (16, 24, 2)}
    base = write_base(tmp_path / "b.gguf", architecture="granitemoe", block={**BLOCK, **shape})
    values = np.random.default_rng(1)
    tensors = {}
    for name in shape:
        tensors[f"blk.0.{name}.weight.lora_a"] = values.standard_normal((2, 4, 16), np.float32)
        tensors[f"blk.0.{name}.weight.lora_b"] = values.standard_normal((2, 24, 4), np.float32)
    file = make_gguf(tmp_path / "a.gguf", adapter_keys(), tensors, architecture="granitemoe")
    with pytest.raises(UnsupportedAdapterError, match=r"'blk\.0\.ffn_gate_exps\.weight' is no mod"):
        export_adapter(file, base, tmp_path / "back")


def experts_adapter(folder: Path, architecture: str, **keys: Any) -> tuple[Path, Path]:
    """An adapter for the experts' down projection, which is square, and its base."""
    block = {**BLOCK, "ffn_down_exps": (16, 16, 3)}
    base = write_base(folder / "b.gguf", architecture=architecture, block=block)
    values = np.random.default_rng(1)
    tensors = {
        "blk.0.ffn_down_exps.weight.lora_a": values.standard_normal((3, 4, 16), np.float32),
        "blk.0.ffn_down_exps.weight.lora_b": values.standard_normal((3, 16, 4), np.float32),
    }
    keys = {**adapter_keys(), **keys}
    return make_gguf(folder / "a.gguf", keys, tensors, architecture=architecture), base


@pytest.mark.parametrize("version", ["0.18.1", "0.21.2"])
@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss", "llama4"])
def test_square_experts_are_written_as_new_peft_does(
    tmp_path: Path, architecture: str, version: str
) -> None:
    """It takes llama4's [experts, in, out] for [experts, out, in], and has A and B swapped."""
    key = {"alora.source.peft_version": version}
    file, base = experts_adapter(tmp_path, architecture, **key)
    export_adapter(file, base, tmp_path / "back")
    again = convert_adapter(tmp_path / "back", base, tmp_path / "2.gguf", outtype="f32").out
    first, second = read_header(file), read_header(again)
    for name in first.tensors:
        assert bytes(first.tensor_data(name)) == bytes(second.tensor_data(name)), name
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "back" / "adapter_model.safetensors")
    side = "B" if architecture == "llama4" else "A"
    (values,) = (values for name, values in found.items() if f"lora_{side}" in name)
    written = np.frombuffer(bytes(first.tensor_data("blk.0.ffn_down_exps.weight.lora_a")), "<f4")
    assert np.array_equal(np.sort(values.ravel()), np.sort(written))


def test_what_llama_cpp_computes_otherwise(tmp_path: Path) -> None:
    file, base = experts_adapter(tmp_path, "gemma4")
    message = r"'blk\.0\.ffn_down_exps\.weight' cannot be exported for gemma4: llama\.cpp mult"
    with pytest.raises(UnsupportedAdapterError, match=message):
        export_adapter(file, base, tmp_path / "back")


def test_what_is_no_adapter(case: Case, tmp_path: Path) -> None:
    with pytest.raises(AdapterFormatError, match="expected 'adapter'"):
        export_adapter(case.base, case.base, tmp_path / "back")


def test_nothing_is_left_where_writing_fails(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alora_gguf.files.os.fsync", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConvertError, match="back: cannot be written: No space left on device"):
        export_adapter(case.out, case.base, tmp_path / "back")
    assert sorted(tmp_path.iterdir()) == before


def expert_case(folder: Path, architecture: str, modules: dict[str, tuple[int, int]]) -> Case:
    """An adapter with a module for each of three experts, of different ranks, as transformers 4 has
    them; one expert has none.
    """
    shapes = {
        "ffn_gate_exps": (16, 24, 3),
        "ffn_up_exps": (16, 24, 3),
        "ffn_down_exps": (24, 16, 3),
    }
    block = {**BLOCK, **shapes, "ffn_gate_inp": (16, 3)}
    case = Case(folder, write_base(folder / "b.gguf", architecture=architecture, block=block))
    case.config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "rank_pattern": {}}
    for layer in range(2):
        for module, (n_in, n_out) in modules.items():
            case.add(f"model.layers.{layer}.{module}", n_in, n_out)
    odd = [name for name in modules if ".experts.1." in name]
    for module in odd:
        name = f"model.layers.1.{module}"
        case.add(name, *modules[module], rank=2)
        case.config["rank_pattern"][name] = 2
    return case


EXPERTS = {
    "llama": ("block_sparse_moe", ("w1", "w3", "w2"), "block_sparse_moe.gate"),
    "qwen3moe": ("mlp", ("gate_proj", "up_proj", "down_proj"), "mlp.gate"),
    "lfm2moe": ("feed_forward", ("w1", "w3", "w2"), "feed_forward.gate"),
}


@pytest.mark.parametrize("architecture", EXPERTS)
def test_a_module_for_each_expert(tmp_path: Path, architecture: str) -> None:
    where, names, router = EXPERTS[architecture]
    modules = {router: (16, 3)}
    for name, shape in zip(names, ((16, 24), (16, 24), (24, 16)), strict=True):
        modules |= {f"{where}.experts.{i}.{name}": shape for i in (0, 1)}
    case = expert_case(tmp_path, architecture, modules)
    case.convert(name="it")
    out = tmp_path / "back"
    export_adapter(case.out, case.base, out)
    from safetensors.numpy import load_file

    found = load_file(out / "adapter_model.safetensors")
    assert {name: values.shape for name, values in found.items()} == {
        name: values.shape for name, values in case.tensors.items()
    }
    config = json.loads((out / "adapter_config.json").read_text())
    assert router.rpartition(".")[2] in config["target_modules"]
    assert "target_parameters" not in config
    assert config["rank_pattern"] == case.config["rank_pattern"]
    again = convert_adapter(out, case.base, tmp_path / "2.gguf", outtype="f32", name="it").out
    first, second = read_header(case.out), read_header(again)
    for name in first.tensors:
        assert bytes(first.tensor_data(name)) == bytes(second.tensor_data(name)), name
    assert first.metadata["adapter.lora.alpha"] == second.metadata["adapter.lora.alpha"]


def test_experts_of_mlx_become_modules(tmp_path: Path) -> None:
    from tests.support.mlx_files import experts, write_mlx

    case = expert_case(tmp_path, "qwen3moe", {})
    rng, tensors = np.random.default_rng(1), {}
    for name, shape in {"gate": (16, 24), "up": (16, 24), "down": (24, 16)}.items():
        for layer in range(2):
            tensors |= experts(
                rng, f"model.layers.{layer}.mlp.switch_mlp.{name}_proj", 3, *shape, 4
            )
    write_mlx(tmp_path / "mlx", tensors, rank=4, scale=2.0)
    convert_adapter(tmp_path / "mlx", case.base, case.out, outtype="f32", name="it")
    export_adapter(case.out, case.base, tmp_path / "back")
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert "mlp.experts.2.up_proj" in config["target_modules"]
    again = tmp_path / "2.gguf"
    convert_adapter(tmp_path / "back", case.base, again, outtype="f32", name="it")
    first, second = read_header(case.out), read_header(again)
    for name in first.tensors:
        assert bytes(first.tensor_data(name)) == bytes(second.tensor_data(name)), name
