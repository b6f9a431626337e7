"""Merges a plain LoRA into its base: one GGUF whose weights are W + scale·B·A, and what that cost.

Changed tensors are requantized to the types that they have; every other byte stays.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf._calls import checked
from alora_gguf.errors import ConvertError, InputError, UnsupportedAdapterError
from alora_gguf.files import check_target, open_file, write_whole
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.base import BaseFile
from alora_gguf.gguf.parser import TensorInfo
from alora_gguf.gguf.values import values
from alora_gguf.verification.ggml import QUANTIZABLE, quantize_rows

from .factors import Factors, factors_of
from .merge_cost import measure_cost
from .merge_records import Merging

_CHUNK: Final = 4 << 20  # values of W in memory at a time
_COPY: Final = 4 << 20  # bytes
_EMBEDDING: Final = "token_embd.weight"
PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], None]


@checked
def merge(
    base: PathLike,
    adapter: PathLike,
    output: PathLike,
    *,
    overwrite: bool = False,
    measure: bool = True,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> Merging:
    """Writes the base of the GGUF file `base` with the plain LoRA of `adapter` in its weights.

    Each changed tensor is dequantized, changed, and quantized to its own type, without an
    importance matrix, a few rows at a time. With `measure`, the built-in probes are then read by
    the base with the adapter and by what was written, on `n_threads` threads. `progress` is called
    with the bytes written and the bytes in all.

    Raises UnsupportedAdapterError for an aLoRA and for tensors that cannot be requantized,
    AdapterMismatchError for another base, InputError for unusable arguments, ModelError,
    AdapterFormatError, MissingFileError for files, ConvertError for values that do not fit and for
    a file system that refuses.
    """
    target, file, model = Path(output), AdapterFile.read(adapter), BaseFile.read(base)
    _check(file, model, target, overwrite=overwrite)
    merger = _Merger(file, model, progress)
    with write_whole(target, overwrite=overwrite, what="GGUF", error=ConvertError) as out:
        merger.write(out)
    changed = [model.tensors[pair.target].type_name for pair in file.pairs]
    return Merging(
        path=target,
        nbytes=merger.size,
        types=dict(sorted(Counter(changed).items())),
        cost=measure_cost(model.path, file.path, target, n_threads) if measure else None,
    )


def _check(file: AdapterFile, model: BaseFile, target: Path, *, overwrite: bool) -> None:
    """Raises, before anything is read of the weights, what merge() says."""
    check_target(target, overwrite=overwrite, what="GGUF", error=ConvertError)
    if file.invocation:
        raise UnsupportedAdapterError(
            f"{file.path}: is an activated LoRA, on from its invocation; merged, it would change "
            "what stands before it too, which it was trained to find as the base computes it: use "
            "it as an adapter"
        )
    if file.classifier:
        raise UnsupportedAdapterError(
            f"{file.path}: is a classifier, whose head would be lost; use it as an adapter"
        )
    if len(model.files) > 1:
        raise InputError(
            f"{model.path}: is split into {len(model.files)} files; join them first with "
            "`llama-gguf-split --merge`"
        )
    for path in (model.path, file.path):
        if target.exists() and target.samefile(path):
            raise InputError(f"{target}: is one of the files to merge; choose another name")
    file.check_base(model, model.n_vocab or model.tensors[_EMBEDDING].shape[-1])
    for pair in file.pairs:
        kind = model.tensors[pair.target].type_name
        if kind not in QUANTIZABLE:
            raise UnsupportedAdapterError(
                f"{model.path}: '{pair.target}' is {kind}, which cannot be written without an "
                "importance matrix; merge into the base in another quantization"
            )
        scale = pair.target.removesuffix(".weight") + ".scale"
        if scale in model.tensors:
            raise UnsupportedAdapterError(
                f"{model.path}: '{pair.target}' is multiplied by '{scale}', and an adapter's "
                "part is not; merge into the base in another quantization"
            )
        if pair.target == _EMBEDDING and "output.weight" not in model.tensors:
            raise UnsupportedAdapterError(
                f"{file.path}: changes '{_EMBEDDING}', which {model.path} uses as its output too; "
                "merged, it would change both: use it as an adapter"
            )


@dataclass(frozen=True)
class _Part:
    """Some rows of a tensor: of `n_rows`, from `first` on, of matrix `factors`."""

    factors: Factors
    first: int
    n_rows: int


class _Merger:
    def __init__(self, file: AdapterFile, model: BaseFile, progress: Progress | None) -> None:
        self.pairs = {pair.target: pair for pair in file.pairs}
        self.file, self.model, self.progress = file, model, progress
        self.size = model.files[0].size

    def write(self, out: BinaryIO) -> None:
        """The base's bytes, with other ones in the places of the tensors that change."""
        infos = sorted(self.model.tensors.values(), key=lambda info: info.offset)
        with open_file(self.model.path, "a base model") as source:
            done = 0
            for info in infos:
                if info.name in self.pairs:
                    self._copy(source, out, done, info.offset)
                    self._merge(source, out, info)
                    done = info.offset + info.nbytes
                    self._report(done)
            self._copy(source, out, done, self.size)

    def _copy(self, source: BinaryIO, out: BinaryIO, first: int, end: int) -> None:
        source.seek(first)
        while first < end:
            first += out.write(self._read(source, min(_COPY, end - first)))
            self._report(first)

    def _read(self, source: BinaryIO, count: int) -> bytes:
        data = source.read(count)
        if len(data) != count:
            raise ConvertError(f"{self.model.path}: became shorter while it was read; try again")
        return data

    def _report(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self.size)

    def _merge(self, source: BinaryIO, out: BinaryIO, info: TensorInfo) -> None:
        source.seek(info.offset)
        for part in self._parts(info):
            n_in = info.shape[0]
            nbytes = info.nbytes * part.n_rows // (self._n_rows(info))
            rows = TensorInfo(info.name, (n_in, part.n_rows), info.type, 0, nbytes)
            weights = values(memoryview(self._read(source, nbytes)), rows, str(self.model.path))
            changed = weights.astype(np.float32) + self._change(part, info)
            data = quantize_rows(changed.astype(np.float32), info.type, nbytes)
            if data is None:
                raise ConvertError(
                    f"{self.file.path}: merged into '{info.name}' gives values that "
                    f"{info.type_name} cannot hold; use it as an adapter"
                )
            out.write(data)

    @staticmethod
    def _n_rows(info: TensorInfo) -> int:
        return int(np.prod(info.shape[1:], dtype=np.int64))

    def _parts(self, info: TensorInfo) -> Iterator[_Part]:
        step = max(1, _CHUNK // info.shape[0])
        for factors in factors_of(self.file, self.pairs[info.name]):
            n_rows = info.shape[1]
            for first in range(0, n_rows, step):
                yield _Part(factors, first, min(step, n_rows - first))

    def _change(self, part: _Part, info: TensorInfo) -> NDArray[np.float64]:
        """scale·B·A in these rows of W; an embedding's W has a row for each token, and A maps from
        tokens.
        """
        factors, rows = part.factors, slice(part.first, part.first + part.n_rows)
        if info.name == _EMBEDDING:
            change: NDArray[np.float64] = factors.a[:, rows].T @ factors.b.T
        else:
            change = factors.b[rows] @ factors.a
        return factors.scale * change
