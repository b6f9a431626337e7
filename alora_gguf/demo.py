"""What `alora-gguf demo` runs on: a seeded base with random weights, adapters for it, and a long
conversation. Nothing here has learned anything; times are real, answers are noise.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# answers are read off the adapters of these names, each asked by its own control token
INTRINSICS: Final = (
    "answerability",
    "uncertainty",
    "query_rewrite",
    "hallucination",
    "jailbreak",
)

_EMBED, _LAYERS, _HEADS, _KV_HEADS, _HEAD_DIM, _FF = 512, 8, 8, 2, 64, 1536
_RANK, _ALPHA = 32, 64
_SPECIAL: Final = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")
_USER_DEFINED, _CONTROL, _NORMAL = 4, 3, 1  # llama_token_type


@dataclass(frozen=True)
class Demo:
    """Files of a demo: the base, and for each intrinsic a PEFT directory as an aLoRA and one with
    the same weights as a plain LoRA.
    """

    base: Path
    alora: dict[str, Path]
    lora: dict[str, Path]


def write_demo(directory: Path, *, seed: int = 0) -> Demo:
    """Writes the demo's base (GGUF, Q8_0, 30 MB) and adapters (PEFT's format) into `directory`."""
    import numpy as np

    vocabulary = _vocabulary(conversation())
    base = directory / "base.gguf"
    _write_base(base, vocabulary, np.random.default_rng(seed))

    alora, lora = {}, {}
    for i, name in enumerate(INTRINSICS):
        weights = _adapter_weights(np.random.default_rng(seed + 1 + i))
        invocation = [vocabulary.tokens.index(text) for text in invocation_of(name)]
        alora[name] = _write_peft(directory / "peft" / "alora" / name, weights, invocation)
        lora[name] = _write_peft(directory / "peft" / "lora" / name, weights, None)
    return Demo(base, alora, lora)


def invocation_of(name: str) -> tuple[str, str, str]:
    """An intrinsic's invocation as the texts of its tokens: a role of its own."""
    return ("<|start_of_role|>", f"<{name}>", "<|end_of_role|>")


def conversation(*, turns: int = 40, seed: int = 0) -> str:
    """A chat about a harbour town's shops, about 50 tokens a turn."""
    rng = random.Random(seed)  # noqa: S311 (no secret depends on it)
    people = ["Amira", "Jonas", "Mei", "Tomas", "Lucia", "Pavel"]
    shops = ["bakery", "bookshop", "ferry office", "pharmacy", "boatyard", "library"]
    things = ["rye bread", "a tide table", "two tickets", "a rope", "an atlas", "plasters"]
    lines = []
    for _ in range(turns):
        who, shop, thing = rng.choice(people), rng.choice(shops), rng.choice(things)
        hour, price = rng.randint(8, 19), rng.randint(2, 60)
        lines += [
            f"<|start_of_role|>user<|end_of_role|>Where does {who} buy {thing}, and when does the "
            f"{shop} open?<|end_of_text|>",
            f"<|start_of_role|>assistant<|end_of_role|>{who} buys {thing} at the {shop} for "
            f"{price} crowns. The {shop} by the harbour opens at {hour} and closes when the last "
            f"ferry has left.<|end_of_text|>",
        ]
    return "\n".join(lines)


# The base ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Vocabulary:
    tokens: list[str]
    types: list[int]
    merges: list[str]


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {b: chr(b) for b in visible}
    hidden = (b for b in range(256) if b not in letters)
    letters.update({b: chr(256 + i) for i, b in enumerate(hidden)})
    return letters


def _vocabulary(text: str) -> _Vocabulary:
    """Bytes, the words of `text` with their beginnings (joined letter by letter), and roles."""
    letters = _byte_letters()
    for special in _SPECIAL:
        text = text.replace(special, " ")
    words = sorted({w for raw in text.split() for w in (raw.strip(".,?"), " " + raw.strip(".,?"))})

    tokens = [letters[b] for b in range(256)]
    known, merges = set(tokens), []
    for word in words:
        spelled = "".join(letters[b] for b in word.encode())
        for end in range(2, len(spelled) + 1):
            if spelled[:end] not in known:
                known.add(spelled[:end])
                tokens.append(spelled[:end])
                merges.append(f"{spelled[: end - 1]} {spelled[end - 1]}")
    types = [_NORMAL] * len(tokens)
    tokens += [*_SPECIAL, *(f"<{name}>" for name in INTRINSICS)]
    types += [_CONTROL] * (len(_SPECIAL) + len(INTRINSICS))
    return _Vocabulary(tokens, types, merges)


def _write_base(path: Path, vocabulary: _Vocabulary, rng: np.random.Generator) -> None:
    import gguf

    writer = gguf.GGUFWriter(str(path), "granite")
    writer.add_name("alora-gguf demo (random weights)")
    writer.add_context_length(8192)
    writer.add_embedding_length(_EMBED)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FF)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_rope_dimension_count(_HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_logit_scale(1.0)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_eos_token_id(vocabulary.tokens.index("<|end_of_text|>"))
    writer.add_add_bos_token(False)

    def random_weight(name: str, rows: int, cols: int) -> None:
        values = rng.standard_normal((rows, cols), dtype="float32") * cols**-0.5
        quantized = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, quantized, raw_dtype=gguf.GGMLQuantizationType.Q8_0)

    random_weight("token_embd.weight", len(vocabulary.tokens), _EMBED)
    _add_norm(writer, "output_norm.weight")
    for i in range(_LAYERS):
        _add_norm(writer, f"blk.{i}.attn_norm.weight")
        _add_norm(writer, f"blk.{i}.ffn_norm.weight")
        for name, (rows, cols) in _SHAPES.items():
            random_weight(f"blk.{i}.{name}.weight", rows, cols)

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_SHAPES: Final = {
    "attn_q": (_HEADS * _HEAD_DIM, _EMBED),
    "attn_k": (_KV_HEADS * _HEAD_DIM, _EMBED),
    "attn_v": (_KV_HEADS * _HEAD_DIM, _EMBED),
    "attn_output": (_EMBED, _HEADS * _HEAD_DIM),
    "ffn_gate": (_FF, _EMBED),
    "ffn_up": (_FF, _EMBED),
    "ffn_down": (_EMBED, _FF),
}


def _add_norm(writer: Any, name: str) -> None:
    import numpy as np

    writer.add_tensor(name, np.ones(_EMBED, dtype=np.float32))


# Adapters, in PEFT's format ----------------------------------------------------------------------

_MODULES: Final = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
}


def _adapter_weights(rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    weights = {}
    for i in range(_LAYERS):
        for module, tensor in _MODULES.items():
            rows, cols = _SHAPES[tensor]
            name = f"base_model.model.model.layers.{i}.self_attn.{module}"
            a = rng.standard_normal((_RANK, cols), dtype="float32") * cols**-0.5
            b = rng.standard_normal((rows, _RANK), dtype="float32") * _RANK**-0.5
            weights[f"{name}.lora_A.weight"] = a
            weights[f"{name}.lora_B.weight"] = b
    return weights


def _write_peft(
    directory: Path, weights: dict[str, NDArray[np.float32]], invocation: list[int] | None
) -> Path:
    """An adapter directory with the two files that PEFT's save_pretrained() writes."""
    directory.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": _RANK,
        "lora_alpha": _ALPHA,
        "target_modules": list(_MODULES),
        "alora_invocation_tokens": invocation,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2))

    header: dict[str, Any] = {}
    offset = 0
    for name, tensor in weights.items():
        end = offset + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    with (directory / "adapter_model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in weights.values():
            file.write(tensor.tobytes())
    return directory
