"""Steering vectors for the tiny bases, that do something, and what they do in plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import alora_gguf as ag

from . import tiny_base

Floats = NDArray[np.float64]


def directions(k: int, seed: int) -> NDArray[np.float32]:
    """[k, n_embd], each about half as long as a row of the stream."""
    rng = np.random.default_rng([77, seed])
    return (0.5 * rng.standard_normal((k, tiny_base.N_EMBD))).astype(np.float32)


def write(
    path: Path,
    operation: Any = "add",
    *,
    hook: Any = "block",
    layers: Sequence[int] = (1,),
    seed: int = 1,
    scale: float = 1.0,
    architecture: str = "llama",
    invocation: Sequence[int] = (),
) -> Path:
    """A vector of random directions."""
    k = 2 if operation.startswith("project") else 1
    parts = [
        ag.Directions(layer, hook, operation, scale, directions(k, 10 * seed + layer))
        for layer in layers
    ]
    made = ag.write_vector(
        path, parts, architecture=architecture, invocation=invocation, overwrite=True
    )
    return made.path


def write_all(folder: Path, architecture: str = "llama") -> dict[str, Path]:
    """One of each operation behind the blocks, by name."""
    layers, kind = (0, 1), architecture
    return {
        "add": write(folder / "add.gguf", layers=layers, seed=1, architecture=kind),
        "out": write(folder / "out.gguf", "project", layers=layers, seed=2, architecture=kind),
        "half": write(folder / "half.gguf", "project_positive", seed=3, architecture=kind),
        "norm": write(folder / "norm.gguf", "add_keep_norm", seed=4, architecture=kind),
    }


def edited(h: Floats, parts: Sequence[tuple[ag.Directions, float]]) -> Floats:
    """Rows h [n, n_embd] of one place after all parts that act there, each at its scale."""
    change, keeps = np.zeros_like(h), False
    for part, scale in parts:
        v, s = part.values.astype(np.float64), part.scale * scale
        if part.operation.startswith("add"):
            change += s * v[0]
            keeps = keeps or part.operation == "add_keep_norm"
        else:
            along = h @ v.T
            if part.operation == "project_positive":
                along = np.maximum(along, 0)
            change -= s * along @ v
    new = h + change
    if keeps:
        norms = [np.linalg.norm(each, axis=-1, keepdims=True) for each in (h, new)]
        new *= norms[0] / norms[1]
    return new
