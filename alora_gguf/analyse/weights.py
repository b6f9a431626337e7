"""Norms and ranks of one adapter's dW, by matrix and by layer, beside those of random adapters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from alora_gguf.gguf.adapter import AdapterFile

from .factors import Doubles, Factors, factors_of
from .findings import find
from .random_adapters import RandomAdapters, mean_and_spread
from .records import (
    AdapterWeights,
    LayerWeights,
    MatrixWeights,
    RandomWeights,
    TargetWeights,
    Totals,
)
from .spectra import effective_rank, energy_rank, numerical_rank, stable_rank

_LARGEST: Final = float(np.finfo(np.float32).max)
Norms = Mapping[tuple[str, int | None], float]
"""||W||_2 by tensor and expert."""


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One, and `random`, the same of random adapters: [n, 6], in RandomWeights' order."""

    found: MatrixWeights
    random: Doubles


def measure(
    file: AdapterFile, label: str, base: Norms | None, random: RandomAdapters
) -> AdapterWeights:
    """All that an adapter's weights tell."""
    measured = [
        _matrix(factors, base, random) for pair in file.pairs for factors in factors_of(file, pair)
    ]
    # layers in order, what is outside them last
    measured.sort(key=lambda each: _order(each.found))
    matrices = [each.found for each in measured]
    layers, whole = _layers(measured), _norm(matrices)
    found = AdapterWeights(
        path=file.path,
        label=label,
        kind=file.kind,
        architecture=file.architecture,
        rank=file.rank,
        alpha=file.alpha,
        identity=file.identity,
        n_parameters=sum(m.rank * (m.n_in + m.n_out) for m in matrices),
        concentration=sum(layer.totals.share**2 for layer in layers),
        totals=_totals(measured, whole),
        layers=layers,
        targets=_targets(measured, whole),
        matrices=tuple(matrices),
        findings=(),
    )
    return replace(found, findings=tuple(find(found)))


def _order(m: MatrixWeights) -> tuple[bool, int, str, str, int]:
    return m.layer is None, m.layer or 0, m.name, m.target, m.expert or 0


def _matrix(factors: Factors, base: Norms | None, random: RandomAdapters) -> _Matrix:
    place, (n_out, n_in), values = factors.place, factors.shape, factors.singular_values()
    spectral, frobenius = float(values[0]), float(np.linalg.norm(values))
    stable = float(stable_rank(values))
    below = None if base is None else base[place.target, place.expert]
    # what a row of A or B computes of an input of norm 1, and what comes of both
    largest = max(np.abs(factors.a).max(), np.abs(factors.b).max(), spectral)
    drawn = _random(random.matrix(n_out, n_in, factors.rank), frobenius, factors.rank, below)
    found = MatrixWeights(
        target=place.target,
        name=place.name,
        layer=place.layer,
        expert=place.expert,
        n_in=n_in,
        n_out=n_out,
        rank=factors.rank,
        scale=factors.scale,
        frobenius=frobenius,
        spectral=spectral,
        stable_rank=stable,
        effective_rank=float(effective_rank(values)),
        numerical_rank=numerical_rank(values, factors.rounding),
        energy_rank=int(energy_rank(values)),
        utilisation=stable / factors.rank,
        finite=bool(largest < _LARGEST),
        base_spectral=below,
        relative=spectral / below if below else None,
        singular_values=tuple(values.tolist()),
        **_beside(drawn),
    )
    return _Matrix(found, drawn)


def _random(drawn: Doubles, frobenius: float, rank: int, below: float | None) -> Doubles:
    """Of what RandomAdapters.matrix() draws, with the norm that they shall have; all 0 without."""
    if not frobenius:
        return np.zeros((len(drawn), 6))
    spectral, stable, *ranks = drawn.T
    relative = frobenius * spectral / below if below else np.full_like(spectral, np.nan)
    return np.stack([frobenius * spectral, stable, *ranks, stable / rank, relative], axis=1)


def _beside(drawn: Doubles) -> dict[str, RandomWeights]:
    """The fields `random` and `random_spread`."""
    both = zip(("random", "random_spread"), mean_and_spread(drawn), strict=True)
    return {name: _weights(*values.tolist()) for name, values in both}


def _weights(
    spectral: float, stable: float, effective: float, energy: float, used: float, relative: float
) -> RandomWeights:
    """NaN stands for None."""
    base = None if np.isnan(relative) else relative
    return RandomWeights(spectral, stable, effective, energy, used, base)


def _norm(matrices: Sequence[MatrixWeights]) -> float:
    return float(np.linalg.norm([m.frobenius for m in matrices]))


def _layers(matrices: Sequence[_Matrix]) -> tuple[LayerWeights, ...]:
    by_layer = defaultdict[int, list[_Matrix]](list)
    for matrix in matrices:
        if matrix.found.layer is not None:
            by_layer[matrix.found.layer].append(matrix)
    whole = _norm([m.found for group in by_layer.values() for m in group])
    return tuple(LayerWeights(i, _totals(group, whole)) for i, group in sorted(by_layer.items()))


def _targets(matrices: Sequence[_Matrix], whole: float) -> tuple[TargetWeights, ...]:
    by_name = defaultdict[str, list[_Matrix]](list)
    for matrix in matrices:
        by_name[matrix.found.name].append(matrix)
    return tuple(TargetWeights(n, _totals(group, whole)) for n, group in sorted(by_name.items()))


def _totals(measured: Sequence[_Matrix], whole: float) -> Totals:
    """`whole` is the norm that they are a share of."""
    matrices = [each.found for each in measured]
    alive, frobenius = [m for m in matrices if not m.dead], _norm(matrices)
    drawn = np.stack([each.random for each in measured if not each.found.dead or not alive])
    # of one random adapter: the largest norms, and the means of the rest
    each = drawn.mean(axis=0)
    each[:, [0, -1]] = np.fmax.reduce(drawn[:, :, [0, -1]], axis=0)

    def mean(of: Callable[[MatrixWeights], float]) -> float:
        return float(np.mean([of(m) for m in alive])) if alive else 0.0

    return Totals(
        n_matrices=len(matrices),
        n_dead=len(matrices) - len(alive),
        frobenius=frobenius,
        spectral=max(m.spectral for m in matrices),
        share=(frobenius / whole) ** 2 if whole else 0.0,
        stable_rank=mean(lambda m: m.stable_rank),
        effective_rank=mean(lambda m: m.effective_rank),
        energy_rank=mean(lambda m: m.energy_rank),
        utilisation=mean(lambda m: m.utilisation),
        relative=max((m.relative for m in matrices if m.relative is not None), default=None),
        **_beside(each),
    )
