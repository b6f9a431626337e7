"""derive(): a vector from contrast pairs, read where it will act."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np

from alora_gguf._calls import Within, checked
from alora_gguf.errors import InputError
from alora_gguf.files import check_target
from alora_gguf.gguf.vector import Directions, Hook, Operation, VectorOrigin
from alora_gguf.gguf.vector_writer import write_vector
from alora_gguf.model import Model

from .directions import (
    Doubles,
    auroc,
    best_run,
    bootstrap,
    d_prime,
    mean_difference,
    principal,
    random_directions,
)
from .pairs import SPLITS, Pair, read_pairs
from .records import Derivation, LayerSeparation, Method, ReadAt
from .running import (
    Progress,
    RunOptions,
    check_apart,
    check_layers,
    layers_given,
    open_model,
    open_reader,
    passages,
    states,
)
from .writing import SUMS, generator

PathLike = str | os.PathLike[str]

SCALE: Final = 0.4
"""What an activation's scale 1 stands for where nobody says: additions of that part of |h|."""
_N_RANDOM: Final = 20  # directions


@checked
@dataclass(frozen=True, slots=True)
class DeriveOptions:
    """How a vector is made of pairs.

    method     "mean": the mean of the differences; "pca": their principal components, each pair
               centred on its own middle
    operation  what it does: "add", "add_keep_norm", "project" and "project_positive", as in files
    hook       where in each layer it is read, and acts: "block", "attention" or "ffn", as in files
    layers     where it acts, zero-based; None: the best run of a quarter of all layers within the
               middle half, by held-out separation
    rank       directions to project out, for "pca"
    scale      what an activation's scale 1 stands for. Of additions in units of |h|: the lengths of
               all parts, each relative to the median |h| of its layer, add up to it (0.4 unless
               given). Of projections how much is taken out (1 unless given: all)
    read_at    of each side: the mean over its "answer", or its "last" token; of a conversation
               without an answer the last token, where the reply begins
    seed       of what is held out, and of random directions
    """

    method: Method = "mean"
    operation: Operation = "add"
    hook: Hook = "block"
    layers: Sequence[Annotated[int, Within(0)]] | None = None
    rank: Annotated[int, Within(1, 64)] = 1
    scale: Annotated[float, Within(-1000, 1000)] | None = None
    read_at: ReadAt = "answer"
    seed: Annotated[int, Within(0)] = 0

    def __post_init__(self) -> None:
        sums = self.operation in SUMS
        if self.rank > 1 and (sums or self.method == "mean"):
            what = f"operation '{self.operation}'" if sums else "method 'mean'"
            raise InputError(
                f"rank is {self.rank}, but {what} has one direction; use method 'pca' with "
                "operation 'project' or 'project_positive'"
            )
        if self.scale == 0:
            raise InputError("scale is 0, at which a vector does nothing; give another one")
        object.__setattr__(self, "layers", layers_given(self.layers))


