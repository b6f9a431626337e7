"""Several adapters in one matrix: principal angles of what they write and read, and how large a
basis would hold all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from alora_gguf.gguf.adapter import AdapterFile

from .factors import Doubles, Factors, Place, factors_of
from .random_adapters import Chance, generator, mean_and_spread, random_angles, random_frames
from .records import Angles, Comparison, Overlap, SharedBasis, SharedRank
from .spectra import energy_rank, numerical_rank

Side = Literal["written", "read"]


@dataclass(frozen=True, slots=True)
class _Frame:
    """dW = U S V^T, without what is only rounding: U [n_out, k], V [n_in, k]."""

    written: Doubles
    s: Doubles
    read: Doubles

    @classmethod
    def of(cls, factors: Factors) -> _Frame | None:
        """None where dW is 0."""
        u, s, vt = factors.svd()
        k = numerical_rank(s, factors.rounding)
        return cls(u[:, :k], s[:k], vt[:k].T) if k else None

    def side(self, side: Side) -> Doubles:
        return self.written if side == "written" else self.read


def compare(
    files: Sequence[AdapterFile], labels: Sequence[str], chance: Chance
) -> tuple[tuple[Comparison, ...], tuple[SharedBasis, ...]]:
    """Every pair of adapters, and what all could share; one target is in memory at a time."""
    pairs = list(combinations(range(len(files)), 2))
    overlaps: dict[tuple[int, int], list[Overlap]] = {pair: [] for pair in pairs}
    n_apart = dict.fromkeys(pairs, 0)
    shared = list[SharedBasis]()
    for place, frames in _frames(files):
        for pair in pairs:
            both = pair[0] in frames and pair[1] in frames
            n_apart[pair] += not both and (pair[0] in frames or pair[1] in frames)
            if both:
                overlaps[pair].append(_overlap(place, frames[pair[0]], frames[pair[1]], chance))
        if len(frames) > 1:
            shared.append(_shared(place, [*frames.values()], chance))
    comparisons = tuple(
        Comparison(labels[i], labels[j], n_apart[i, j], tuple(sorted(overlaps[i, j], key=_order)))
        for i, j in pairs
    )
    return comparisons, tuple(sorted(shared, key=_order))


def _frames(files: Sequence[AdapterFile]) -> Iterator[tuple[Place, dict[int, _Frame]]]:
    """Each matrix, and the adapters that change it, by number."""
    by_target = [{pair.target: pair for pair in file.pairs} for file in files]
    for target in sorted(set[str]().union(*by_target)):
        rows = [
            (i, factors)
            for i, file in enumerate(files)
            if target in by_target[i]
            for factors in factors_of(file, by_target[i][target])
        ]
        for place in dict.fromkeys(factors.place for _, factors in rows):
            found = {i: _Frame.of(factors) for i, factors in rows if factors.place == place}
            yield place, {i: frame for i, frame in found.items() if frame is not None}


def _order(each: Overlap | SharedBasis) -> tuple[bool, int, str, str, int]:
    return each.layer is None, each.layer or 0, each.name, each.target, each.expert or 0


def _overlap(place: Place, first: _Frame, second: _Frame, chance: Chance) -> Overlap:
    u, v = first.written.T @ second.written, first.read.T @ second.read
    # <U S V', X T Y'> = sum over s_i (U'X)_ij t_j (V'Y)_ij
    inner = float(np.sum(first.s[:, None] * u * second.s * v))
    norms = float(np.linalg.norm(first.s) * np.linalg.norm(second.s))
    return Overlap(
        target=place.target,
        name=place.name,
        layer=place.layer,
        expert=place.expert,
        written=_angles(len(first.written), u, chance),
        read=_angles(len(first.read), v, chance),
        cosine=inner / norms,
    )


def _angles(n: int, product: Doubles, chance: Chance) -> Angles:
    """Of two subspaces of n dimensions, by the product of their orthonormal bases."""
    cosines = np.minimum(np.linalg.svd(product, compute_uv=False), 1.0)
    first, second = product.shape
    (square, smallest), (square_spread, smallest_spread) = (
        each.tolist() for each in mean_and_spread(random_angles(n, first, second, *chance))
    )
    return Angles(
        n=n,
        ranks=(first, second),
        degrees=tuple(np.degrees(np.arccos(cosines)).tolist()),
        similarity=float(np.mean(cosines**2)),
        random_similarity=square,
        random_similarity_spread=square_spread,
        random_smallest=smallest,
        random_smallest_spread=smallest_spread,
    )


def _shared(place: Place, frames: Sequence[_Frame], chance: Chance) -> SharedBasis:
    return SharedBasis(
        target=place.target,
        name=place.name,
        layer=place.layer,
        expert=place.expert,
        n_adapters=len(frames),
        written=_shared_rank(frames, "written", chance),
        read=_shared_rank(frames, "read", chance),
    )


def _shared_rank(frames: Sequence[_Frame], side: Side, chance: Chance) -> SharedRank:
    bases = [frame.side(side) for frame in frames]
    weights = [frame.s / np.linalg.norm(frame.s) for frame in frames]
    n, ranks = len(bases[0]), [len(s) for s in weights]
    rng = generator(chance.seed, n, *ranks)
    drawn = [_rank_of(random_frames(rng, n, ranks), weights) for _ in range(chance.n)]
    mean, spread = mean_and_spread(np.array(drawn, np.float64))
    return SharedRank(
        together=_rank_of(bases, weights),
        apart=sum(int(energy_rank(s)) for s in weights),
        random=float(mean),
        random_spread=float(spread),
    )


def _rank_of(bases: Sequence[Doubles], weights: Sequence[Doubles]) -> int:
    """Of all columns together, each times its singular value."""
    columns = np.concatenate([u * s for u, s in zip(bases, weights, strict=True)], axis=1)
    r = np.linalg.qr(columns, mode="r")
    return int(energy_rank(np.linalg.svd(r, compute_uv=False)))
