"""A base known by its config.json is the base that its GGUF is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.convert import convert_adapter
from alora_gguf.convert.base.gguf import GGUFBase
from alora_gguf.convert.base.hf import HFBase
from alora_gguf.convert.base.hf_config import KINDS
from alora_gguf.convert.base.locate import Locator, Reading
from alora_gguf.convert.base.model import BaseModel

from alora_gguf.errors import AdapterMismatchError, FileFormatError, UnsupportedAdapterError
from alora_gguf.gguf.header import read_header
from tests.support.peft_files import LLAMA_CONFIG
from tests.support.peft_oracle import make_adapter
from tests.support.tiny_families import ALL_FAMILIES
from tests.support.tiny_models import TinyModel, tiny_model

pytest.importorskip("transformers")

LLAMA = LLAMA_CONFIG  # changed for each case
HYBRID: dict[str, Any] = {
    **LLAMA,
    "model_type": "granitemoehybrid",
    "layer_types": ["mamba", "attention"],
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "shared_intermediate_size": 96,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_n_heads": 8,
}
QWEN_MOE: dict[str, Any] = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}


def hf_base(folder: Path, config: dict[str, Any] | bytes) -> HFBase:
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "config.json").write_bytes(raw)
    return HFBase(folder)


def both(model: TinyModel) -> tuple[GGUFBase, HFBase]:
    return GGUFBase(read_header(model.gguf)), HFBase(model.directory)


def readings(base: BaseModel, module: str) -> list[Reading] | str:
    """What a module is in a base, or the error without the base's own name."""
    try:
        return Locator(base, "adapter").readings(module)
    except AdapterMismatchError as error:
        return str(error).removeprefix(base.label)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_says_of_itself_what_its_gguf_says(family: str) -> None:
    gguf, hf = both(tiny_model(family))
    assert hf.architecture == gguf.architecture
    assert hf.n_layers == gguf.n_layers
    assert hf.n_vocab == gguf.n_vocab
    assert hf.tied == gguf.tied
    assert hf.vocabulary_sha256 is None
    attention = [n for n in range(gguf.n_layers) if gguf.place(n, f"blk.{n}.attn_k") is not None]
    assert attention
    for layer in attention:
        assert hf.attention_rows(layer) == gguf.attention_rows(layer)
        for keys in (True, False):
            assert hf.n_heads(layer, keys=keys) == gguf.n_heads(layer, keys=keys)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_has_the_places_of_its_gguf_and_no_others(family: str) -> None:
    gguf, hf = both(tiny_model(family))
    table = gguf.family
    modules = [table.embedding, *([] if gguf.tied else ["lm_head"])]
    blocks = [f"{table.block}.{layer}" for layer in range(gguf.n_layers)]
    modules += [f"{block}.{inner}" for block in blocks for inner in table.modules]
    targets = set()
    for module in modules:
        found = readings(gguf, module)
        assert readings(hf, module) == found, module
        if not isinstance(found, str):
            targets |= {place.tensor for reading in found for place in reading.places}
    assert len(targets) >= 4 * gguf.n_layers
    for tensor, info in gguf.header.tensors.items():
        assert hf.shape(tensor) == (info.shape if tensor in targets else None), tensor
    assert hf.shape(f"blk.{gguf.n_layers}.attn_output.weight") is None


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_converts_to_the_same_bytes(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    adapter = make_adapter(model, tmp_path / "a", targets="all-linear", invocation=[7, 8])
    by_gguf = convert_adapter(adapter.directory, model.gguf, tmp_path / "gguf.gguf")
    by_hf = convert_adapter(adapter.directory, model.directory, tmp_path / "hf.gguf")
    assert by_hf.out.read_bytes() == by_gguf.out.read_bytes()
    assert by_hf.targets == by_gguf.targets


# gemma3 is the class of the whole multimodal model, with gemma3_text as its language model
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"gemma3"}))
def test_the_defaults_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """What a configuration leaves out, transformers' own class fills in."""
    import transformers

    sparse = {**QWEN_MOE, **HYBRID, "model_type": kind}
    for name in ("num_key_value_heads", "head_dim", "tie_word_embeddings"):
        sparse.pop(name, None)
    sparse |= {"n_embd": 64, "n_layer": 2, "n_head": 4, "num_local_experts": 4}
    sparse |= {"shared_expert_intermediate_size": 40}
    own = {key: value for key, value in sparse.items() if key != "model_type"}
    whole = transformers.AutoConfig.for_model(kind, **own).to_dict()
    (tmp_path / "whole").mkdir()
    known = hf_base(tmp_path / "whole", whole)
    guessed = hf_base(tmp_path, sparse)
    assert guessed.tied == known.tied == whole["tie_word_embeddings"]
    heads = whole.get("num_key_value_heads", 4)
    assert guessed.n_heads(1, keys=True) == known.n_heads(1, keys=True) == heads
    names = [f"blk.1.{name}.weight" for name in ("attn_q", "attn_qkv", "attn_k", "attn_output")]
    names += [f"blk.1.{name}.weight" for name in ("ffn_up", "ffn_up_exps", "ffn_up_shexp")]
    shapes = [guessed.shape(name) for name in names]
    assert shapes == [known.shape(name) for name in names]
    assert any(shapes)


