"""Adapters as mlx-lm writes them, made without MLX: its format is two files of a few fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
# as mlx_lm.lora writes it: all the options of a training
OPTIONS: dict[str, Any] = {
    "adapter_path": "adapters",
    "batch_size": 4,
    "fine_tune_type": "lora",
    "iters": 1000,
    "learning_rate": 1e-05,
    "lr_schedule": None,
    "mask_prompt": False,
    "model": "mlx-community/Llama-3.2-1B-Instruct-4bit",
    "num_layers": 16,
    "optimizer": "adam",
    "optimizer_config": {"adam": {}},
    "train": True,
}


def write_mlx(
    directory: Path,
    tensors: Mapping[str, Array],
    *,
    rank: int,
    scale: float = 20.0,
    parameters: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """A directory of mlx-lm's; `parameters` are more lora_parameters, `changes` more options, of
    which None takes one out.
    """
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    lora = {"rank": rank, "dropout": 0.0, "scale": scale, **(parameters or {})}
    fields = {**OPTIONS, "lora_parameters": lora, **(changes or {})}
    fields = {name: value for name, value in fields.items() if value is not None}
    (directory / "adapter_config.json").write_text(json.dumps(fields, indent=4, sort_keys=True))
    save_file(dict(tensors), directory / "adapters.safetensors", {"format": "mlx"})
    return directory


def linear(
    rng: np.random.Generator, module: str, n_in: int, n_out: int, rank: int
) -> dict[str, Array]:
    """A linear layer's lora_a [in, r] and lora_b [r, out]."""
    return {
        f"{module}.lora_a": _normal(rng, n_in, rank) * np.float32(n_in**-0.5),
        f"{module}.lora_b": _normal(rng, rank, n_out) * np.float32(0.1 * rank**-0.5),
    }


def experts(
    rng: np.random.Generator, module: str, n_experts: int, n_in: int, n_out: int, rank: int
) -> dict[str, Array]:
    """The lora_a [experts, r, in] and lora_b [experts, out, r] of a projection of experts."""
    return {
        f"{module}.lora_a": _normal(rng, n_experts, rank, n_in) * np.float32(n_in**-0.5),
        f"{module}.lora_b": _normal(rng, n_experts, n_out, rank) * np.float32(0.1 * rank**-0.5),
    }


def delta(tensors: Mapping[str, Array], module: str, scale: float) -> NDArray[np.float64]:
    """What scale·(x·a)·b adds to a weight [out, in], or to experts' [experts, out, in]."""
    a, b = (tensors[f"{module}.lora_{side}"].astype(np.float64) for side in "ab")
    return scale * (b @ a.reshape(len(b), -1, a.shape[-1]) if b.ndim == 3 else (a @ b).T)


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)
