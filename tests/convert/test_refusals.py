"""What would not convert exactly is refused by name, and leaves no file behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.convert import conversion, convert_adapter
from alora_gguf.convert.peft import fields as peft_fields

from alora_gguf.errors import (
    AdapterMismatchError,
    AloraError,
    ContractError,
    ConvertError,
    FileFormatError,
    InputError,
    MissingFileError,
    UnsupportedAdapterError,
)
from alora_gguf.gguf.header import read_header
from tests.support.make_gguf import make_gguf
from tests.support.peft_files import BLOCK, N_EMBD, N_FF, N_VOCAB, PREFIX, RANK, Case, write_base

# facts about PEFT's fields: value, error, and what the message must say besides the field's name
CONFIG: list[tuple[str, Any, type[AloraError], str]] = [
    ("peft_type", "IA3", UnsupportedAdapterError, r'peft_type = "IA3" scales what the base'),
    ("peft_type", None, UnsupportedAdapterError, "peft_type = null is not a LoRA"),
    (
        "task_type",
        "SEQ_CLS",
        UnsupportedAdapterError,
        'only "CAUSAL_LM", and "SEQ_CLS" of a plain LoRA',
    ),
    ("use_dora", True, UnsupportedAdapterError, "use_dora = true is DoRA.*train without it"),
    ("lora_bias", True, UnsupportedAdapterError, "lora_bias = true adds biases"),
    ("bias", "all", UnsupportedAdapterError, 'bias = "all" trained the base\'s biases too'),
    ("bias", "lora_only", UnsupportedAdapterError, 'bias = "lora_only"'),
    ("modules_to_save", ["lm_head"], UnsupportedAdapterError, r'modules_to_save = \["lm_head"\]'),
    ("trainable_token_indices", [1], UnsupportedAdapterError, r"trainable_token_indices = \[1\]"),
    ("trainable_token_indices", {"embed_tokens": [1]}, UnsupportedAdapterError, "embed_tokens"),
    ("init_lora_weights", "pissa", UnsupportedAdapterError, "path_initial_model_for_weight_conv"),
    ("init_lora_weights", "pissa_niter_16", UnsupportedAdapterError, "init_lora_weights"),
    ("init_lora_weights", "corda", UnsupportedAdapterError, "changes the base model's weights"),
    ("init_lora_weights", "olora", UnsupportedAdapterError, "init_lora_weights"),
    ("init_lora_weights", "loftq", UnsupportedAdapterError, "init_lora_weights"),
    ("init_lora_weights", "lora_ga", UnsupportedAdapterError, "init_lora_weights"),
    ("target_parameters", "experts", FileFormatError, "expected a list of parameter names"),
    ("layer_replication", [[0, 2]], UnsupportedAdapterError, "repeated layers"),
    ("use_qalora", True, UnsupportedAdapterError, "QA-LoRA"),
    ("megatron_config", {"a": 1}, UnsupportedAdapterError, "Megatron"),
    ("use_bdlora", {"nblocks": 2}, UnsupportedAdapterError, "BD-LoRA"),
    ("arrow_config", {"top_k": 2}, UnsupportedAdapterError, "Arrow"),
    ("kasa_config", {"beta": 1}, UnsupportedAdapterError, "KaSA"),
    ("monteclora_config", {"n": 1}, UnsupportedAdapterError, "MonteCLoRA"),
    ("cross_stream", True, UnsupportedAdapterError, "residual stream"),
    ("brand_new", {"x": 1}, UnsupportedAdapterError, r'brand_new = \{"x": 1\} is unknown'),
    ("lora_alpha", 0, UnsupportedAdapterError, "lora_alpha = 0 makes the adapter change nothing"),
    ("lora_alpha", "16", FileFormatError, 'lora_alpha is "16", expected a finite number'),
    ("lora_alpha", float("inf"), FileFormatError, "lora_alpha is Infinity"),
    ("lora_alpha", True, FileFormatError, "lora_alpha is true"),
    ("lora_alpha", 1e-50, FileFormatError, "lora_alpha is 1e-50, expected a finite number"),
    ("alpha_pattern", {"q_proj": 0}, UnsupportedAdapterError, "alpha of 0"),
    ("alpha_pattern", {"q_proj": "x"}, FileFormatError, "alpha_pattern is"),
    ("alpha_pattern", {"q_(": 1}, FileFormatError, r"'q_\(', which is not a regular expression"),
    ("rank_pattern", {"q_proj": 1.5}, FileFormatError, "expected module names with positive"),
    ("rank_pattern", {"q_proj": 2}, FileFormatError, r"has the rank 4, but .* says 2"),
    (
        "r",
        8,
        FileFormatError,
        r"adapter_config.json \(r, rank_pattern\) says 8",
    ),
    ("r", -1, FileFormatError, "r is -1, expected a positive integer"),
    ("use_rslora", "yes", FileFormatError, 'use_rslora is "yes", expected true or false'),
    ("alora_invocation_tokens", [], UnsupportedAdapterError, "is empty"),
    ("alora_invocation_tokens", "abc", FileFormatError, "expected a list of token ids"),
    ("alora_invocation_tokens", [1.5], FileFormatError, "expected a list of token ids"),
    ("alora_invocation_tokens", [N_VOCAB], AdapterMismatchError, "token ids 0 to 39.*contains 40"),
    ("alora_invocation_tokens", [-1], AdapterMismatchError, "contains -1"),
    ("invocation_string", 5, FileFormatError, "invocation_string is 5, expected a string"),
]


@pytest.mark.parametrize(("field", "value", "error", "message"), CONFIG)
def test_config_fields(
    case: Case, field: str, value: Any, error: type[AloraError], message: str
) -> None:
    case.config[field] = value
    with pytest.raises(error, match=message) as caught:
        case.convert()
    if error is not AdapterMismatchError:  # that one speaks of the base
        assert field in str(caught.value)
    assert not case.out.exists()


HARMLESS = {
    "auto_mapping": None,
    "corda_config": None,
    "eva_config": {"rho": 2.0},
    "exclude_modules": ["x"],
    "fan_in_fan_out": True,
    "inference_mode": True,
    "init_lora_weights": "gaussian",
    "layers_pattern": "layers",
    "layers_to_transform": [0],
    "lora_dropout": 0.1,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "revision": "main",
    "target_modules": "all-linear",
    "velora_config": {"num_groups": 2},
    "bias": "none",
    "brand_new": None,
    "modules_to_save": [],
    "use_dora": False,
}


def test_harmless_fields_change_nothing(case: Case) -> None:
    case.convert()
    plain = case.out.read_bytes()
    case.config |= HARMLESS
    case.convert(overwrite=True)
    assert case.out.read_bytes() == plain


def uneven_experts(folder: Path, rank: int, n_experts: int) -> Case:
    """One expert with `rank`, the others with rank 1."""
    block = {**BLOCK, "ffn_up_exps": (N_EMBD, N_FF, n_experts)}
    for name in ("ffn_gate", "ffn_up", "ffn_down"):
        del block[name]
    base = write_base(
        folder / "moe.gguf",
        architecture="qwen3moe",
        block=block,
        changes={"expert_count": n_experts, "expert_used_count": 2},
    )
    case = Case(folder, base)
    names = [f"model.layers.0.mlp.experts.{i}.up_proj" for i in range(n_experts)]
    case.config = {"peft_type": "LORA", "r": 1, "rank_pattern": {names[0]: rank}}
    for i, name in enumerate(names):
        case.add(name, N_EMBD, N_FF, rank=1 if i else rank)
    return case


def test_a_file_much_larger_than_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a weight's experts are padded to the largest rank among them."""
    case = uneven_experts(tmp_path, 512, 32)
    assert case.convert(dry_run=True).ranks == (512,)  # 2.6 MB are no harm
    monkeypatch.setattr(conversion, "_ALWAYS", 1 << 20)
    with pytest.raises(UnsupportedAdapterError, match="would become 2621440 bytes, expected at m"):
        case.convert()
    assert not case.out.exists()
    (tmp_path / "even").mkdir()
    assert uneven_experts(tmp_path / "even", 16, 32).convert().written


