"""Seeded tiny models of every family, as transformers directories and as F32 base GGUFs.

They are random, but scaled like trained ones: activations of size one, logits of a few units, so
that an adapter's effect stands far above rounding. Built once into build/test-models and kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .upstream import ROOT, upstream_tree

N_VOCAB = 320
_BASE, _FUSED = "base.gguf", "fused.gguf"
_HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM = 128, 4, 2, 32

_COMMON: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": _HIDDEN,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "max_position_embeddings": 2048,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 0.5,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.25,
}


_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_HYBRID: dict[str, Any] = {
    **_GRANITE,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "shared_intermediate_size": 192,  # upstream wants it equal to intermediate_size where dense
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
}
# Granite 4 without state space layers: upstream makes it a granite or granitemoe
_ATTENTION_ONLY: dict[str, Any] = {
    **_HYBRID,
    "num_hidden_layers": 3,
    "layer_types": ["full_attention"] * 3,
    "position_embedding_type": "rope",
}


@dataclass(frozen=True)
class Family:
    """A transformers configuration class and what of it differs from the common shape."""

    config: str
    options: dict[str, Any]


# graphs that differ from each other in what concerns the runtime: its tests go over all of them
FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaConfig", {}),
    "mistral": Family("MistralConfig", {"head_dim": 64, "sliding_window": None}),
    "granite": Family("GraniteConfig", {**_GRANITE, "tie_word_embeddings": True}),
    "qwen2": Family("Qwen2Config", {}),
    "qwen3": Family("Qwen3Config", {"head_dim": 64}),
    # upstream: every sixth layer attends to everything, the others to a window
    "gemma3": Family(
        "Gemma3TextConfig",
        {
            "num_hidden_layers": 6,
            "head_dim": _HEAD_DIM,
            "query_pre_attn_scalar": _HEAD_DIM,
            "sliding_window": 16,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "phi3": Family("Phi3Config", {"pad_token_id": 0, "sliding_window": None}),
    "granitemoe": Family(
        "GraniteMoeConfig",
        {**_GRANITE, **_EXPERTS, "intermediate_size": 96},
    ),
    "granitemoehybrid": Family("GraniteMoeHybridConfig", _HYBRID),
}

# further ones, which the converter's tests need
MORE_FAMILIES: dict[str, Family] = {
    # gate and up projections together are square, as in Granite 3.1 1B A400M: a shape does not tell
    # which side is the input
    "granitemoe-square": Family(
        "GraniteMoeConfig", {**_GRANITE, **_EXPERTS, "intermediate_size": _HIDDEN // 2}
    ),
    "mixtral": Family("MixtralConfig", {**_EXPERTS, "intermediate_size": 96}),
    "qwen2moe": Family(
        "Qwen2MoeConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 96,
            "shared_expert_intermediate_size": 160,
        },
    ),
    "qwen3moe": Family(
        "Qwen3MoeConfig",
        {
            "head_dim": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 96,
            "norm_topk_prob": True,  # as in all published ones, and in upstream's graph
        },
    ),
    # every other layer attends to a window
    "gemma2": Family(
        "Gemma2Config",
        {
            "num_hidden_layers": 4,
            "head_dim": _HEAD_DIM,
            "query_pre_attn_scalar": _HEAD_DIM,
            "sliding_window": 16,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "olmo2": Family("Olmo2Config", {}),
    # every fourth layer has no rotary embedding
    "smollm3": Family("SmolLM3Config", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "starcoder2": Family("Starcoder2Config", {"tie_word_embeddings": True}),
    "gpt2": Family("GPT2Config", {"n_positions": 2048, "tie_word_embeddings": True}),
    "granitemoehybrid-moe": Family(
        "GraniteMoeHybridConfig", {**_HYBRID, **_EXPERTS, "intermediate_size": 96}
    ),
    "granitemoehybrid-attention": Family("GraniteMoeHybridConfig", _ATTENTION_ONLY),
    "granitemoehybrid-attention-moe": Family(
        "GraniteMoeHybridConfig", {**_ATTENTION_ONLY, **_EXPERTS, "intermediate_size": 96}
    ),
}
ALL_FAMILIES = {**FAMILIES, **MORE_FAMILIES}
# those with a second GGUF, in which query, key and value projections are one tensor
FUSED_FAMILIES = ("llama", "qwen2")


@dataclass(frozen=True)
class TinyModel:
    """A family's model on disk: `directory` as transformers saved it, `gguf` the F32 base."""

    family: str
    directory: Path
    gguf: Path

    @property
    def fused(self) -> TinyModel:
        """The same model of FUSED_FAMILIES with its other GGUF."""
        return replace(self, gguf=self.directory / _FUSED)

    def load(self) -> Any:
        """A fresh torch model, float32 and in eval mode."""
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)  # these sizes gain nothing from more, and waiting threads spin
        model = AutoModelForCausalLM.from_pretrained(
            self.directory, dtype=torch.float32, attn_implementation="eager"
        )
        return model.eval()  # type: ignore[no-untyped-call]


