"""The base's architecture, and loading and saving it in Hugging Face's format."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file
from transformers import GraniteConfig, GraniteForCausalLM

VOCABULARY: Final = 3072
CONTEXT: Final = 2048


def new_model(eos: int) -> GraniteForCausalLM:
    """Untrained, 4.3 million parameters: Granite's graph with its multipliers."""
    config = GraniteConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
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
    return GraniteForCausalLM(config)


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
    """The model computing in F32."""
    config = GraniteConfig.from_pretrained(directory)
    config.dtype = torch.float32
    model = GraniteForCausalLM(config)
    tensors = {k: v.float() for k, v in load_file(directory / "model.safetensors").items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"{directory}: expected a Granite model, found {unexpected}, no {missing}")
    model.tie_weights()
    return model.eval()
