"""Steering vectors that change what tiny models reply."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import alora_gguf as ag
from tests.support.vectors import rows


def write_steer(
    path: Path, base: Path, *, seed: int = 0, layer: int = 1, length: float = 8
) -> Path:
    """A vector to add behind a block of `base`; so long that replies are others."""
    file = ag.BaseFile.read(base)
    row = rows(seed=seed, n=file.n_embd or 0)
    part = ag.Directions(layer, "block", "add", 1.0, length * row / np.linalg.norm(row))
    ag.write_vector(path, [part], architecture=file.architecture)
    return path
