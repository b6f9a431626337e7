"""What adapters do to a base: reads the files, checks that they can be looked at together, and puts
the parts of an analysis together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from alora_gguf._calls import checked
from alora_gguf.errors import AdapterMismatchError, InputError
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.base import BaseFile
from alora_gguf.options import check_int

from .activation_records import ActivationOptions
from .base_norms import base_norms
from .random_adapters import Chance, RandomAdapters
from .records import Analysis
from .subspaces import compare
from .weights import measure

PathLike = str | os.PathLike[str]


@checked
def analyse(
    adapters: PathLike | Sequence[PathLike],
    *,
    base: PathLike | None = None,
    activations: ActivationOptions | None = None,
    n_random: int = 5,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Analysis:
    """What the weights of one adapter's GGUF file do, or of several: norms and ranks of dW by
    matrix, layer and target, beside those of `n_random` random adapters, which are drawn with
    `seed`; what is odd about them; and for several, how the spaces that they write and read
    overlap.

    With the GGUF of a `base`, also ||dW||_2 relative to the base's own ||W||_2. With `activations`,
    the base is run on texts without and with each adapter, which shows what that changes in the
    states of layers and in the next token; without, no model is run. `progress` is called with the
    fraction that is done of the base's weights, and then of the texts.

    Raises InputError, AdapterFormatError and MissingFileError for an adapter's file, ModelError for
    the base's, AdapterMismatchError for adapters of different bases; and with `activations` what
    Model() raises, FileFormatError for the texts, DecodeError if a row before an invocation is not
    the base's, bit for bit, and NotFiniteError.
    """
    check_int(n_random, "n_random", 2, 64)  # one has no spread
    check_int(seed, "seed", 0)
    paths = [adapters] if isinstance(adapters, (str, os.PathLike)) else [*adapters]
    if not paths:
        raise InputError("adapters is empty; give the path of at least one adapter's GGUF file")
    for path in paths:
        if not isinstance(path, (str, os.PathLike)):
            raise InputError(f"adapters must be paths of GGUF files, got {path!r:.80} among them")
    if activations is not None and base is None:
        raise InputError("activations needs base, the model to run; give both")
    found = None if base is None else BaseFile.read(base)
    files = [AdapterFile.read(path) for path in paths]
    if found is not None:
        for file in files:
            file.check_base(found, _n_vocab(found))
    _check_shapes(files)
    if activations is not None:
        from .activations import check_options, measure_activations  # which needs the runtime

        check_options(activations, files)
    norms = None if found is None else base_norms(found, files, seed, progress)
    labels = _labels(files)
    chance = Chance(seed, n_random)
    measured = [
        measure(file, label, norms, RandomAdapters(chance))
        for file, label in zip(files, labels, strict=True)
    ]
    comparisons, shared = compare(files, labels, chance) if len(files) > 1 else ((), ())
    run = None
    if activations is not None and found is not None:
        run = measure_activations(found.path, files, labels, activations, chance, progress)
    return Analysis(
        base=None if found is None else found.path,
        seed=seed,
        n_random=n_random,
        adapters=tuple(measured),
        comparisons=comparisons,
        shared=shared,
        activations=run,
    )


def _n_vocab(base: BaseFile) -> int:
    """As many as its embedding has, if the file does not say."""
    if base.n_vocab is not None:
        return base.n_vocab
    embedding = base.tensors.get("token_embd.weight")
    return embedding.shape[-1] if embedding is not None else 2**31


def _check_shapes(files: Sequence[AdapterFile]) -> None:
    """Matrices of one name must be of one shape, as they are in adapters of one base."""
    seen = dict[str, tuple[AdapterFile, tuple[int, ...]]]()
    for file in files:
        for pair in file.pairs:
            shape = (pair.n_in, *pair.b.shape[1:])
            first, expected = seen.setdefault(pair.target, (file, shape))
            if shape != expected:
                raise AdapterMismatchError(
                    f"{file.path}: '{pair.target}' maps {_shown(shape)}, but {_shown(expected)} in "
                    f"{first.path}; only adapters of one base can be compared, analyse them one by "
                    "one"
                )


def _shown(shape: tuple[int, ...]) -> str:
    experts = f" in each of {shape[2]} experts" if len(shape) == 3 else ""
    return f"{shape[0]} to {shape[1]}{experts}"


def _labels(files: Sequence[AdapterFile]) -> list[str]:
    """Their names; where two are the same the files' names, or their paths."""
    for labels in (
        [file.name for file in files],
        [Path(file.path).stem for file in files],
        [str(file.path) for file in files],
    ):
        if len(set(labels)) == len(labels):
            return labels
    counts, numbered = Counter[str](), list[str]()
    for file in files:  # a file that is given twice
        counts[str(file.path)] += 1
        numbered.append(f"{file.path} ({counts[str(file.path)]})")
    return numbered
