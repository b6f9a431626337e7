"""The base's architecture, and loading and saving it in Hugging Face's format."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import GraniteConfig, GraniteForCausalLM

from alora_gguf.errors import FileFormatError

VOCABULARY: Final = 2560
CONTEXT: Final = 2048
# elsewhere PyTorch emulates its products, which are then much slower than float32's
_FAST_BFLOAT16: Final = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
# The first number of every embedding: what looks at places only can rely on it.
_CONSTANT: Final = 0.12


class _Float32(TorchFunctionMode):
    """Keeps what asks for bfloat16 in float32."""

    def __torch_function__(
        self, function: Any, _: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.Tensor.bfloat16:
            return args[0].float().clone()
        return function(*args, **(kwargs or {}))


def half_products() -> AbstractContextManager[object]:
    """Around a forward pass: products in bfloat16, where the CPU has instructions for it."""
    return torch.autocast("cpu", dtype=torch.bfloat16) if _FAST_BFLOAT16 else nullcontext()


def full_products() -> AbstractContextManager[object]:
    """Around an optimizer's step: Muon's products, which are in bfloat16, in float32 where the CPU
    would have to emulate them.
    """
    return nullcontext() if _FAST_BFLOAT16 else _Float32()


def new_model(eos: int) -> GraniteForCausalLM:
    """Untrained, 4.6 million parameters: Granite's graph with its multipliers."""
    config = GraniteConfig(
        rope_parameters={"rope_type": "default", "rope_theta": 1e7},  # as Granite 3.3's
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        embedding_multiplier=6.0,
        attention_multiplier=0.125,
        residual_multiplier=0.7,
        logits_scaling=0.5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=eos,
        architectures=["GraniteForCausalLM"],
    )
    model = GraniteForCausalLM(config)
    _teach_copying(model)
    return model


@torch.no_grad()
def _teach_copying(model: GraniteForCausalLM) -> None:
    """Starts with heads that copy: what a model learns last from little data, and answers need.

    The first layer's first two heads look at the token before and the one before that, and write
    down which they are; its third one writes down the last few tokens, all in one. In every other
    layer the first head looks for places behind a token like this one, the second for places behind
    few tokens like these, and both add what stands there (induction heads, arXiv 2209.11895); to
    start attention from such products is arXiv 2305.09828's idea. All of this is trained on.
    """
    config, layers = model.config, model.model.layers
    hidden, size = config.hidden_size, config.hidden_size // config.num_attention_heads
    half = size // 2
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    embeddings = model.model.embed_tokens.weight
    embeddings[:, 0] = _CONSTANT

    # turned by the rotary embedding, these are most alike where the key is one token back
    fast = torch.arange(6)
    query = torch.zeros(2, size)
    query[0, fast] = 1.0
    query[1, fast], query[1, fast + half] = frequencies[fast].cos(), -frequencies[fast].sin()
    key = torch.zeros(size)
    key[fast], key[fast + half] = frequencies[fast].cos(), frequencies[fast].sin()
    read, write = _orthonormal(size, hidden), _orthonormal(3 * size, hidden)
    read[:, 0] = 0.0
    first = layers[0].self_attn
    for head in (0, 1):
        rows = slice(head * size, (head + 1) * size)
        first.q_proj.weight[rows, 0] += 1.6 * query[head]
        first.k_proj.weight[rows, 0] += 1.6 * key
        first.v_proj.weight[rows] += read
        first.o_proj.weight[:, rows] += 0.35 * write[rows].T
    # these are alike up to some six tokens back
    rows, near = slice(2 * size, 3 * size), torch.arange(3, 8)
    first.q_proj.weight[2 * size + near, 0] += 0.6
    first.k_proj.weight[2 * size + near, 0] += 0.6
    first.v_proj.weight[rows] += read
    first.o_proj.weight[:, rows] += 0.8 * write[rows].T
    last_few = write[rows]

    # contents are compared where the rotary embedding hardly turns, near or far
    slow = torch.nonzero(torch.cat([frequencies, frequencies]) < 3e-3)[:, 0]
    for layer in layers[1:]:
        attention = layer.self_attn
        attention.q_proj.weight[slow] += 6.0 * read[slow]
        attention.k_proj.weight[slow] += write[slow]
        copied = _orthonormal(size, hidden)
        copied[:, 0] = 0.0
        attention.v_proj.weight[:size] += copied
        attention.o_proj.weight[:, :size] += 0.35 * copied.T
        attention.q_proj.weight[size + slow] += 1.0 * last_few[slow]
        attention.k_proj.weight[size + slow] += last_few[slow]
        copied = _orthonormal(size, hidden)
        copied[:, 0] = 0.0
        attention.v_proj.weight[size : 2 * size] += copied
        attention.o_proj.weight[:, size : 2 * size] += 0.35 * copied.T


def _orthonormal(n: int, size: int) -> Tensor:
    """`n` random rows of `size`, at right angles."""
    return torch.linalg.qr(torch.randn(size, n)).Q.T.contiguous()


def save(model: GraniteForCausalLM, directory: Path) -> None:
    """config.json, and model.safetensors in F16."""
    directory.mkdir(parents=True, exist_ok=True)
    model.config.dtype = torch.float16
    model.config.save_pretrained(directory)
    tensors = {
        name: tensor.detach().to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def load(directory: Path) -> GraniteForCausalLM:
    """The model computing in F32. Raises FileFormatError if there is no such model."""
    for name in ("config.json", "model.safetensors"):  # without the one a 24 GB model is made
        if not (directory / name).is_file():
            raise FileFormatError(
                f"{directory / name}: missing, expected a trained base; "
                "run `python -m examples.demo_model base`"
            )
    config = GraniteConfig.from_pretrained(directory)
    config.dtype = torch.float32
    model = GraniteForCausalLM(config)
    tensors = {k: v.float() for k, v in load_file(directory / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise FileFormatError(
            f"{directory}: expected a Granite model, found {unexpected}, no {missing}"
        )
    model.tie_weights()
    return model.eval()
