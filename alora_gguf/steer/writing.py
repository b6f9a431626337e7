"""Vectors as files: those that were learnt, and random ones of the same norms to compare with."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from alora_gguf.gguf.vector import Directions
from alora_gguf.gguf.vector_writer import write_vector

SUMS: Final = ("add", "add_keep_norm")  # the operations whose directions have a length


def generator(verb: str) -> str:
    """What a file is said to be made by."""
    from alora_gguf import __version__

    return f"alora-gguf {__version__} steer {verb}"


def random_parts(parts: Sequence[Directions], seed: Sequence[int]) -> tuple[Directions, ...]:
    """They in random directions: of the same lengths, or orthonormal where they are projected."""
    rng = np.random.default_rng(seed)
    found = []
    for part in parts:
        drawn = rng.standard_normal(part.values.shape)
        if part.operation in SUMS:
            lengths = np.linalg.norm(part.values.astype(np.float64), axis=1, keepdims=True)
            drawn *= lengths / np.linalg.norm(drawn, axis=1, keepdims=True)
        else:
            drawn = np.linalg.qr(drawn.T)[0].T
        found.append(replace(part, values=np.ascontiguousarray(drawn, np.float32)))
    return tuple(found)


@contextmanager
def written(
    architecture: str, vectors: Mapping[str, Sequence[Directions]]
) -> Iterator[dict[str, Path]]:
    """Vectors as files meanwhile, by name."""
    with tempfile.TemporaryDirectory(prefix="alora-gguf-") as folder:
        paths = dict[str, Path]()
        for i, (name, parts) in enumerate(vectors.items()):
            paths[name] = Path(folder) / f"{i}.gguf"
            write_vector(paths[name], parts, architecture=architecture, name=name)
        yield paths
