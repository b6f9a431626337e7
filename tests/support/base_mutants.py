"""Bases that are wrong in one to three ways each: by seed and number, from sound ones.

Numbers, floats, arrays, vocabularies and tensor types of a header are changed, keys that llama.cpp
knows are added, tensors are given other shapes and types, or left out.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.parser import GGML_TYPES, ArrayRef, ValueType, nbytes_of

from . import tiny_base, vocabularies

V = ValueType
_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_SCORES, _MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.merges"
_INTS = {V.UINT8, V.INT8, V.UINT16, V.INT16, V.UINT32, V.INT32, V.UINT64, V.INT64}
_ODD_INTS = (
    *(0, 1, 2, 3, 5, 7, 8, 12, 17, 32, 64, 128, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025),
    *(4096, 65535, 65536, 10**6, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1),
)
_ODD_FLOATS = (
    *(0.0, -0.0, -1.0, 1.0, 2.0, 1e-45, 1e-30, 1e30, 3e38, math.nan, math.inf, -math.inf, 1e4),
    -1e-5,
)
_MODELS = (
    *("no_vocab", "none", "llama", "bert", "gpt2", "hybriddna", "whitespace", "t5", "rwkv"),
    *("test", "plamo2", "gemma4", "", "x"),
)
_PRE = (
    *("default", "gpt-2", "llama3", "qwen2", "gpt-4o", "deepseek-llm", "falcon", "tekken"),
    *("chatglm-bpe", "viking", "bloom", "gemma4", "whisper", "", "x", "jina-v2-de", "kimi-k2"),
)
_ROPE = ("none", "linear", "yarn", "longrope", "", "x", "unspecified")
# of general.architecture, in whose words the keys are written anew
ARCHITECTURES = (
    *("llama", "llama4", "falcon", "gpt2", "starcoder2", "bloom", "mpt", "phi2", "phi3", "qwen"),
    *("qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "gemma3n", "olmo2"),
    *("granite", "granitemoe", "granitehybrid", "mamba", "mamba2", "jamba", "deepseek2", "glm4"),
    *("bert", "t5", "minicpm3", "cohere2", "gpt-oss", "exaone4", "rwkv6", "rwkv7", "lfm2"),
    *("nemotron_h", "falcon-h1", "plamo2", "openelm", "deci", "chameleon", "smollm3", "dream"),
    *("wavtokenizer-dec", "hunyuan-dense", "command-r", "stablelm", "internlm2", "grok", "dbrx"),
)
_INT_KEYS = (
    *("vocab_size", "embedding_length_out", "leading_dense_block_count", "expert_count"),
    *("expert_feed_forward_length", "expert_shared_feed_forward_length", "expert_used_count"),
    *("expert_shared_count", "expert_group_count", "expert_group_used_count", "pooling_type"),
    *("expert_gating_func", "nextn_predict_layers", "attention.key_length", "rope.dimension_count"),
    *("attention.value_length", "attention.group_norm_groups", "attention.q_lora_rank"),
    *("attention.kv_lora_rank", "attention.sliding_window", "attention.key_length_mla"),
    *("attention.sliding_window_pattern", "attention.value_length_mla", "attention.key_length_swa"),
    *("attention.value_length_swa", "attention.shared_kv_layers", "rope.dimension_count_swa"),
    *("rope.scaling.original_context_length", "ssm.conv_kernel", "ssm.inner_size"),
    *("ssm.state_size", "ssm.time_step_rank", "ssm.group_count", "wkv.head_size"),
    *("shortconv.l_cache", "n_deepstack_layers", "moe_every_n_layers", "num_loops"),
    *("interleave_moe_layer_step", "full_attention_interval", "token_shift_count"),
    *("attention.indexer.head_count", "attention.indexer.top_k", "hash_layer_count"),
    *("decoder_block_count", "rescale_every_n_layers", "attention.temperature_length"),
    *("attention.head_count_kv", "attention.head_count", "feed_forward_length"),
)
_FLOAT_KEYS = (
    *("rope.freq_base", "rope.scaling.factor", "rope.scaling.attn_factor", "rope.scale_linear"),
    *("rope.freq_base_swa", "rope.scaling.alpha", "rope.scaling.yarn_log_multiplier"),
    *("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_beta_fast", "logit_scale"),
    *("attention.max_alibi_bias", "attention.clamp_kqv", "attention.layer_norm_epsilon"),
    *("attention.layer_norm_rms_epsilon", "attention.group_norm_epsilon", "attention.scale"),
    *("attn_logit_softcapping", "final_logit_softcapping", "residual_scale", "embedding_scale"),
    *("expert_weights_scale", "attention.temperature_scale", "router_logit_softcapping"),
)
_ARRAY_KEYS = (
    *("rope.dimension_sections", "attention.sliding_window_pattern", "attention.head_count"),
    *("attention.head_count_kv", "feed_forward_length", "expert_used_count", "deepstack_mapping"),
    *("attention.recurrent_layers", "attention.rope_pattern", "swiglu_clamp_exp"),
)
_BOOL_KEYS = (
    *("use_parallel_residual", "expert_weights_norm", "attention.causal", "ssm.dt_b_c_rms"),
    *("rope.scaling.finetuned", "swin_norm"),
)
_TOKEN_KEYS = tuple(
    f"tokenizer.ggml.{name}_token_id"
    for name in (
        *("bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "cls", "mask"),
        *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix"),
    )
)
_TOKEN_BOOLS = tuple(
    f"tokenizer.ggml.{name}"
    for name in (
        *("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix"),
        *("remove_extra_whitespaces", "normalizer.lowercase", "normalizer.strip_accents"),
    )
)
_TEXTS = (
    b"", b" ", b"\n", b"\xff", b"a\0b", b"x" * 300, "▁".encode(), "\u0120".encode(), b"<0x41>",
    b"<0x0A>", b"</s>", b"<|im_end|>", b"a b", "😊".encode(), b"\xe2\x96",
)  # fmt: skip


@dataclass
class Parts:
    """A file in parts: typed metadata (arrays: (inner type, elements)), and tensors as type, shape
    and bytes.
    """

    keys: dict[str, tuple[ValueType, Any]]
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]]

    @classmethod
    def read(cls, path: Path) -> Parts:
        header, keys = read_header(path.read_bytes()), dict[str, tuple[ValueType, Any]]()
        for key, value in header.metadata.items():
            if not isinstance(value, ArrayRef):
                keys[key] = header.types[key], value.encode() if isinstance(value, str) else value
                continue
            items: list[Any] = list(header.array(key))
            if value.type is V.STRING:
                items = [item.encode() for item in items]
            keys[key] = V.ARRAY, (value.type, items)
        tensors = {
            name: (info.type, info.shape, bytes(header.tensor_data(name)))
            for name, info in header.tensors.items()
        }
        return cls(keys, tensors)

    def copy(self) -> Parts:
        return Parts(dict(self.keys), dict(self.tensors))

    @property
    def architecture(self) -> str:
        value = self.keys.get("general.architecture", (V.STRING, b""))[1]
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""

    def array(self, key: str) -> list[Any] | None:
        kind, value = self.keys.get(key, (None, None))
        return list(value[1]) if kind is V.ARRAY else None

    def put(self, key: str, items: list[Any]) -> None:
        self.keys[key] = V.ARRAY, (self.keys[key][1][0], items)

    def encode(self) -> bytes:
        out = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))]
        for key, (kind, value) in self.keys.items():
            out += [_text(key.encode()), struct.pack("<I", kind), _payload(kind, value)]
        at = 0
        for name, (number, shape, data) in self.tensors.items():
            out += [_text(name.encode()), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
            out.append(struct.pack("<IQ", number, at))
            at += -(-len(data) // 32) * 32
        head = b"".join(out)
        weights = (data + bytes(-len(data) % 32) for _, _, data in self.tensors.values())
        return head + bytes(-len(head) % 32) + b"".join(weights)


def _text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _payload(kind: ValueType, value: Any) -> bytes:
    if kind is V.STRING:
        return _text(value if isinstance(value, bytes) else str(value).encode())
    if kind is V.ARRAY:
        inner, items = value
        head = struct.pack("<IQ", inner, len(items))
        return head + b"".join(_payload(inner, item) for item in items)
    if kind is V.BOOL:
        return bytes([int(value) & 1])
    if kind in (V.FLOAT32, V.FLOAT64):
        return struct.pack("<f" if kind is V.FLOAT32 else "<d", float(value))
    size = {V.UINT8: 1, V.INT8: 1, V.UINT16: 2, V.INT16: 2, V.UINT64: 8, V.INT64: 8}.get(kind, 4)
    return (int(value) & (1 << 8 * size) - 1).to_bytes(size, "little")


def write_bases(folder: Path) -> list[Path]:
    """Sound ones: dense, experts, a sliding window, recurrent, hybrid, SentencePiece, byte-level
    with gpt2's graph.
    """
    spm = vocabularies.sentence_piece()
    pieces = tiny_base.write_base(folder / "whole.gguf", text=False)
    whole = Parts.read(pieces)
    spm_keys = {
        key: (V.ARRAY, (V.STRING if isinstance(v[0], str) else V.INT32, v))
        for key, v in spm.metadata().items()
        if isinstance(v, list) and key != _SCORES
    }
    whole.keys |= spm_keys | {
        _SCORES: (V.ARRAY, (V.FLOAT32, spm.scores)),
        "tokenizer.ggml.model": (V.STRING, b"llama"),
        "llama.vocab_size": (V.UINT32, len(spm.tokens)),
    }
    rows = len(spm.tokens)
    for name in ("token_embd.weight", "output.weight"):
        number, (width, _), data = whole.tensors[name]
        more = data * (rows * width * 4 // len(data) + 1)
        whole.tensors[name] = number, (width, rows), more[: rows * width * 4]
    pieces.write_bytes(whole.encode())
    return [
        tiny_base.write_base(folder / "dense.gguf", template="{{ messages[0].content }}"),
        tiny_base.write_base(folder / "experts.gguf", experts=4),
        tiny_base.write_base(folder / "tied.gguf", tied=True, text=False),
        tiny_base.write_swa(folder / "swa.gguf"),
        tiny_base.write_recurrent(folder / "recurrent.gguf"),
        tiny_base.write_hybrid(folder / "hybrid.gguf", text=True),
        pieces,
    ]


def mutant(parts: Parts, rng: random.Random) -> tuple[Parts, str]:
    """A wrong copy, and in words what is wrong with it."""
    made = parts.copy()
    changes = rng.choices(_CHANGES, _WEIGHTS, k=rng.choice((1, 1, 1, 2, 3)))
    return made, "; ".join([change(made, rng) for change in changes])


def adapter_mutant(parts: Parts, rng: random.Random) -> tuple[Parts, str]:
    """The same of an adapter, which has no vocabulary."""
    made = parts.copy()
    changes = rng.choices((_scalar, _array, _tensor), (30, 20, 50), k=rng.choice((1, 1, 1, 2)))
    return made, "; ".join([change(made, rng) for change in changes])


def _scalar(parts: Parts, rng: random.Random) -> str:
    """Another value for a key there is, mostly one of the architecture's."""
    keys = [k for k, (kind, _) in parts.keys.items() if kind is not V.ARRAY]
    own = [k for k in keys if k.startswith(parts.architecture)]
    key = rng.choice(own if own and rng.random() < 0.7 else keys)
    kind, value = parts.keys[key]
    if rng.random() < 0.12:
        del parts.keys[key]
        return f"-{key}"
    if rng.random() < 0.15:
        kind = rng.choice([k for k in V if k not in (V.ARRAY, V.STRING)])
    parts.keys[key] = kind, _odd(parts, key, kind, value, rng)
    return f"{key}={parts.keys[key]}"[:90]