def test_a_rank_that_no_bank_holds(case: Case) -> None:
    case.config |= {"r": 4097}
    case.tensors.clear()
    case.add("model.layers.0.self_attn.q_proj", N_EMBD, N_EMBD, rank=4097)
    with pytest.raises(UnsupportedAdapterError) as caught:
        case.convert()
    assert str(caught.value) == (
        "'model.layers.0.self_attn.q_proj' and what shares the base's 'blk.0.attn_q.weight' with "
        "it have rank 4097, at most 4096 is supported; train one of a lower rank"
    )


PATTERNS = {"self_attn.q_proj": 1, "q_proj": 99}  # as trained, and as save_pretrained() sorts them


@pytest.mark.parametrize("patterns", [PATTERNS, dict(sorted(PATTERNS.items()))])
def test_two_patterns_of_one_module_are_told(case: Case, patterns: dict[str, int]) -> None:
    case.config["alpha_pattern"] = patterns
    (warning,) = case.convert().warnings
    first, other = patterns
    assert warning.startswith(
        f"{case.source / 'adapter_config.json'}: alpha_pattern: '{first}' and '{other}' both match "
        "'model.layers.0.self_attn.q_proj'; the first counts, "
    )
    case.config["alpha_pattern"] = dict.fromkeys(PATTERNS, 3)  # it makes no difference
    assert case.convert(overwrite=True).warnings == ()


