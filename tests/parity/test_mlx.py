"""An adapter of mlx-lm's computes y + scale·(x·a)·b: on transformers' weights, changed by numpy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.convert import convert_adapter

from tests.support.mlx_files import Array, delta, experts, linear, write_mlx
from tests.support.tiny_models import TinyModel, tiny_model

from .checks import TOLERANCE, error
from .sides import open_model, read, words

pytestmark = pytest.mark.parity

TOKENS = words(30, 80)
RANK, SCALE = 5, 2.5
FAMILIES = ("llama", "qwen3", "granite", "mistral", "phi3", "gpt2")
MOE_FAMILIES = ("mixtral", "qwen3moe", "granitemoe")
# what transformers 5 calls modules, and mlx-lm, which keeps the names of the published weights
_NAMES = {
    "gpt2": {"transformer.": "model."},
    "mixtral": {".mlp.": ".block_sparse_moe."},
    "granitemoe": {".router": ".router.layer"},
}


@pytest.mark.parametrize("family", FAMILIES + MOE_FAMILIES)
def test_logits(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tiny = tiny_model(family)
    model = tiny.load()
    base = logits_of(model)
    tensors = adapt(model, family)
    theirs = logits_of(model)
    assert error(theirs, base) > 20 * TOLERANCE
    stacked = any(".switch_mlp." in name for name in tensors)
    assert stacked == (family in MOE_FAMILIES)
    files = {"new": converted(tiny, tensors, tmp_path / "new")}
    if stacked:
        flat = {name: v.reshape(-1, v.shape[-1]) for name, v in tensors.items() if name[-1] == "a"}
        files["until 2025"] = converted(tiny, {**tensors, **flat}, tmp_path / "old")
    with open_model(tiny, files) as ours:
        for name in files:
            assert error(read(ours, TOKENS, name), theirs) < 2e-3, name  # GELU's table


def converted(tiny: TinyModel, tensors: dict[str, Array], folder: Path) -> Path:
    write_mlx(folder, tensors, rank=RANK, scale=SCALE)
    return convert_adapter(folder, tiny.gguf, folder / "it.gguf", outtype="f32").out


def logits_of(model: Any) -> Array:
    import torch

    with torch.no_grad():
        found = model(input_ids=torch.tensor([TOKENS]), use_cache=False)
    return np.asarray(found.logits[0].numpy(), np.float32)


def adapt(model: Any, family: str) -> dict[str, Array]:
    """Adds an adapter of every matrix of the blocks to transformers' weights; its factors, by
    mlx-lm's names.
    """
    import torch

    rng, tensors = np.random.default_rng(7), dict[str, Array]()
    for name, weight in list(model.named_parameters()):
        if weight.dim() < 2 or not re.search(r"\.(layers|h)\.\d", name):
            continue
        for own, part in parts(name, weight.data, family):
            make = experts if part.dim() == 3 else linear
            tensors |= make(rng, own, *part.mT.shape, RANK)
            part.add_(torch.from_numpy(delta(tensors, own, SCALE)).float())
    return tensors


def parts(name: str, weight: Any, family: str) -> Iterator[tuple[str, Any]]:
    """mlx-lm's name of a weight's module, and its values [out, in]; of experts', which transformers
    keeps as one parameter for several projections, those of each.
    """
    for ours, theirs in _NAMES.get(family, {}).items():
        name = name.replace(ours, theirs)
    block, _, parameter = name.rpartition(".experts.")
    if parameter == "gate_up_proj":
        for projection, half in zip(("gate", "up"), weight.chunk(2, 1), strict=True):
            yield f"{block}.switch_mlp.{projection}_proj", half
    elif block:
        yield f"{block}.switch_mlp.{parameter}", weight
    else:
        yield name.removesuffix(".weight"), weight.T if family == "gpt2" else weight
