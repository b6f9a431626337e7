"""What a base's metadata mean to llama.cpp, key by key, they mean to transformers' model of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import alora_gguf as ag
from alora_gguf.gguf.header import read_header
from alora_gguf.train.hf_model import load_model
from tests.parity.sides import EXACT, read
from tests.support.make_gguf import Type, rewritten
from tests.support.tiny_models import tiny_model

IDS = [int(t) for t in np.random.default_rng(3).integers(10, 310, 40)]
YARN = {"rope.scaling.type": "yarn", "rope.scaling.original_context_length": 16}
FACTORS = np.linspace(1, 8, 16, dtype=np.float32)
# family, keys without their architecture, tensors
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *(
        (family, {"rope.freq_base": 50.0}, {})
        for family in ("llama", "qwen3", "phi3", "gemma2", "gemma3", "smollm3", "starcoder2")
    ),
    ("qwen2", {"rope.freq_base": None, "attention.layer_norm_rms_epsilon": 0.1}, {}),
    ("starcoder2", {"attention.layer_norm_epsilon": 0.1}, {}),
    ("llama", {"rope.scaling.factor": 4.0}, {}),
    ("llama", {"rope.scale_linear": 4.0}, {}),
    ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {}),
    ("qwen3", {**YARN, "rope.scaling.factor": 4.0}, {}),
    ("qwen2", {**YARN, "rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 1.5}, {}),
    ("llama", {**YARN, "rope.scaling.factor": 4.0, "rope.scaling.yarn_beta_fast": 4.0}, {}),
    ("llama", {}, {"rope_freqs.weight": FACTORS}),
    ("granite", {}, {"rope_freqs.weight": FACTORS}),
    ("phi3", {"rope.dimension_count": 16}, {}),
    ("phi3", {"attention.sliding_window": 8}, {}),  # which llama.cpp ignores
    ("granite", {"attention.scale": None, "embedding_scale": None, "residual_scale": None}, {}),
    ("granitemoe", {"logit_scale": 2.0, "residual_scale": 0.0, "expert_used_count": 1}, {}),
    ("granite", {"rope.scaling.finetuned": False}, {}),
    ("granitemoehybrid", {"rope.scaling.finetuned": None}, {}),
    ("granitemoehybrid", {"rope.scaling.finetuned": None, "logit_scale": None}, {}),
    ("mixtral", {"expert_used_count": 1}, {}),
    ("qwen2moe", {"expert_used_count": 1}, {}),
    ("qwen3moe", {"expert_used_count": 3}, {}),
    ("gemma2", {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}, {}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}, {}),
    ("gemma2", {"attention.sliding_window": 5}, {}),
    ("gemma3", {"attention.sliding_window": 0, "rope.freq_base": 50.0}, {}),
    ("gemma3", {"attention.sliding_window_pattern": 2, "rope.freq_base_swa": 30.0}, {}),
    (
        "gemma3",
        {"attention.sliding_window_pattern": ([True, False] * 3, Type.BOOL)},
        {},
    ),
    ("gemma3", {"rope.scaling.factor": 4.0, "final_logit_softcapping": 2.0}, {}),
    ("olmo2", {"attention.layer_norm_rms_epsilon": 0.1}, {}),
    ("gpt2", {"attention.layer_norm_epsilon": 0.1}, {}),
]


def logits(path: Path) -> tuple[Any, Any]:
    """Of transformers' model and of llama.cpp's, [tokens, n_vocab]."""
    with torch.no_grad():
        theirs = load_model(path)(torch.tensor([IDS])).logits[0].numpy()
    with ag.Model(path, options=EXACT) as model:
        return theirs, read(model, IDS, None)


@pytest.mark.parity
@pytest.mark.parametrize(("family", "keys", "tensors"), CASES, ids=str)
def test_a_key_means_the_same(
    family: str, keys: dict[str, Any], tensors: dict[str, Any], tmp_path: Path
) -> None:
    tiny = tiny_model(family)
    name = read_header(tiny.gguf).architecture
    full = {f"{name}.{key}": value for key, value in keys.items()}
    theirs, ours = logits(rewritten(tiny.gguf, tmp_path / "base.gguf", full, tensors))
    assert np.abs(theirs - ours).max() < 2e-3 * max(1.0, np.abs(theirs).max())