def test_weights_that_peft_would_leave_out_are_told(case: Case) -> None:
    case.config |= {"layers_to_transform": [1], "target_modules": ["q_proj", "k_proj"]}
    (warning,) = case.convert().warnings
    assert warning == (
        f"{case.source / 'adapter_config.json'}: target_modules or layers_to_transform leave out "
        "12 of the 14 modules that have weights, such as 'model.layers.0.mlp.down_proj'; they are "
        "converted, but PEFT would not load them"
    )
    case.config |= {"layers_to_transform": [0, 1], "target_modules": "all-linear"}
    assert case.convert(overwrite=True).warnings == ()


def test_config_that_is_no_json_object(case: Case) -> None:
    case.write()
    path = case.source / "adapter_config.json"

    for text, message in (("{", "is not JSON"), ("[1]", "holds list"), ("\xff", "is not JSON")):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(FileFormatError, match=message):
            convert_adapter(case.source, case.base, case.out)
    path.unlink()
    with pytest.raises(MissingFileError, match=r"adapter_config.json: there is no such file"):
        convert_adapter(case.source, case.base, case.out)


Q = f"{PREFIX}model.layers.0.self_attn.q_proj"
X = np.ones((RANK, N_EMBD), dtype=np.float32)

TENSORS: dict[str, tuple[dict[str, Any], type[AloraError], str]] = {
    "DoRA": (
        {f"{Q}.lora_magnitude_vector": X[0]},
        UnsupportedAdapterError,
        "lora_magnitude_vector' belongs to DoRA",
    ),
    "bias": ({f"{Q}.lora_B.bias": X[0]}, UnsupportedAdapterError, "lora_B.bias' is a bias"),
    "whole weight": (
        {f"{PREFIX}lm_head.weight": X},
        UnsupportedAdapterError,
        r"lm_head.weight' is a whole weight \(modules_to_save\)",
    ),
    "norm": (
        {f"{PREFIX}model.norm.weight": X[0]},
        UnsupportedAdapterError,
        "model.norm.weight' is a whole weight",
    ),
    "named": (
        {f"{Q}.lora_A.default.weight": X},
        UnsupportedAdapterError,
        "is not one of PEFT's lora_A.weight",
    ),
    "no prefix": ({"model.x.lora_A.weight": X}, UnsupportedAdapterError, "is not one of PEFT's"),
    "resized vocabulary": (
        {f"{PREFIX}lm_head.base_layer.weight": np.ones((N_VOCAB + 1, N_EMBD), np.float32)},
        UnsupportedAdapterError,
        "the adapter's vocabulary was resized",
    ),
    "unknown module": (
        {
            f"{PREFIX}model.layers.0.mlp.router.lora_A.weight": X,
            f"{PREFIX}model.layers.0.mlp.router.lora_B.weight": X.T.copy(),
        },
        UnsupportedAdapterError,
        "'model.layers.0.mlp.router' cannot be converted for llama; what can: block_sparse_moe",
    ),
    "layer beyond": (
        {f"{PREFIX}model.layers.2.mlp.up_proj.lora_{k}.weight": X for k in "AB"},
        AdapterMismatchError,
        "has 2 layers, but the adapter changes 'model.layers.2.mlp.up_proj'",
    ),
    "half": (
        {f"{PREFIX}model.layers.9.x.lora_A.weight": X},
        FileFormatError,
        "'model.layers.9.x' has a lora_A but no lora_B",
    ),
    "inner dimensions": (
        {f"{Q}.lora_A.weight": X[:3]},
        FileFormatError,
        r"has lora_A \[3, 16\] and lora_B \[16, 4\], expected \[r, in\] and \[out, r\]",
    ),
    "one dimension": ({f"{Q}.lora_A.weight": X[0]}, FileFormatError, r"lora_A \[16\]"),
    "other base": (
        {f"{Q}.lora_A.weight": np.ones((RANK, N_EMBD + 1), np.float32)},
        AdapterMismatchError,
        "'blk.0.attn_q.weight' maps 16 to 16 values, but .* maps 17 to 16",
    ),
    "NaN": (
        {f"{Q}.lora_A.weight": np.where(np.eye(RANK, N_EMBD), np.nan, 1).astype(np.float32)},
        FileFormatError,
        "lora_A.weight' has 4 values that are NaN or infinite",
    ),
    "infinite": (
        {f"{Q}.lora_B.weight": np.full((N_EMBD, RANK), np.inf, np.float32)},
        FileFormatError,
        "has 64 values that are NaN or infinite",
    ),
    "integers": (
        {f"{Q}.lora_A.weight": X.astype(np.int32)},
        UnsupportedAdapterError,
        "has the dtype I32, expected F32, F16, BF16 or F64",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(case: Case, name: str) -> None:
    changes, error, message = TENSORS[name]
    case.tensors |= changes
    with pytest.raises(error, match=message):
        case.convert()
    assert not case.out.exists()
    assert not list(case.folder.glob(".*"))  # no temporary file either


def test_values_too_large_or_too_small_for_f16(case: Case) -> None:
    case.tensors[f"{Q}.lora_B.weight"] = np.full((N_EMBD, RANK), 1e5, np.float32)
    with pytest.raises(ConvertError, match=r"values up to 1e\+05, too large for f16; choose f32"):
        case.convert(outtype="f16")
    case.tensors[f"{Q}.lora_B.weight"] = np.full((N_EMBD, RANK), 1e-9, np.float32)
    with pytest.raises(ConvertError, match="too small for f16 and would become zero"):
        case.convert(outtype="f16")
    assert not case.out.exists()
    for outtype in ("f32", "bf16"):
        case.convert(outtype=outtype, overwrite=True)


def test_some_lost_values_are_reported(case: Case) -> None:
    case.tensors[f"{Q}.lora_B.weight"][0] = 1e-9
    report = case.convert(outtype="f16")
    assert report.warnings == (
        f"'{Q}.lora_B.weight': 4 of 64 values are too small for f16 and became zero; "
        "f32 would keep them",
    )


@pytest.mark.parametrize("text", ["model: [\n", "name: x\nrules: ~\n", "", "a: " + "x" * 70_000])
def test_a_contract_that_cannot_be_read_is_refused(case: Case, text: str) -> None:
    case.write()
    broken = case.source / "io.yaml"
    broken.write_text(text)
    with pytest.raises(ContractError, match=rf"^{re.escape(str(broken))}:") as caught:
        case.convert()
    assert str(caught.value).endswith(
        "; or convert with another contract (--contract FILE), or without one (--no-contract)"
    )
    assert not case.out.exists()
    assert case.convert(contract=False).contract is None
    assert "alora.io_yaml" not in read_header(case.out).metadata


def test_another_contract_is_put_in(case: Case, tmp_path: Path) -> None:
    sound = "model: ~\nresponse_format: ~\ntransformations: ~\n"
    case.write()
    (case.source / "io.yaml").write_text("model: [")
    other = tmp_path / "other"
    other.mkdir()
    (other / "io.yml").write_text(sound)
    for given in (other, other / "io.yml"):
        report = case.convert(contract=given, overwrite=True)
        assert report.contract == other / "io.yml"
        assert read_header(case.out).metadata["alora.io_yaml"] == sound
    with pytest.raises(MissingFileError, match=r"no\.yaml"):
        case.convert(contract=tmp_path / "no.yaml", overwrite=True)
    with pytest.raises(MissingFileError, match=r"has no io\.yaml"):
        case.convert(contract=tmp_path, overwrite=True)


@pytest.mark.parametrize("name", ["io.yaml", "io.yml"])
def test_the_contract_beside_the_adapter_goes_in(case: Case, name: str) -> None:
    case.write()
    assert case.convert().contract is None
    text = "model: ~\nresponse_format: ~\ntransformations: ~\nname: it\n"
    (case.source / name).write_text(text)
    report = case.convert(overwrite=True)
    assert report.contract == case.source / name
    assert report.to_dict()["contract"] == str(case.source / name)
    assert read_header(case.out).metadata["alora.io_yaml"] == text


def test_a_sound_contract_is_no_news(case: Case) -> None:
    case.write()
    contract = "model: ~\nresponse_format: ~\ntransformations: ~\n"
    (case.source / "io.yaml").write_text(contract)
    assert case.convert().warnings == ()


def test_adapter_of_zeros(case: Case) -> None:
    for name, values in case.tensors.items():
        if "lora_B" in name:
            values[:] = 0
    with pytest.raises(ConvertError, match="changes nothing; it was probably saved before"):
        case.convert()
    assert not case.out.exists()


def test_no_lora_tensors(case: Case) -> None:
    case.tensors.clear()
    with pytest.raises(ConvertError, match="holds no LoRA tensors"):
        case.convert()


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_tied_embeddings(case: Case, module: str) -> None:
    write_base(case.base, tied=True)
    case.add(module, N_EMBD, N_VOCAB)
    with pytest.raises(UnsupportedAdapterError, match="uses one tensor as embedding and as output"):
        case.convert()


def test_embedding_of_an_alora(case: Case) -> None:
    case.tensors[f"{PREFIX}model.embed_tokens.lora_embedding_A"] = np.ones((RANK, N_VOCAB))
    case.tensors[f"{PREFIX}model.embed_tokens.lora_embedding_B"] = np.ones((N_EMBD, RANK))
    with pytest.raises(UnsupportedAdapterError, match="PEFT does not define what activation means"):
        case.convert()
    del case.config["alora_invocation_tokens"]
    with pytest.raises(UnsupportedAdapterError, match="PEFT does not define what activation means"):
        case.convert(invocation=[7, 8])
    case.config["invocation_string"] = "<x>"
    with pytest.raises(UnsupportedAdapterError, match="PEFT does not define what activation means"):
        case.convert()


def test_bases_that_cannot_be(case: Case) -> None:
    write_base(case.base, architecture="mamba")
    with pytest.raises(UnsupportedAdapterError, match="'mamba' cannot be converted yet; supported"):
        case.convert()
    write_base(case.base, kind="adapter")
    with pytest.raises(ConvertError, match="type 'adapter', expected a base model; give the file"):
        case.convert()
    case.base.write_bytes(b"GGUF")
    with pytest.raises(FileFormatError, match="truncated"):
        case.convert()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", 2**31, "'llama.block_count' is 2147483648, but the file has 16 tensors"),
        ("attention.head_count", 0, "'llama.attention.head_count' is 0 for layer 0"),
        ("attention.head_count", [4], "'llama.attention.head_count' has no entry for layer 1"),
        ("attention.head_count", 3, "has 16 rows, which 3 heads cannot share"),
        ("attention.head_count", "4", "'llama.attention.head_count' must be of type uint32 or"),
    ],
)
def test_bases_with_impossible_counts(case: Case, key: str, value: Any, message: str) -> None:
    write_base(case.base, changes={key: value})
    with pytest.raises(FileFormatError, match=message):
        case.convert()


