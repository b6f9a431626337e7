"""What llama.cpp asserts of a base's header, or walks out of: one table of rules, checked before it
sees the file. Where a rule stands for asserts of one graph each, a test reads those from upstream.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

from alora_gguf.errors import ModelError

from .header import GGUFHeader
from .parser import ArrayRef, TensorInfo, ValueType

MAX_LAYERS: Final = 512  # upstream's LLAMA_MAX_LAYERS: its arrays have so many places
MAX_EXPERTS: Final = 1024  # LLAMA_MAX_EXPERTS
_POOLING: Final = (*range(5), 0xFFFFFFFF)  # none to rank, and "unspecified", -1
_ROPE_SCALING: Final = ("none", "linear", "yarn", "longrope")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Architectures whose graph asserts that all of a head is rotated: n_embd_head == n_rot.
WHOLE_HEADS: Final = _names(
    "apertus arcee arctic baichuan chameleon codeshell cogvlm cohere2moe dbrx deci deepseek dots1 "
    "dream ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon granite granite_swa granitemoe "
    "graniteswitch grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 internlm2 jais2 llada "
    "llada-moe llama llama-embed llama4 maincoder mellum minicpm mistral3 olmo olmo2 olmoe orion "
    "paddleocr pangu-embedded plamo pockettts qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl "
    "qwen3vlmoe rnd1 seed_oss smallthinker smollm3 starcoder2 talkie xverse"
)
# and those whose graph asserts that keys and values have one size
SAME_HEADS: Final = WHOLE_HEADS | _names(
    "afmoe bailingmoe2 bert bitnet bloom chatglm cohere2 command-r dflash eagle3 eurobert glm4 "
    "glm4moe gpt2 gptneox granitehybrid jais jina-bert-v2 jina-bert-v3 laguna maple minimax-01 "
    "minimax-m2 minimax-m3 modern-bert mpt muse-glimmer nanbeige nemotron nemotron_h "
    "nemotron_h_moe neo-bert nomic-bert nomic-bert-moe openelm phi2 phi3 phimoe qwen qwen35 "
    "qwen35moe qwen3next qwen4exp refact spark2_5 stablelm starcoder t5 t5encoder"
)
# Those of them whose layers all are like the first, which has attention
_ALIKE: Final = SAME_HEADS - _names(
    "deci dflash eagle3 granite_swa granitehybrid graniteswitch hunyuan-moe laguna maple "
    "minimax-01 muse-glimmer nemotron_h nemotron_h_moe openelm qwen35 qwen35moe qwen3next "
    "qwen4exp spark2_5 t5 t5encoder"
)
# Those that assert of recurrent layers 2 * n_embd == d_inner
_TWICE: Final = frozenset({"granitehybrid", "jamba"})
# Those whose recurrent layers add a bias to their convolution
_BIASED: Final = _names("falcon-h1 granitehybrid jamba mamba mamba2 nemotron_h nemotron_h_moe")
# Graphs that are not causal, whatever the header says
NOT_CAUSAL: Final = _names("dream gemma-embedding llada llada-moe rnd1")
# Kernels that multiply with these there are none; a weight of one aborts at the first decode, or
# reads what is not there. Tables of ids, which are only looked up, are I32 or I64.
_NO_WEIGHT: Final = frozenset({"F64", "I8", "I16", "I32", "I64", "Q8_1", "Q8_K"})
_ID_TABLES: Final = ("d2t", "t2d", "tid2eid")
# Tensors that are added, or multiplied element by element: only with F32 everywhere. Upstream's
# converter writes these as F32 whatever the file's type.
_ELEMENTWISE: Final = ("_norm.weight", "_norm.bias", ".bias", "ssm_a", "ssm_d", ".scale")
_F32_PARTS: Final = (".ssm_conv1d.", ".shortconv.conv.", "rope_freqs", "rope_factors_")


class _Base:
    """A header's numbers as llama.cpp takes them: u32, with `overrides` in their places."""

    def __init__(
        self, header: GGUFHeader, overrides: Mapping[str, Any], tensors: Mapping[str, TensorInfo]
    ) -> None:
        self.header, self.tensors = header, tensors
        self.architecture = header.architecture
        self._overrides = overrides

    def value(self, name: str) -> Any:
        key = f"{self.architecture}.{name}"
        stored = self.header.metadata.get(key)
        if not isinstance(stored, ArrayRef) and key in self._overrides:
            return self._overrides[key]
        return stored

    def number(self, name: str, default: int = 0) -> int:
        value = self.value(name)
        return value & 0xFFFFFFFF if isinstance(value, int) else default

    def layers(self, name: str) -> list[int]:
        """A number of each layer, of which there may be one for all; [] if there is none."""
        value = self.value(name)
        if not isinstance(value, ArrayRef):
            return [value & 0xFFFFFFFF] if isinstance(value, int) else []
        if value.type in (ValueType.STRING, ValueType.FLOAT32, ValueType.FLOAT64):
            return []  # llama.cpp refuses those
        if value.count > MAX_LAYERS:
            return []
        key = f"{self.architecture}.{name}"
        return [each & 0xFFFFFFFF for each in self.header.array(key)]


