"""Norms and ranks of one adapter's dW, by matrix and by layer, beside those of a random adapter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from alora_gguf.gguf.adapter import AdapterFile

from .factors import Doubles, Factors, factors_of
from .findings import find
from .random_adapters import random_spectra
from .records import (
    ENERGY,
    AdapterWeights,
    LayerWeights,
    MatrixWeights,
    RandomWeights,
    TargetWeights,
    Totals,
)

_LARGEST: Final = float(np.finfo(np.float32).max)
Norms = Mapping[tuple[str, int | None], float]
"""||W||_2 by tensor and expert."""


def measure(file: AdapterFile, label: str, base: Norms | None, seed: int) -> AdapterWeights:
    """All that an adapter's weights tell."""
    matrices = [
        _matrix(factors, base, seed) for pair in file.pairs for factors in factors_of(file, pair)
    ]
    # layers in order, what is outside them last
    matrices.sort(key=lambda m: (m.layer is None, m.layer or 0, m.name, m.target, m.expert or 0))
    layers, whole = _layers(matrices), _norm([m.frobenius for m in matrices])
    found = AdapterWeights(
        path=file.path,
        label=label,
        kind="alora" if file.invocation else "lora",
        architecture=file.architecture,
        rank=file.rank,
        alpha=file.alpha,
        identity=file.identity,
        n_parameters=sum(m.rank * (m.n_in + m.n_out) for m in matrices),
        concentration=sum(layer.totals.share**2 for layer in layers),
        totals=_totals(matrices, whole),
        layers=layers,
        targets=_targets(matrices, whole),
        matrices=tuple(matrices),
        findings=(),
    )
    return replace(found, findings=tuple(find(found)))


def energy_rank(values: Doubles) -> int:
    """How many of descending singular values have 99 % of the sum of squares; 0 if all are 0."""
    squares = values**2
    total = float(squares.sum())
    return int(np.searchsorted(np.cumsum(squares), ENERGY * total)) + 1 if total else 0


def numerical_rank(values: Doubles, rounding: float) -> int:
    """How many of descending singular values are above what rounding leaves."""
    return int(np.count_nonzero(values > rounding * values[0]))


def _matrix(factors: Factors, base: Norms | None, seed: int) -> MatrixWeights:
    place, (n_out, n_in), values = factors.place, factors.shape, factors.singular_values()
    spectral, frobenius = float(values[0]), float(np.linalg.norm(values))
    stable, effective = _stable(values), _effective(values)
    below = None if base is None else base[place.target, place.expert]
    # what a row of A or B computes of an input of norm 1, and what comes of both
    largest = max(np.abs(factors.a).max(), np.abs(factors.b).max(), spectral)
    return MatrixWeights(
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
        effective_rank=effective,
        numerical_rank=numerical_rank(values, factors.rounding),
        energy_rank=energy_rank(values),
        utilisation=stable / factors.rank,
        finite=bool(largest < _LARGEST),
        base_spectral=below,
        relative=spectral / below if below else None,
        singular_values=tuple(values.tolist()),
        random=_random(factors, frobenius, seed),
    )


def _random(factors: Factors, frobenius: float, seed: int) -> RandomWeights:
    spectra = random_spectra(*factors.shape, factors.rank, seed)
    if not frobenius:
        return RandomWeights(0.0, 0.0, 0.0, 0.0)
    return RandomWeights(
        spectral=frobenius * float(spectra[:, 0].mean()),
        stable_rank=float(np.mean([_stable(each) for each in spectra])),
        effective_rank=float(np.mean([_effective(each) for each in spectra])),
        energy_rank=float(np.mean([energy_rank(each) for each in spectra])),
    )


def _stable(values: Doubles) -> float:
    return float(np.sum((values / values[0]) ** 2)) if values[0] else 0.0


def _effective(values: Doubles) -> float:
    shares = values[values > 0] / values.sum() if values[0] else values[:0]
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0.0


def _norm(norms: Sequence[float]) -> float:
    return float(np.linalg.norm(norms))


def _layers(matrices: Sequence[MatrixWeights]) -> tuple[LayerWeights, ...]:
    by_layer = defaultdict[int, list[MatrixWeights]](list)
    for matrix in matrices:
        if matrix.layer is not None:
            by_layer[matrix.layer].append(matrix)
    whole = _norm([m.frobenius for group in by_layer.values() for m in group])
    return tuple(LayerWeights(i, _totals(group, whole)) for i, group in sorted(by_layer.items()))


def _targets(matrices: Sequence[MatrixWeights], whole: float) -> tuple[TargetWeights, ...]:
    by_name = defaultdict[str, list[MatrixWeights]](list)
    for matrix in matrices:
        by_name[matrix.name].append(matrix)
    return tuple(TargetWeights(n, _totals(group, whole)) for n, group in sorted(by_name.items()))


def _totals(matrices: Sequence[MatrixWeights], whole: float) -> Totals:
    """`whole` is the norm that they are a share of."""
    alive = [m for m in matrices if not m.dead]
    frobenius = _norm([m.frobenius for m in matrices])

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
        random=RandomWeights(
            spectral=max(m.random.spectral for m in matrices),
            stable_rank=mean(lambda m: m.random.stable_rank),
            effective_rank=mean(lambda m: m.random.effective_rank),
            energy_rank=mean(lambda m: m.random.energy_rank),
        ),
    )