def test_split_base(case: Case) -> None:
    tensors = {"token_embd.weight": np.zeros((2, 2), np.float32)}
    make_gguf(case.base, {"split.count": 3}, tensors)
    with pytest.raises(
        ConvertError, match="one of 3 parts of a split model; give the first, with the"
    ):
        case.convert()


def test_sources_that_cannot_be(case: Case) -> None:

    case.write()
    weights = case.source / "adapter_model.safetensors"
    with pytest.raises(InputError, match="is a file, expected the adapter's directory"):
        convert_adapter(weights, case.base, case.out)
    with pytest.raises(MissingFileError, match="there is no such directory"):
        convert_adapter(case.folder / "none", case.base, case.out)
    weights.rename(case.source / "adapter_model.bin")
    with pytest.raises(UnsupportedAdapterError, match=r"adapter_model\.bin, a pickle"):
        convert_adapter(case.source, case.base, case.out)
    (case.source / "adapter_model.bin").unlink()
    with pytest.raises(
        MissingFileError, match=r"adapter_model\.safetensors: there is no such file"
    ):
        convert_adapter(case.source, case.base, case.out)


def test_invocations_given_and_missing(case: Case) -> None:
    with pytest.raises(InputError, match=r"= \[7, 8\] differs from the given .* \[7, 9\]"):
        case.convert(invocation=[7, 9])
    with pytest.raises(InputError, match="the invocation tokens are empty"):
        case.convert(invocation=[])
    assert case.convert(invocation=[7, 8]).invocation == (7, 8)
    del case.config["alora_invocation_tokens"]
    case.config["invocation_string"] = "<|start_of_role|>certainty"
    older = r"older invocation_string.*no vocabulary.*--invocation-tokens, leaving out its first"
    with pytest.raises(UnsupportedAdapterError, match=older):
        case.convert(overwrite=True)
    report = case.convert(invocation=[3], overwrite=True)
    assert report.kind == "alora"
    assert report.warnings == ()
    del case.config["invocation_string"]
    report = case.convert(invocation=[3], overwrite=True)
    assert "names no invocation" in report.warnings[0]
    assert case.convert(overwrite=True).kind == "lora"


