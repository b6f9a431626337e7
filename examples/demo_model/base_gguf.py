"""Writes the demo's base, a Hugging Face Granite directory, as a GGUF file.

Needs numpy and gguf, not torch. Upstream's converter is the tests' peer; it cannot be used itself,
because it recognises only the tokenizers of published models.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from alora_gguf.convert.base.orders import rotary_order
from alora_gguf.convert.peft.weights import SafetensorsFile
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize
from numpy.typing import NDArray

from alora_gguf.errors import ConvertError, FileFormatError, InputError

NAME: Final = "alora-gguf demo"
DESCRIPTION: Final = (
    "A small chat model trained from scratch on generated conversations over short documents, to "
    "demonstrate aLoRA intrinsics. It knows nothing but those: not for any other use."
)
Outtype = Literal["f32", "f16", "q8_0", "q4_0"]

# matrices' type, the embeddings' type, general.file_type. The embeddings are the output matrix too,
# which Q4_0 would harm most; llama.cpp's own quantizer spares it as well.
_TYPES: Final = {
    "f32": (GGMLQuantizationType.F32, GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q4_0),
}
_QUANTIZATION_VERSION: Final = 2  # GGML_QNT_VERSION
_BLOCK: Final = 32  # values of a row that share a scale, in Q8_0 and Q4_0

_EMBEDDINGS: Final = "model.embed_tokens.weight"
_OF_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_MULTIPLIERS: Final = (
    "embedding_multiplier",
    "attention_multiplier",
    "residual_multiplier",
    "logits_scaling",
)


def write_base_gguf(source: Path, target: Path, outtype: Outtype) -> None:
    """Writes `target` from config.json, model.safetensors and the tokenizer in `source`.

    Norms are F32 whatever `outtype` is; with q4_0 the embeddings are Q8_0. `target` appears whole
    or not at all, and replaces what was there. Raises InputError for an unknown `outtype` or one
    that the weights do not fit, FileFormatError for a directory that is not the demo's.
    """
    if outtype not in _TYPES:
        raise InputError(f"outtype: expected one of {', '.join(_TYPES)}, found {outtype!r}")
    config = _Config.read(source / "config.json")
    vocabulary = _Vocabulary.read(source, config)
    if not target.parent.is_dir():
        raise InputError(f"{target}: its directory does not exist; create it first")
    unfinished = target.with_name(f".{target.name}.part")
    try:
        writer = GGUFWriter(unfinished, "granite")
        try:
            _add_weights(writer, source / "model.safetensors", config, outtype)
            _add_general(writer, outtype)
            _add_shape(writer, config)
            _add_vocabulary(writer, vocabulary)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
    except OSError as error:
        raise ConvertError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        unfinished.unlink(missing_ok=True)


# The configuration -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Config:
    """What a Granite config.json says, checked for what the GGUF cannot express."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> _Config:
        values = _json(path)
        config = cls(path, values)
        config._expect("model_type", "granite")
        config._expect("tie_word_embeddings", True)
        config._expect("hidden_act", "silu")
        for bias in ("attention_bias", "mlp_bias"):
            if values.get(bias):
                raise FileFormatError(f"{path}: '{bias}' is set, expected a model without")
        for key in _MULTIPLIERS:
            if not values.get(key, 1.0):  # llama.cpp would put its own default there
                raise FileFormatError(f"{path}: '{key}' is 0, expected another number")
        if config.rope.get("rope_type", "default") != "default":
            raise FileFormatError(
                f"{path}: 'rope_type' is {config.rope['rope_type']!r}, expected 'default'"
            )
        return config

    def _expect(self, key: str, wanted: object) -> None:
        found = self.values.get(key)
        if found != wanted:
            raise FileFormatError(f"{self.path}: '{key}' is {found!r}, expected {wanted!r}")

    def __getitem__(self, key: str) -> Any:
        try:
            return self.values[key]
        except KeyError:
            raise FileFormatError(f"{self.path}: '{key}' is missing") from None

    def multiplier(self, key: str) -> float:
        """One of _MULTIPLIERS; 1 where it is left out, as in transformers."""
        return float(self.values.get(key, 1.0))

    @property
    def rope(self) -> dict[str, Any]:
        """The rotary embedding's parameters; transformers 4 keeps the base beside, not in them."""
        found: dict[str, Any] = self.values.get("rope_parameters") or {}
        return found

    @property
    def rope_base(self) -> float:
        return float(self.rope.get("rope_theta") or self.values.get("rope_theta") or 10000.0)

    @property
    def head_dim(self) -> int:
        return int(
            self.values.get("head_dim") or self["hidden_size"] // self["num_attention_heads"]
        )


