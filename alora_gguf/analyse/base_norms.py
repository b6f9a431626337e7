"""||W||_2 of a base's weights, dequantised a few rows at a time."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from alora_gguf.errors import ModelError
from alora_gguf.files import open_file
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.base import BaseFile, BasePart
from alora_gguf.gguf.parser import TensorInfo
from alora_gguf.gguf.values import Values, values

from .factors import Doubles
from .random_adapters import generator

_AT_ONCE: Final = 1 << 20  # numbers that are dequantised at a time
_HELD: Final = 32 << 20  # numbers of a matrix that is dequantised once, as float32: 128 MiB
_VECTORS: Final = 8
_STEPS: Final = 12
_TOLERANCE: Final = 1e-4  # the last step's change, relative
_NOTHING: Final = 1e-6  # of ||W||_2^2: as large as rounding to float32

Blocks = Callable[[], Iterator[Values]]
Norms = dict[tuple[str, int | None], float]


def base_norms(
    base: BaseFile,
    adapters: Sequence[AdapterFile],
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> Norms:
    """||W||_2 of every matrix that one of the adapters changes, by tensor and expert.

    By block Lanczos iteration (W^T W on 8 vectors, drawn with `seed`) until a step changes it by
    less than 1e-4: from below, and within a thousandth even where W is random.
    """
    targets = dict.fromkeys(target for file in adapters for target in file.targets)
    where = {info.name: (part, info) for part in base.files for info in part.tensors}
    found, maps = Norms(), dict[Path, memoryview]()
    for done, target in enumerate(targets):
        part, info = where[target]
        if part.path not in maps:
            with open_file(part.path, "the base's GGUF file", ModelError) as source:
                maps[part.path] = memoryview(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ))
        for expert in range(info.shape[2]) if len(info.shape) == 3 else (None,):
            blocks = _blocks(maps[part.path], part, info, expert)
            found[target, expert] = _spectral_norm(blocks, info.shape[0], seed)
        if progress is not None:
            progress((done + 1) / len(targets))
    return found


def _blocks(data: memoryview, part: BasePart, info: TensorInfo, expert: int | None) -> Blocks:
    """What gives a matrix's rows, some at a time; a small one is dequantised once."""
    n_in, n_out = info.shape[:2]
    row = info.nbytes // int(np.prod(info.shape[1:]))
    start = info.offset + (expert or 0) * n_out * row
    step = max(1, _AT_ONCE // n_in)

    def read() -> Iterator[Values]:
        for first in range(0, n_out, step):
            n = min(step, n_out - first)
            some = TensorInfo(info.name, (n_in, n), info.type, 0, n * row)
            begin = start + first * row
            yield values(data[begin : begin + n * row], some, str(part.path)).astype(np.float32)

    if n_in * n_out > _HELD:
        return read
    held = list(read())
    return lambda: iter(held)


def _spectral_norm(blocks: Blocks, n_in: int, seed: int) -> float:
    """The largest Ritz value of W^T W on the Krylov space of a few random vectors."""
    new: Doubles = np.linalg.qr(generator(seed, n_in).standard_normal((n_in, min(_VECTORS, n_in))))[
        0
    ]
    basis: Doubles = new
    images: Doubles = np.zeros((n_in, 0))
    norm = 0.0
    for _ in range(_STEPS):
        image = _apply(blocks, new)
        if not np.isfinite(image).all():
            return float("nan")
        images = np.concatenate([images, image], axis=1)
        ritz = basis.T @ images
        before, norm = norm, float(np.sqrt(max(np.linalg.eigvalsh((ritz + ritz.T) / 2)[-1], 0.0)))
        if norm - before <= _TOLERANCE * norm:
            break
        # what is new in the image; what is left of nothing is rounding
        u, s, _ = np.linalg.svd(image - basis @ (basis.T @ image), full_matrices=False)
        new = u[:, s > _NOTHING * norm**2]
        if not new.shape[1]:
            break
        new = np.linalg.qr(new - basis @ (basis.T @ new))[0]
        basis = np.concatenate([basis, new], axis=1)
    return norm


def _apply(blocks: Blocks, x: Doubles) -> Doubles:
    """W^T W x, in one pass over the rows of W."""
    narrow, out = x.astype(np.float32), np.zeros_like(x)
    for rows in blocks():
        out += rows.T @ (rows @ narrow)
    return out