def test_gemma3_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    """Its published multimodal configurations leave out heads and vocabulary too."""
    import transformers

    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240}
    base = hf_base(
        tmp_path, {"model_type": "gemma3", "text_config": {**text, "num_hidden_layers": 34}}
    )
    whole = transformers.Gemma3TextConfig()
    assert (base.architecture, base.n_layers, base.tied) == ("gemma3", 34, True)
    assert base.n_vocab == whole.vocab_size
    assert base.n_heads(0, keys=False) == whole.num_attention_heads
    width = whole.head_dim
    assert base.shape("blk.33.attn_q.weight") == (2560, 8 * width)
    assert base.shape("blk.33.attn_k.weight") == (2560, 4 * width)


def test_gemma3_has_no_rows_without_a_token(tmp_path: Path) -> None:
    config = {**LLAMA, "model_type": "gemma3_text", "num_key_value_heads": 2}
    assert hf_base(tmp_path, config).n_vocab == 50
    vocabulary = {f"t{i}": i for i in range(40)}
    added = [{"id": 40 + i, "content": f"<a{i}>"} for i in range(3)]
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added}))
    base = hf_base(tmp_path, config)
    assert (base.n_vocab, base.shape("token_embd.weight")) == (43, (64, 43))
    (tmp_path / "tokenizer.model").write_bytes(b"read by upstream instead")
    assert hf_base(tmp_path, config).n_vocab == 50
    (tmp_path / "tokenizer.model").unlink()
    tokenizer.write_text("no tokenizer")
    assert hf_base(tmp_path, config).n_vocab == 50
    tokenizer.write_text(json.dumps({"model": {"vocab": {f"t{i}": i for i in range(60)}}}))
    assert hf_base(tmp_path, config).n_vocab == 50


@pytest.mark.parametrize(
    "changes", [{}, {"decoder_sparse_step": 2}, {"mlp_only_layers": [1, 4]}, {"num_experts": 0}]
)
def test_dense_layers_of_a_qwen_with_experts(changes: dict[str, Any], tmp_path: Path) -> None:
    import torch
    import transformers

    config = {**QWEN_MOE, **changes}
    with torch.device("meta"):
        fields = {key: value for key, value in config.items() if key != "model_type"}
        auto: Any = transformers.AutoModelForCausalLM
        model = auto.from_config(transformers.Qwen3MoeConfig(**fields))
    base = hf_base(tmp_path, config)
    for layer in range(6):
        sparse = hasattr(model.model.layers[layer].mlp, "experts")
        assert base.shape(f"blk.{layer}.ffn_up_exps.weight") == ((64, 48, 4) if sparse else None)
        assert base.shape(f"blk.{layer}.ffn_gate_inp.weight") == ((64, 4) if sparse else None)
        assert base.shape(f"blk.{layer}.ffn_up.weight") == (None if sparse else (64, 96))


def test_experts_under_either_name(tmp_path: Path) -> None:
    since_5 = {**QWEN_MOE, "num_local_experts": 4}
    del since_5["num_experts"]
    shape = hf_base(tmp_path, since_5).shape("blk.0.ffn_up_exps.weight")
    assert shape == hf_base(tmp_path, QWEN_MOE).shape("blk.0.ffn_up_exps.weight") == (64, 48, 4)


def test_layer_types_under_either_name(tmp_path: Path) -> None:
    for types in (["mamba", "attention"], ["linear_attention", "full_attention"]):
        base = hf_base(tmp_path, {**HYBRID, "layer_types": types})
        assert base.architecture == "granitehybrid"
        assert base.shape("blk.0.ssm_in.weight") == (64, 2 * 128 + 2 * 16 + 8)
        assert base.shape("blk.1.ssm_in.weight") is None
        assert base.shape("blk.0.attn_q.weight") is None
        assert base.shape("blk.1.attn_q.weight") == (64, 64)


def test_gpt2_with_an_inner_size_of_its_own(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 50}
    assert hf_base(tmp_path, config).shape("blk.0.ffn_up.weight") == (64, 256)
    assert hf_base(tmp_path, {**config, "n_inner": 96}).shape("blk.0.ffn_up.weight") == (64, 96)


def test_weights_are_not_needed_and_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not read")
    (tmp_path / "model.safetensors.index.json").write_bytes(b"not read")
    assert hf_base(tmp_path, LLAMA).shape("blk.1.ffn_down.weight") == (96, 64)


@pytest.mark.parametrize(
    "tensor",
    [
        "blk.2.attn_q.weight",
        "blk.00.attn_q.weight",
        "blk.-1.attn_q.weight",
        "blk.99999999999999.attn_q.weight",
        "blk.0.attn_q.bias",
        "blk.0.attn_q",
        "blk.0.attn_q.weight\n",
        "output_norm.weight",
        "",
    ],
)
def test_there_is_nothing_else(tensor: str, tmp_path: Path) -> None:
    assert hf_base(tmp_path, LLAMA).shape(tensor) is None