def _odd(parts: Parts, key: str, kind: ValueType, value: Any, rng: random.Random) -> Any:
    if kind is V.STRING:
        return _odd_text(parts, key, value, rng)
    if kind is V.BOOL:
        return not value
    number = value if isinstance(value, (int, float)) else 1
    if kind in _INTS:
        near = (number - 1, number + 1, number * 2, number // 2, -number, number * 3)
        return int(rng.choice((*near, *_ODD_INTS)))
    return rng.choice((*_ODD_FLOATS, -number, number * 1e3))


def _odd_text(parts: Parts, key: str, value: Any, rng: random.Random) -> bytes:
    known = {
        "tokenizer.ggml.model": _MODELS,
        "tokenizer.ggml.pre": _PRE,
        f"{parts.architecture}.rope.scaling.type": _ROPE,
    }
    if key == "general.architecture":
        return _as_architecture(parts, rng.choice(ARCHITECTURES))
    if key in known:
        return rng.choice(known[key]).encode()
    return rng.choice((*_TEXTS, b"a" * 70000))


def _as_architecture(parts: Parts, new: str) -> bytes:
    """Renames the keys, so that more than the first is found."""
    old = parts.architecture + "."
    for key in list(parts.keys):
        if key.startswith(old):
            parts.keys[new + "." + key[len(old) :]] = parts.keys.pop(key)
    return new.encode()


def _added(parts: Parts, rng: random.Random) -> str:
    """A key that llama.cpp reads, of a kind it may expect."""
    arch = parts.architecture
    which = rng.randrange(8)
    if which <= 1:
        key, value = f"{arch}.{rng.choice(_INT_KEYS)}", (V.UINT32, rng.choice(_ODD_INTS))
    elif which == 2:
        key, value = f"{arch}.{rng.choice(_FLOAT_KEYS)}", (V.FLOAT32, rng.choice(_ODD_FLOATS))
    elif which == 3:
        kind = rng.choice((V.UINT32, V.INT32, V.BOOL, V.FLOAT32, V.STRING))
        items = [
            rng.choice((0, 1, 2, 3, 4, 8, 64, -1, 10**6)) for _ in range(rng.choice((2, 4, 1)))
        ]
        key = f"{arch}.{rng.choice(_ARRAY_KEYS)}"
        value = V.ARRAY, (kind, items)  # type: ignore[assignment]
    elif which == 4:
        key, value = f"{arch}.{rng.choice(_BOOL_KEYS)}", (V.BOOL, rng.random() < 0.5)
    elif which == 5:
        key, value = f"{arch}.rope.scaling.type", (V.STRING, rng.choice(_ROPE))  # type: ignore[assignment]
    elif which == 6:
        n = len(parts.array(_TOKENS) or ())
        key = rng.choice(_TOKEN_KEYS)
        value = V.UINT32, rng.choice((n, n - 1, n + 1, 0, 2**31 - 1, 2**31, 2**32 - 1))
    else:
        key, value = rng.choice(_TOKEN_BOOLS), (V.BOOL, rng.random() < 0.7)
    parts.keys[key] = value
    return f"+{key}={value}"[:90]


def _vocabulary(parts: Parts, rng: random.Random) -> str:
    """Another list of tokens, types, scores or merges."""
    tokens = parts.array(_TOKENS)
    if not tokens:
        parts.keys["tokenizer.ggml.model"] = V.STRING, rng.choice(_MODELS)
        return f"model={parts.keys['tokenizer.ggml.model'][1]}"
    i, j = rng.randrange(len(tokens)), rng.randrange(len(tokens))
    which = rng.randrange(10)
    if which == 0:
        tokens[i] = tokens[j]
    elif which == 1:
        tokens[i] = rng.choice(_TEXTS)
    elif which == 2:
        tokens = [t for t in tokens if not t.startswith(b"<0x") or rng.random() < 0.9]
    elif which == 3:
        tokens = tokens[: rng.choice((0, 1, 5, len(tokens) // 2, len(tokens) - 1))]
    elif which == 4:
        tokens += [b"extra%d" % n for n in range(rng.choice((1, 5, 300)))]
    elif which == 5:
        model = rng.choice(_MODELS)
        parts.keys["tokenizer.ggml.model"] = V.STRING, model
        return f"model={model}"
    else:
        return _beside_tokens(parts, rng)
    parts.put(_TOKENS, tokens)
    return f"vocabulary {which}: {i} {j} {len(tokens)}"


def _beside_tokens(parts: Parts, rng: random.Random) -> str:
    """Other types, merges or scores."""
    types, merges, scores = (parts.array(key) for key in (_TYPES, _MERGES, _SCORES))
    which = rng.randrange(4)
    if which == 0 and types:
        for _ in range(rng.choice((1, 5, 400))):
            at = rng.randrange(len(types))
            types[at] = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, -1, 2**31 - 1))
        parts.put(_TYPES, types)
    elif which == 1 and types:
        parts.put(_TYPES, types[: rng.choice((0, 1, len(types) - 1))])
    elif which == 2 and merges is not None:
        odd = (b"", b" ", b"a", b" a", b"a ", b"a b c", b"\xff \xfe", b"t h", b"zz yy", b"  ")
        for _ in range(rng.choice((1, 4))):
            merges.insert(rng.randrange(len(merges) + 1), rng.choice(odd))
        parts.put(_MERGES, merges if rng.random() < 0.9 else [])
    elif which == 3 and scores:
        for _ in range(rng.choice((1, 50))):
            scores[rng.randrange(len(scores))] = rng.choice(_ODD_FLOATS)
        parts.put(_SCORES, scores if rng.random() < 0.8 else scores[:-3])
    return f"beside the tokens {which}"


def _array(parts: Parts, rng: random.Random) -> str:
    """A number becomes a list, or a list another."""
    own = [k for k in parts.keys if k.startswith(parts.architecture + ".")] or list(parts.keys)
    key = rng.choice(own)
    kind, value = parts.keys[key]
    if kind is V.ARRAY:
        inner, items = value
        items = list(items)
        cut = rng.choice((0, 1, len(items) - 1, len(items) + 1, len(items)))
        items = (items * 2)[:cut]
        if items and inner in _INTS:
            items[rng.randrange(len(items))] = rng.choice(_ODD_INTS)
    else:
        inner, items = kind, [value] * rng.choice((0, 1, 2, 3, 4, 8, 600))
        if items and kind in _INTS and rng.random() < 0.6:
            items[rng.randrange(len(items))] = rng.choice((0, 1, 2, 3, 7, 64, 128, 10**6))
    parts.keys[key] = V.ARRAY, (inner, items)
    return f"{key}=[{len(items)} {inner.name}]"


def _tensor(parts: Parts, rng: random.Random) -> str:
    """Another type, shape or content of a tensor, or none."""
    if not parts.tensors:
        return "no tensors"
    name = rng.choice(list(parts.tensors))
    number, shape, data = parts.tensors[name]
    which = rng.randrange(8)
    if which <= 2:
        fits = [n for n, (_, per, _) in GGML_TYPES.items() if shape[0] % per == 0]
        number = rng.choice(fits)
    elif which == 3:
        shape = rng.choice((shape[::-1], (*shape, 1), (*shape, 2), shape[:-1] or (1,)))
    elif which == 4:
        sizes = list(shape)
        i = rng.randrange(len(sizes))
        sizes[i] = rng.choice((0, 1, sizes[i] - 1, sizes[i] + 1, sizes[i] * 2, sizes[i] // 2))
        shape = tuple(sizes)
    elif which == 5:
        del parts.tensors[name]
        return f"-{name}"
    elif which == 6:
        parts.tensors[rng.choice(_NAMES)] = parts.tensors.pop(name)
        return f"{name} renamed"
    else:
        if rng.random() < 0.5:
            data = rng.randbytes(len(data))
        else:
            data = struct.pack("<f", rng.choice(_ODD_FLOATS)) * (len(data) // 4)
    if shape[0] % GGML_TYPES[number][1]:
        number = 0
    size = nbytes_of(shape, number)
    data = (data * (size // max(len(data), 1) + 1))[:size] if data else bytes(size)
    parts.tensors[name] = number, shape, data
    return f"{name}: {GGML_TYPES[number][0]} {shape}"


_NAMES = (
    *("output.weight", "rope_freqs.weight", "blk.0.attn_qkv.weight", "blk.0.attn_q.bias"),
    *("blk.7.attn_q.weight", "blk.0.rope_factors_long.weight", "token_embd_norm.weight", "x"),
    *("blk.0.attn_q_norm.weight", "blk.0.ffn_gate_exps.weight", "blk.1.attn_rot_embd"),
    *("rope_factors_long.weight", "rope_factors_short.weight", "blk.0.ffn_up.scale"),
)
_CHANGES: tuple[Callable[[Parts, random.Random], str], ...] = (
    _scalar,
    _added,
    _vocabulary,
    _array,
    _tensor,
)
_WEIGHTS = (30, 25, 20, 10, 25)