# The vocabulary ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Vocabulary:
    """A tokenizer.json as a GGUF keeps it: tokens and their types by id, merges as "a b"."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    eos: int
    pad: int
    template: str

    @classmethod
    def read(cls, source: Path, config: _Config) -> _Vocabulary:
        path = source / "tokenizer.json"
        tokenizer = _json(path)
        _check_splitting(path, tokenizer)
        tokens, types = _tokens(path, tokenizer, config["vocab_size"])
        merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
        settings = _json(source / "tokenizer_config.json")
        named = {}
        for key in ("eos", "pad"):
            token = settings.get(f"{key}_token")
            if token not in tokens:
                raise FileFormatError(
                    f"{source / 'tokenizer_config.json'}: '{key}_token' is {token!r}, expected a "
                    "token of tokenizer.json"
                )
            named[key] = tokens.index(token)
            if config.values.get(f"{key}_token_id") != named[key]:  # generation would not end
                raise FileFormatError(
                    f"{config.path}: '{key}_token_id' is {config.values.get(f'{key}_token_id')}, "
                    f"but {token!r} has the id {named[key]}; set it and save the model again"
                )
        template = settings.get("chat_template")
        if template is None and (source / "chat_template.jinja").is_file():
            template = (source / "chat_template.jinja").read_text(encoding="utf-8")
        if not isinstance(template, str):
            raise FileFormatError(f"{source}: has no chat template; write it with tokenizer.train")
        return cls(tokens, types, merges, named["eos"], named["pad"], template)


def _check_splitting(path: Path, tokenizer: dict[str, Any]) -> None:
    """Only this splitting is what llama.cpp does for the name `gpt-2`."""
    kind = (tokenizer.get("model") or {}).get("type")
    if kind != "BPE":
        raise FileFormatError(f"{path}: its model is of the type {kind!r}, expected 'BPE'")
    splitting = tokenizer.get("pre_tokenizer") or {}
    found = tuple(splitting.get(key) for key in ("type", "add_prefix_space", "use_regex"))
    if found != ("ByteLevel", False, True) or tokenizer.get("normalizer") is not None:
        raise FileFormatError(
            f"{path}: its pre_tokenizer is {splitting}, its normalizer "
            f"{tokenizer.get('normalizer')}; expected ByteLevel with GPT-2's expression and no "
            "prefix space, and none; train it with tokenizer.train"
        )


def _tokens(path: Path, tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Tokens and types by id, filled up to the embeddings' `size` with unused ones."""
    named = {i: token for token, i in tokenizer["model"]["vocab"].items()}
    kinds = dict.fromkeys(named, TokenType.NORMAL)
    for token in tokenizer["added_tokens"]:
        named[token["id"]] = token["content"]
        kinds[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    if max(named) >= size:
        raise FileFormatError(
            f"{path}: its last id is {max(named)}, but the model has {size} tokens (vocab_size)"
        )
    tokens = [named.get(i, f"[PAD{i}]") for i in range(size)]
    return tokens, [int(kinds.get(i, TokenType.UNUSED)) for i in range(size)]


# What is written ---------------------------------------------------------------------------------


def _add_general(writer: GGUFWriter, outtype: Outtype) -> None:
    from gguf.utility import model_weight_count_rounded_notation

    n_weights = writer.get_total_parameter_count()[0]
    writer.add_type("model")
    writer.add_name(NAME)
    writer.add_basename(NAME.replace(" ", "-"))
    writer.add_size_label(model_weight_count_rounded_notation(n_weights))
    writer.add_author("The alora-gguf authors")
    writer.add_description(DESCRIPTION)
    writer.add_license("mit")
    writer.add_tags(["text-generation", "demo", "alora"])
    writer.add_languages(["en"])
    writer.add_file_type(_TYPES[outtype][2])
    writer.add_quantization_version(_QUANTIZATION_VERSION)


def _add_shape(writer: GGUFWriter, config: _Config) -> None:
    """The keys of upstream's src/models/granite.cpp, which divides logits by logit_scale."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_embedding_scale(config.multiplier("embedding_multiplier"))
    writer.add_attention_scale(config.multiplier("attention_multiplier"))
    writer.add_residual_scale(config.multiplier("residual_multiplier"))
    writer.add_logit_scale(config.multiplier("logits_scaling"))


def _add_vocabulary(writer: GGUFWriter, vocabulary: _Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    # never added; without the key, llama.cpp calls whatever has the id 11 the text's beginning
    writer.add_bos_token_id(vocabulary.eos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_pad_token_id(vocabulary.pad)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(vocabulary.template)


def _add_weights(writer: GGUFWriter, path: Path, config: _Config, outtype: Outtype) -> None:
    names = {_EMBEDDINGS: "token_embd.weight"}
    for i in range(config["num_hidden_layers"]):
        for theirs, ours in _OF_LAYER.items():
            names[f"model.layers.{i}.{theirs}.weight"] = f"blk.{i}.{ours}.weight"
    names["model.norm.weight"] = "output_norm.weight"
    with SafetensorsFile(path) as file:
        for what, some in (
            ("lacks", names.keys() - file.tensors),
            ("has also", file.tensors.keys() - names),
        ):
            if some:
                raise FileFormatError(
                    f"{path}: {what} the tensor '{min(some)}'; expected those of a Granite model "
                    f"of {config['num_hidden_layers']} layers with tied embeddings"
                )
        for theirs, ours in names.items():
            values = np.asarray(file.read(theirs), np.float32)
            _check_shape(path, theirs, values, config)
            heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
            count = heads.get(theirs.split(".")[-2])
            if count:
                values = values[rotary_order(len(values), config[count]).index()]
            kind = _TYPES[outtype][theirs == _EMBEDDINGS]
            data, raw_type = _encode(path, theirs, values, kind)
            writer.add_tensor(ours, data, raw_dtype=raw_type)


def _check_shape(path: Path, name: str, values: NDArray[Any], config: _Config) -> None:
    """Shapes in torch's order, [n_out, n_in]."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config.head_dim
    keys = config["num_key_value_heads"] * config.head_dim
    wanted = {
        "embed_tokens": (config["vocab_size"], width),
        "q_proj": (queries, width),
        "k_proj": (keys, width),
        "v_proj": (keys, width),
        "o_proj": (width, queries),
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
    }.get(name.split(".")[-2], (width,))
    if values.shape != wanted:
        raise FileFormatError(
            f"{path}: tensor '{name}' has the shape {list(values.shape)}, expected {list(wanted)} "
            "by config.json"
        )


def _encode(
    path: Path, name: str, values: NDArray[np.float32], kind: GGMLQuantizationType
) -> tuple[NDArray[Any], GGMLQuantizationType]:
    """A tensor's data and its type; norms are F32 always."""
    if not np.isfinite(values).all():
        raise FileFormatError(
            f"{path}: tensor '{name}' has values that are NaN or infinite; the training diverged"
        )
    if values.ndim == 1:
        kind = GGMLQuantizationType.F32
    quantized = kind in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0)
    if quantized and values.shape[-1] % _BLOCK:
        raise InputError(
            f"{path}: rows of tensor '{name}' have {values.shape[-1]} values, {kind.name} needs a "
            f"multiple of {_BLOCK}; write f32 or f16"
        )
    largest = float(np.abs(values).max(initial=0.0))
    if kind == GGMLQuantizationType.F16 and largest > float(np.finfo(np.float16).max):
        raise InputError(
            f"{path}: tensor '{name}' has values up to {largest:.4g}, too large for f16; write f32"
        )
    return quantize(np.ascontiguousarray(values), kind), kind


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FileFormatError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