def test_names(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--ibm-granite--granite-3.3-2b-instruct" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    assert hf_base(snapshot, LLAMA).names == ("granite-3.3-2b-instruct",)
    named = {**LLAMA, "_name_or_path": "ibm-granite/granite-3.3-2b-base"}
    assert hf_base(tmp_path, named).names == ("granite-3.3-2b-base", tmp_path.name)
    assert hf_base(tmp_path, {**LLAMA, "_name_or_path": 7}).names == (tmp_path.name,)
    assert HFBase(tmp_path, "hf://org/name").label == "hf://org/name"


MISSING = "is missing, expected an integer from 1 to 2147483647"
WRONG = [
    (LLAMA, "hidden_size", None, f"hidden_size {MISSING}; use the file that the model was"),
    (LLAMA, "hidden_size", "64", 'hidden_size is "64", expected an integer from 1'),
    (LLAMA, "hidden_size", 64.0, "hidden_size is 64.0, expected an integer"),
    (LLAMA, "hidden_size", True, "hidden_size is true, expected an integer"),
    (LLAMA, "hidden_size", 0, "hidden_size is 0, expected an integer from 1"),
    (LLAMA, "hidden_size", -64, "hidden_size is -64, expected an integer from 1"),
    (LLAMA, "hidden_size", 2**31, "hidden_size is 2147483648, expected an integer from 1 to"),
    (LLAMA, "hidden_size", 10**400, "hidden_size is 1000"),
    (LLAMA, "hidden_size", 66, r"num_attention_heads is 4, expected a divisor of .* size 66"),
    (LLAMA, "intermediate_size", None, f"intermediate_size {MISSING}"),
    (
        LLAMA,
        "num_hidden_layers",
        513,
        "num_hidden_layers is 513, expected an integer from 1 to 512",
    ),
    (LLAMA, "num_attention_heads", [4], r"num_attention_heads is \[4\], expected an integer"),
    (LLAMA, "num_key_value_heads", 0, "num_key_value_heads is 0, expected an integer from 1"),
    (LLAMA, "head_dim", "x", 'head_dim is "x", expected an integer'),
    (LLAMA, "vocab_size", None, f"vocab_size {MISSING}"),
    (LLAMA, "tie_word_embeddings", 1, "tie_word_embeddings is 1, expected true or false"),
    (LLAMA, "model_type", None, "model_type is missing, expected the family's name"),
    (LLAMA, "model_type", ["llama"], r'model_type is \["llama"\], expected the family\'s name'),
    (LLAMA, "model_type", "gemma3", "text_config is missing, expected the language model's fields"),
    (LLAMA, "model_type", "mixtral", f"num_local_experts {MISSING.replace('1 to', '0 to')}"),
    (HYBRID, "layer_types", None, "layer_types is missing, expected a list of mamba, linear_att"),
    (HYBRID, "layer_types", ["mamba", "sliding"], r'layer_types is \["mamba", "sliding"\], exp'),
    (HYBRID, "layer_types", ["mamba", {}], r'layer_types is \["mamba", \{\}\], expected'),
    (HYBRID, "layer_types", ["mamba"], "layer_types has 1 entries, but num_hidden_layers is 2"),
    (HYBRID, "mamba_n_heads", None, f"mamba_n_heads {MISSING}"),
    (HYBRID, "shared_intermediate_size", None, f"shared_intermediate_size {MISSING}"),
    (HYBRID, "num_local_experts", None, "num_local_experts is missing, expected an integer from 0"),
    (QWEN_MOE, "num_experts", -1, "num_experts is -1, expected an integer from 0"),
    (QWEN_MOE, "moe_intermediate_size", None, f"moe_intermediate_size {MISSING}"),
    (QWEN_MOE, "mlp_only_layers", 3, "mlp_only_layers is 3, expected a list of layers' numbers"),
    (QWEN_MOE, "mlp_only_layers", ["1"], r'mlp_only_layers is \["1"\], expected a list of layers'),
    (QWEN_MOE, "decoder_sparse_step", 0, "decoder_sparse_step is 0, expected an integer from 1"),
]


@pytest.mark.parametrize(("config", "field", "value", "message"), WRONG)
def test_refuses_fields_that_make_no_sense(
    config: dict[str, Any], field: str, value: Any, message: str, tmp_path: Path
) -> None:
    changed = {**config, field: value}
    if value is None:
        del changed[field]
    with pytest.raises(FileFormatError, match=message) as caught:
        hf_base(tmp_path, changed)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 350


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[]", "holds list, expected a JSON object"),
        (b"{", "is not JSON: .*; download it again"),
        (b'{"model_type": "\xff"}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"<!doctype html><html>", "is an HTML page"),
    ],
)
def test_refuses_files_that_are_no_configuration(raw: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=rf"config\.json: {message}"):
        hf_base(tmp_path, raw)


def test_refuses_other_families_by_name(tmp_path: Path) -> None:
    message = r"tensors of a 'mamba2' are not known .*; give the base as a GGUF, .*: llama, mistral"
    with pytest.raises(UnsupportedAdapterError, match=message):
        hf_base(tmp_path, {**LLAMA, "model_type": "mamba2"})