@functools.cache
def tiny_model(family: str) -> TinyModel:
    """The tiny model of a family of ALL_FAMILIES.

    Builds it, and what else is missing of the same group: what takes long is to start upstream.
    """
    folder = _cache()
    group = FAMILIES if family in FAMILIES else MORE_FAMILIES
    build(name for name in group if not (folder / name / _BASE).is_file())
    return TinyModel(family, folder / family, folder / family / _BASE)


def build(families: Iterable[str]) -> None:
    """Writes the given families into the cache; two processes may do so at once."""
    names = list(families)
    if not names:
        return
    folder = _cache()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        work = Path(temporary)
        for name in names:
            _make(name).save_pretrained(work / name)
            _write_vocabulary(work / name)
        script = Path(__file__).with_name("write_base.py")
        files = [work / n / _BASE for n in names]
        files += [work / n / _FUSED for n in names if n in FUSED_FAMILIES]
        run = subprocess.run(
            [sys.executable, str(script), str(upstream_tree()), *map(str, files)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if run.returncode:
            raise RuntimeError(f"{script.name} failed:\n{run.stderr}")
        for name in names:
            with contextlib.suppress(OSError):  # another process was faster; its model is the same
                (work / name).replace(folder / name)


def _cache() -> Path:
    """build/test-models/<hash of what decides the models>."""
    here = Path(__file__)
    parts = [here.read_bytes(), here.with_name("write_base.py").read_bytes()]
    parts += [importlib.metadata.version(p).encode() for p in ("transformers", "torch")]
    root = Path(os.environ.get("ALORA_TEST_CACHE", ROOT / "build" / "test-models"))
    return root / hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _make(family: str) -> Any:
    import torch
    import transformers

    spec = ALL_FAMILIES[family]
    config = getattr(transformers, spec.config)(**{**_COMMON, **spec.options})
    torch.manual_seed(sum(family.encode()))
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name, parameter)
    return model.eval()


def _fill(name: str, parameter: Any) -> None:
    """Scales a parameter as if trained: unit activations in, unit activations out."""
    import torch

    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("A_log", "D", "dt_bias") or "conv1d" in name:
        return  # the state space's own initialisation is sensible
    if "norm" in name or ".ln_" in name:  # gemma stores a norm's weight less one
        parameter.add_(torch.randn_like(parameter) * 0.1)
    elif leaf == "bias":
        parameter.copy_(torch.randn_like(parameter) * 0.1)
    elif "embed_tokens" in name or leaf in ("wte", "wpe"):
        parameter.copy_(torch.randn_like(parameter) * _HIDDEN**-0.5)
    else:
        # GPT-2 keeps [in, out]
        n_in = parameter.shape[0 if name.startswith("transformer.h.") else -1]
        parameter.copy_(torch.randn_like(parameter) * n_in**-0.5)


def _write_vocabulary(directory: Path) -> None:
    """Upstream's gemma converter reads only the number of tokens from it."""
    vocabulary = ",".join(f'"t{i}":{i}' for i in range(N_VOCAB))
    (directory / "tokenizer.json").write_text(
        '{"model":{"vocab":{' + vocabulary + '}},"added_tokens":[]}'
    )