def check_base(
    header: GGUFHeader,
    tensors: Mapping[str, TensorInfo],
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """Raises ModelError for the first thing that llama.cpp would end the process over. `overrides`
    take the places of metadata, as llama.cpp's kv_overrides do.
    """
    base = _Base(header, overrides or {}, tensors)
    for rule in _RULES:
        for problem in rule(base):
            raise ModelError(
                f"{header.name}: {problem}; the file is damaged, or was not made for llama.cpp"
            )


def head_sizes(header: GGUFHeader) -> tuple[frozenset[int], frozenset[int]]:
    """The sizes that a head's keys and values have in some layer; empty ones without attention."""
    base = _Base(header, {}, {})
    n_head = next(iter(base.layers("attention.head_count")), 0)
    keys, values = set[int](), set[int]()
    if n_head:
        key = value = base.number("embedding_length") // n_head
        for window in ("", "_swa"):
            key = base.number(f"attention.key_length{window}", key)
            value = base.number(f"attention.value_length{window}", value)
            keys.add(key)
            values.add(value)
    return frozenset(keys), frozenset(values)


def stream_sizes(
    header: GGUFHeader, overrides: Mapping[str, Any] | None = None
) -> tuple[int | None, int | None]:
    """How many blocks a token passes, and how wide the stream between them is; None for what the
    file does not say.
    """
    base = _Base(header, overrides or {}, {})
    layers = base.number("block_count") - base.number("nextn_predict_layers")
    return (layers if layers > 0 else None), base.number("embedding_length") or None


def is_causal(header: GGUFHeader) -> bool:
    """Whether a token sees only those before it, without which cells cannot be shared."""
    architecture = header.architecture
    causal = header.metadata.get(f"{architecture}.attention.causal")
    return architecture not in NOT_CAUSAL and causal is not False


def departures(header: GGUFHeader) -> tuple[tuple[int, str], ...]:
    """Where llama.cpp computes another base than transformers: from how many cells on, and how."""
    base, found = _Base(header, {}, {}), list[tuple[int, str]]()
    window = base.number("attention.sliding_window")
    if base.architecture == "phi3" and window:
        found.append(
            (
                window,
                f"llama.cpp ignores this phi3's sliding window of {window} tokens: past it, the "
                "base differs from the one that the adapter was trained on",
            )
        )
    original = base.number("rope.scaling.original_context_length")
    if original and any("rope_factors_long" in name for name in header.tensors):
        found.append(
            (
                original,
                "llama.cpp chooses LongRoPE's factors by n_ctx, transformers by the prompt: with "
                f"n_ctx above {original}, shorter prompts are computed otherwise than in training; "
                f"n_ctx={original} agrees, where that is enough",
            )
        )
    return tuple(found)


def _count_layers(base: _Base) -> Iterator[str]:
    n, a = base.number("block_count", 1), base.architecture
    if not 0 < n <= MAX_LAYERS:
        yield f"{a}.block_count is {n}, expected 1 to {MAX_LAYERS}"
    for name in ("nextn_predict_layers", "posnet.block_count", "convnext.block_count"):
        if base.number(name) > n:
            yield f"{a}.{name} is {base.number(name)}, expected at most the {n} of block_count"


def _count_experts(base: _Base) -> Iterator[str]:
    a, n = f"{base.architecture}.expert", base.number("expert_count")
    used = max(base.layers("expert_used_count"), default=0)
    groups, groups_used = base.number("expert_group_count"), base.number("expert_group_used_count")
    if base.architecture in ("hunyuan_vl", "hunyuan-dense") and n <= 1:
        n = used = 0
    if n > MAX_EXPERTS:
        yield f"{a}_count is {n}, expected at most {MAX_EXPERTS}"
    if not min(n, 1) <= used <= n:
        yield f"{a}_used_count is {used}, expected {min(n, 1)} to the {n} of expert_count"
    if groups and groups >= n:
        yield f"{a}_group_count is {groups}, expected less than the {n} of expert_count"
    if groups > 1 and n % groups:
        yield f"{a}_group_count is {groups}, which does not divide the {n} experts"
    if groups > 1 and not 0 < groups_used < groups:
        yield f"{a}_group_used_count is {groups_used}, expected 1 to {groups - 1}"


def _size_heads(base: _Base) -> Iterator[str]:
    a, n_embd = base.architecture, base.number("embedding_length")
    n_head = next(iter(base.layers("attention.head_count")), 0)
    if not n_head and a in _ALIKE and base.value("block_count") is not None:
        yield f"{a}.attention.head_count is {n_head} or missing, expected at least 1"
    if not n_head:
        return
    for name in ("head_count", "head_count_kv"):
        if a in _ALIKE and len(set(base.layers(f"attention.{name}"))) > 1:
            yield f"{a}.attention.{name} differs between layers, expected the same in all"
    keys = values = n_embd // n_head
    rotated: int | None = None
    for window in ("", "_swa"):  # layers with a sliding window may have sizes of their own
        keys = base.number(f"attention.key_length{window}", keys)
        values = base.number(f"attention.value_length{window}", values)
        rotated = base.number(f"rope.dimension_count{window}", keys if rotated is None else rotated)
        if a in SAME_HEADS and keys != values:
            yield (
                f"{a}.attention.key_length{window} is {keys} and value_length{window} {values}, "
                f"expected the same (embedding_length {n_embd}, {n_head} heads)"
            )
        if a in WHOLE_HEADS and rotated != keys:
            yield f"{a}.rope.dimension_count{window} is {rotated}, expected the {keys} of a head"


def _size_states(base: _Base) -> Iterator[str]:
    n_embd, inner = base.number("embedding_length"), base.number("ssm.inner_size")
    if base.architecture in _TWICE and inner != 2 * n_embd:
        yield (
            f"{base.architecture}.ssm.inner_size is {inner}, expected twice the {n_embd} of "
            "embedding_length"
        )


def _compute(base: _Base) -> Iterator[str]:
    a, scaling = base.architecture, base.value("rope.scaling.type")
    if isinstance(scaling, str) and scaling not in _ROPE_SCALING:
        expected = ", ".join(_ROPE_SCALING)
        yield f"{a}.rope.scaling.type is {scaling[:40]!r}, expected one of {expected}"
    pooling = base.number("pooling_type")
    if pooling not in _POOLING:
        yield f"{a}.pooling_type is {pooling}, expected 0 to 4"
    for kind in ("layer_norm_rms", "layer_norm", "group_norm"):
        name = f"attention.{kind}_epsilon"
        value = base.value(name)
        if isinstance(value, float) and not 0 <= value < math.inf:
            yield f"{a}.{name} is {value}, expected a finite number of at least 0"


def _type_tensors(base: _Base) -> Iterator[str]:
    for name, info in base.tensors.items():
        kind = info.type_name
        table = any(part in name for part in _ID_TABLES) and kind in ("I32", "I64")
        if kind in _NO_WEIGHT and not table:
            yield (
                f"tensor '{name}' is {kind}, which llama.cpp cannot compute with; convert the "
                "model again with F32, F16 or quantized weights"
            )
        single = len(info.shape) == 1 or name.endswith(_ELEMENTWISE)
        if (single or any(part in name for part in _F32_PARTS)) and kind != "F32" and not table:
            yield f"tensor '{name}' is {kind}, expected F32, as norms, biases and tables are"


def _find_attention(base: _Base) -> Iterator[str]:
    layers = base.number("block_count") - base.number("nextn_predict_layers")
    for i in range(layers if base.architecture in _ALIKE else 0):
        one, other = f"blk.{i}.attn_qkv.weight", f"blk.{i}.attn_q.weight"
        if one not in base.tensors and other not in base.tensors:
            yield f"there is neither '{one}' nor '{other}'"


def _complete(base: _Base) -> Iterator[str]:
    """What graphs use without looking whether it is there."""
    a = base.architecture
    for name in base.tensors if a in _BIASED else ():
        bias = name.removesuffix("weight") + "bias"
        if name.endswith(".ssm_conv1d.weight") and bias not in base.tensors:
            yield f"there is no '{bias}'"
    pattern, key = base.value("attention.sliding_window_pattern"), "sliding_window_pattern"
    listed = isinstance(pattern, ArrayRef) and base.number("attention.sliding_window")
    if listed and not any(base.header.array(f"{a}.attention.{key}")[: base.number("block_count")]):
        yield f"{a}.attention.{key} names no layer, expected those with a sliding window"
    n_head = next(iter(base.layers("attention.head_count")), 0)
    if a == "jamba" and n_head:
        size = base.number("embedding_length") // n_head
        for key in ("key_length", "value_length"):
            if base.number(f"attention.{key}", size) != size:
                yield f"{a}.attention.{key} is not the {size} of embedding_length for each head"


_RULES: Final[tuple[Callable[[_Base], Iterator[str]], ...]] = (
    _count_layers,
    _count_experts,
    _size_heads,
    _size_states,
    _compute,
    _type_tensors,
    _find_attention,
    _complete,
)


# Vocabularies -------------------------------------------------------------------------------------

_MODEL, _TOKENS = "tokenizer.ggml.model", "tokenizer.ggml.tokens"
_TYPES, _BYTE = "tokenizer.ggml.token_type", 6  # LLAMA_TOKEN_TYPE_BYTE


def check_vocabulary(header: GGUFHeader) -> None:
    """Raises ModelError for a vocabulary that llama.cpp would end the process over, or read a text
    with for ever.
    """
    ref, model = header.metadata.get(_TOKENS), header.metadata.get(_MODEL)
    if not isinstance(ref, ArrayRef) or ref.type is not ValueType.STRING or model == "none":
        return
    types = header.metadata.get(_TYPES)
    bytewise = model == "bert" and isinstance(types, ArrayRef)
    if bytewise and _BYTE in header.array(_TYPES):
        raise ModelError(
            f"{header.name}: its vocabulary has tokens for bytes, expected none in one of "
            "tokenizer.ggml.model 'bert'"
        )
    for problem in _vocabulary_problems(str(model), _strings(header)):
        raise ModelError(f"{header.name}: {problem}; the file's vocabulary is damaged")


def _strings(header: GGUFHeader) -> list[bytes]:
    """The tokens as llama.cpp takes them: up to a zero byte, and empty ones by their number."""
    data = bytes(header.array_bytes(_TOKENS))
    out, pos, length = list[bytes](), 0, struct.Struct("<Q").unpack_from
    for i in range(cast(ArrayRef, header.metadata[_TOKENS]).count):
        begin = pos + 8
        pos = begin + length(data, pos)[0]
        token = data[begin:pos]
        out.append((token.partition(b"\0")[0] if b"\0" in token else token) or b"[EMPTY_%d]" % i)
    return out


def _vocabulary_problems(model: str, tokens: list[bytes]) -> Iterator[str]:
    if len(set(tokens)) != len(tokens):
        seen = dict[bytes, int]()
        for i, token in enumerate(tokens):
            first = seen.setdefault(token, i)
            if first != i:
                yield f"tokens {first} and {i} are both {_shown(token)}, expected no two alike"
                return
    if model == "rwkv":  # a text that begins like a token and goes on otherwise is read for ever
        whole = {_unescaped(token) for token in tokens}
        missing = sorted({token[:1] for token in whole if token} - whole)
        if missing:
            yield f"there is no token of byte {missing[0][0]} alone, with which others begin"


def _shown(token: bytes) -> str:
    return repr(token[:40].decode("utf-8", "replace"))


def _unescaped(token: bytes) -> bytes:
    r"""As llama.cpp reads RWKV's tokens: \t, \n, \r and \xNN stand for a byte each."""
    out, parts = bytearray(), iter(token)
    for byte in parts:
        letter = next(parts, None) if byte == ord("\\") else None
        if letter == ord("x"):
            digits = [next(parts, None) for _ in range(2)]
            if None not in digits:
                value = 0
                for digit in filter(None, digits):
                    value = value * 16 + (digit - 87 if digit >= 97 else digit - 48)
                out.append(value & 255)
        elif byte != ord("\\"):
            out.append(byte)
        elif letter is not None:
            out.append(_ESCAPES.get(letter, letter))
    return bytes(out)


_ESCAPES: Final = {ord("t"): 9, ord("n"): 10, ord("r"): 13}