def test_outtype_is_checked(case: Case) -> None:
    with pytest.raises(InputError, match="outtype is 'q4_0', expected one of f32, f16, bf16"):
        case.convert(outtype="q4_0")


def test_config_messages_are_one_line_and_name_the_file(case: Case) -> None:
    case.config["use_dora"] = True
    with pytest.raises(UnsupportedAdapterError) as caught:
        case.convert()
    assert str(caught.value).startswith(str(case.source / "adapter_config.json") + ": use_dora")
    assert "\n" not in str(caught.value)


FIELDS = [
    *sorted({field for field, *_ in CONFIG} | set(HARMLESS)),
    "ensure_weight_tying",
    "base_model_name_or_path",
    "peft_version",
]
VALUES: list[Any] = [
    None,
    0,
    1,
    -1,
    10**400,
    1.5,
    1e300,
    1e-300,
    float("nan"),
    "x",
    "",
    [],
    [1],
    [[]],
    {},
    {"a": {}},
]


@pytest.mark.parametrize("field", FIELDS)
def test_any_value_of_any_field_converts_or_is_refused(case: Case, field: str) -> None:
    for value in [*VALUES, True, {"[": 1}, {"q_proj": 10**400}, {"q_proj": -1}]:
        case.config[field] = value
        with contextlib.suppress(AloraError):
            case.convert(overwrite=True)


def test_every_field_of_pefts_configuration_is_known() -> None:
    peft = pytest.importorskip("peft")
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    known = [*peft_fields.HONOURED, *peft_fields.HARMLESS, *peft_fields.REFUSED]
    assert len(known) == len(set(known)), "a field stands in two tables"
    assert not fields - set(known)
    # no fields of this class: IBM's older format, and a residual stream of its own
    assert set(known) - fields == {"invocation_string", "cross_stream"}


def test_what_peft_saves_of_an_adapter_that_sets_nothing_converts(case: Case) -> None:
    peft = pytest.importorskip("peft")
    peft.LoraConfig(r=RANK, task_type="CAUSAL_LM").save_pretrained(str(case.folder / "saved"))
    saved = json.loads((case.folder / "saved" / "adapter_config.json").read_text())
    case.config = saved
    assert case.convert().kind == "lora"