@checked
def derive(
    base: PathLike,
    pairs: PathLike,
    output: PathLike,
    *,
    options: DeriveOptions | None = None,
    run: RunOptions | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Derivation:
    """Makes a vector of the contrast `pairs` (JSON lines; see Pair), and writes it to `output`.

    The base reads both sides of each pair, and a direction is learnt from the training pairs at
    each layer, at the hook where the vector acts. How well it tells the held-out pairs is
    said beside what random directions do; that chooses the layers, unless `options` does.
    `progress` is called with the fraction of pairs that were read.

    Raises what Model() does for `base`, MissingFileError, FileFormatError and InputError for
    `pairs`, InputError for `options`, if `output` exists and `overwrite` is false, and if it is a
    file that is read; ModelError for pairs of conversations if the base has no chat template.
    """
    how = options or DeriveOptions()
    check_target(Path(output), overwrite=overwrite, what="vector")
    check_apart(Path(output), {"base": base, "file of pairs": pairs})
    found = read_pairs(pairs, seed=how.seed)
    rows = {split: [i for i, p in enumerate(found) if p.split == split] for split in SPLITS}
    if how.rank > len(rows["train"]):
        raise InputError(
            f"rank is {how.rank}, but {len(rows['train'])} training pairs have no more directions "
            "than that; give more pairs, or a lower rank"
        )
    check_layers(base, how.layers)
    with open_model(base, {}, run) as model:
        positive, negative, norms = read_states(model, found, Path(pairs), how, progress)
        architecture, path = model.architecture, Path(model.path)
    n_layers = max(positive) + 1
    if how.layers is not None and (wrong := [i for i in how.layers if i not in positive]):
        raise InputError(
            f"layers has {wrong[0]}, but {path.name} has layers {min(positive)} to {n_layers - 1}"
        )
    learnt, separations = {}, list[LayerSeparation]()
    for layer in positive:
        train = positive[layer][rows["train"]], negative[layer][rows["train"]]
        held_out = positive[layer][rows["held_out"]], negative[layer][rows["held_out"]]
        learnt[layer] = direction(*train, how)
        told = separation(layer, norms[layer], learnt[layer][0], train, held_out, how.seed)
        separations.append(told)
    chosen = how.layers or best_run({each.layer: each.d_prime for each in separations}, n_layers)
    if flat := [i for i in chosen if not learnt[i].any(axis=1).all()]:
        raise InputError(
            f"{pairs}: the training pairs have no difference in common at layer {flat[0]}, so "
            "there is no direction; are the sides of some swapped?"
        )
    separations = [
        LayerSeparation(
            e.layer, e.norm, e.auroc, e.interval, e.d_prime, e.random, e.layer in chosen
        )
        for e in separations
    ]
    scale = how.scale if how.scale is not None else SCALE if how.operation in SUMS else 1.0
    parts = unit_parts({i: learnt[i] for i in chosen}, norms, how, scale)
    derivation = Derivation(
        base=path,
        pairs=Path(pairs),
        output=Path(output),
        method=how.method,
        operation=how.operation,
        hook=how.hook,
        read_at=how.read_at,
        rank=how.rank,
        scale=scale,
        n_train=len(rows["train"]),
        n_held_out=len(rows["held_out"]),
        seed=how.seed,
        layers=tuple(separations),
    )
    write_vector(
        Path(output),
        parts,
        architecture=architecture,
        name=Path(output).stem,
        origin=VectorOrigin(
            base_model=path.stem,
            method={"mean": "mean difference", "pca": "PCA of centred differences"}[how.method],
            contrast=f"{len(found)} pairs of {Path(pairs).name}",
            validation=_validation(derivation),
            generator=generator("derive"),
        ),
        overwrite=overwrite,
    )
    return derivation


def read_states(
    model: Model,
    pairs: Sequence[Pair],
    file: Path,
    how: DeriveOptions,
    progress: Progress | None = None,
) -> tuple[dict[int, Doubles], dict[int, Doubles], dict[int, float]]:
    """By layer the states of the positive and of the negative sides, [n_pairs, n_embd], and the
    median of |h| of all tokens that they are the means of.
    """
    texts = [passages(model, pair, file) for pair in pairs]
    found: tuple[dict[int, list[Doubles]], dict[int, list[Doubles]]] = ({}, {})
    lengths: dict[int, list[Doubles]] = {}
    with open_reader(model, [each for both in texts for each in both], how.hook) as probe:
        for number, both in enumerate(texts):
            for side, passage in zip(found, both, strict=True):
                n_rows = len(passage.after) if how.read_at == "answer" else 1
                for layer, hidden in states(probe, passage, n_rows or 1).items():
                    wide = hidden.astype(np.float64)
                    side.setdefault(layer, []).append(wide.mean(axis=0))
                    lengths.setdefault(layer, []).append(np.linalg.norm(wide, axis=1))
            if progress is not None:
                progress((number + 1) / len(texts))
    positive, negative = ({layer: np.stack(each) for layer, each in side.items()} for side in found)
    norms = {layer: float(np.median(np.concatenate(each))) for layer, each in lengths.items()}
    return positive, negative, norms


def direction(positive: Doubles, negative: Doubles, how: DeriveOptions) -> Doubles:
    """What is learnt at one layer, of length 1 each, [rank, n_embd]."""
    if how.method == "mean":
        return mean_difference(positive, negative)
    return principal(positive, negative, how.rank)


def separation(
    layer: int,
    norm: float,
    learnt: Doubles,
    train: tuple[Doubles, Doubles],
    held_out: tuple[Doubles, Doubles],
    seed: int,
) -> LayerSeparation:
    """How well the direction `learnt` [n_embd] tells held-out pairs, and random ones do."""
    p, n = (side @ learnt for side in held_out)
    drawn = random_directions(_N_RANDOM, len(learnt), [seed, layer])
    random = []
    for each in drawn:
        sign = 1.0 if ((train[0] - train[1]) @ each).mean() >= 0 else -1.0
        random.append(auroc(held_out[0] @ (sign * each), held_out[1] @ (sign * each)))
    interval = bootstrap(len(p), lambda i: auroc(p[i], n[i]), seed)
    return LayerSeparation(
        layer,
        norm,
        auroc(p, n),
        interval,
        d_prime(p, n),
        float(np.mean(random)),
        chosen=False,
    )


def unit_parts(
    learnt: Mapping[int, Doubles], norms: Mapping[int, float], how: DeriveOptions, scale: float
) -> tuple[Directions, ...]:
    """Parts of directions of length 1. Of additions each is as long as |h| over the number of
    layers, so that all of them together are one |h|; `scale` is the parts'.
    """
    sums = how.operation in SUMS
    return tuple(
        Directions(
            layer=layer,
            hook=how.hook,
            operation=how.operation,
            scale=scale,
            values=np.ascontiguousarray(
                values * (norms[layer] / len(learnt) if sums else 1.0), np.float32
            ),
        )
        for layer, values in sorted(learnt.items())
    )


def _validation(found: Derivation) -> str:
    chosen = [each for each in found.layers if each.chosen]
    said = {
        "held_out_pairs": found.n_held_out,
        "auroc": {str(each.layer): round(each.auroc, 4) for each in chosen},
        "auroc_of_random_directions": round(float(np.mean([each.random for each in chosen])), 4),
    }
    return json.dumps(said)
