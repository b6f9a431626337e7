"""What analyse() and truncate() find out: plain records, for programs, for JSON and for eyes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from typing import Any, Final, Literal

from alora_gguf.gguf.inspection import plain

from .activation_records import Activations

Level = Literal["note", "warning", "error"]
LEVELS: Final[tuple[Level, ...]] = ("note", "warning", "error")
"""Of findings, least first."""

ENERGY: Final = 0.99
"""The part of a sum of squared singular values that an energy rank holds."""


@dataclass(frozen=True, slots=True)
class RandomWeights:
    """What random adapters of the same shapes, rank and Frobenius norm have: A and B of independent
    normal numbers. `relative` is None without a base.
    """

    spectral: float
    stable_rank: float
    effective_rank: float
    energy_rank: float
    utilisation: float
    relative: float | None


@dataclass(frozen=True, slots=True)
class MatrixWeights:
    """What an adapter adds to one matrix of the base: dW = scale * B A.

    target, layer, expert   the tensor; None outside the layers, and in a plain matrix. `name`
                            leaves out the layer and ".weight", such as "attn_q"
    rank, scale             r as stored; alpha/rank, 1 without an alpha
    frobenius, spectral     the norms ||dW||_F and ||dW||_2
    stable_rank             ||dW||_F^2 / ||dW||_2^2
    effective_rank          exp of the entropy of the singular values, as shares of their sum
                            (Roy and Vetterli 2007)
    numerical_rank          singular values above what rounding to the stored type leaves
    energy_rank             the fewest singular values with 99 % of the sum of squares
    utilisation             stable_rank / rank
    finite                  whether float32 holds what A and B compute
    base_spectral, relative ||W||_2 of the base, and ||dW||_2 / ||W||_2; None without a base
    singular_values         all of them, descending
    random, random_spread   the same of random adapters: the mean, and the standard deviation
                            between them

    The ranks are 0 where dW is 0.
    """

    target: str
    name: str
    layer: int | None
    expert: int | None
    n_in: int
    n_out: int
    rank: int
    scale: float
    frobenius: float
    spectral: float
    stable_rank: float
    effective_rank: float
    numerical_rank: int
    energy_rank: int
    utilisation: float
    finite: bool
    base_spectral: float | None
    relative: float | None
    singular_values: tuple[float, ...]
    random: RandomWeights
    random_spread: RandomWeights

    @property
    def dead(self) -> bool:
        """Whether dW is 0: an adapter's B before training."""
        return self.spectral == 0

    @property
    def label(self) -> str:
        """The tensor, and the expert if there are several."""
        return self.target if self.expert is None else f"{self.target}[{self.expert}]"


@dataclass(frozen=True, slots=True)
class Totals:
    """Several matrices together: how many, and how many of them dW leaves as they are; the norm of
    all of dW, the largest ||dW||_2, their `share` of the adapter's sum of squares (for a layer, of
    that of all layers), and the means of ranks and utilisation over those that are not 0.
    `relative` is the largest ||dW||_2 / ||W||_2, None without a base. `random` and `random_spread`
    are the mean and the standard deviation of the same of random adapters.
    """

    n_matrices: int
    n_dead: int
    frobenius: float
    spectral: float
    share: float
    stable_rank: float
    effective_rank: float
    energy_rank: float
    utilisation: float
    relative: float | None
    random: RandomWeights
    random_spread: RandomWeights


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """All matrices of one layer."""

    layer: int
    totals: Totals


@dataclass(frozen=True, slots=True)
class TargetWeights:
    """All matrices of one short name, such as "attn_q", in all layers and experts."""

    name: str
    totals: Totals


@dataclass(frozen=True, slots=True)
class Finding:
    """Something odd about an adapter: the rule's name, how bad it may be, a sentence, and the
    tensors it is about, () for the whole file.
    """

    rule: str
    level: Level
    message: str
    targets: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.level}: {self.message} [{self.rule}]"


@dataclass(frozen=True)
class AdapterWeights:
    """One adapter. `label` tells it from the others of the analysis.

    concentration   the sum of squared shares of the layers (Herfindahl-Hirschman index): 1 if one
                    layer has everything, 1/n if n layers have the same
    totals          all matrices together
    matrices        by target and expert, in the order of layers
    findings        what is odd, worst first
    """

    path: Path
    label: str
    kind: Literal["alora", "lora"]
    architecture: str
    rank: int
    alpha: float
    identity: str
    n_parameters: int
    concentration: float
    totals: Totals
    layers: tuple[LayerWeights, ...]
    targets: tuple[TargetWeights, ...]
    matrices: tuple[MatrixWeights, ...]
    findings: tuple[Finding, ...]

    @property
    def dead(self) -> tuple[str, ...]:
        """The targets that it leaves as they are."""
        return tuple(each.label for each in self.matrices if each.dead)

    @property
    def alive(self) -> tuple[MatrixWeights, ...]:
        """The others."""
        return tuple(each for each in self.matrices if not each.dead)

    def __str__(self) -> str:
        all_of_it = self.totals
        if not self.alive:
            return f"{self.label}: rank {self.rank}, never trained"
        return (
            f"{self.label}: rank {self.rank}, ||dW||_F {all_of_it.frobenius:.4g}, mean effective "
            f"rank {all_of_it.effective_rank:.1f} (random {all_of_it.random.effective_rank:.1f})"
        )


@dataclass(frozen=True, slots=True)
class Angles:
    """How two subspaces of a space of `n` dimensions lie: `degrees` are their principal angles,
    ascending, as many as the smaller one has dimensions; `similarity` is the mean squared cosine of
    those, 1 if one contains the other. `random_...` is what random subspaces of the same dimensions
    have, the mean, and `..._spread` the standard deviation between them.
    """

    n: int
    ranks: tuple[int, int]
    degrees: tuple[float, ...]
    similarity: float
    random_similarity: float
    random_similarity_spread: float
    random_smallest: float
    random_smallest_spread: float

    @property
    def smallest(self) -> float:
        """The smallest principal angle in degrees."""
        return self.degrees[0]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two adapters in one matrix: what they write (the columns of dW), what they read (its rows),
    and the cosine between their dW.
    """

    target: str
    name: str
    layer: int | None
    expert: int | None
    written: Angles
    read: Angles
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """Two adapters, by their labels. `overlaps` has the matrices that both change; `n_apart` counts
    those that one of them changes alone.
    """

    first: str
    second: str
    n_apart: int
    overlaps: tuple[Overlap, ...]

    def __str__(self) -> str:
        if not self.overlaps:
            return f"{self.first} and {self.second}: no matrix in common"
        written, read = self.mean("written"), self.mean("read")
        return (
            f"{self.first} and {self.second}: similarity {written[0]:.3f} of what they write "
            f"(random {written[1]:.3f}), {read[0]:.3f} of what they read (random {read[1]:.3f})"
        )

    def mean(
        self, side: Literal["written", "read"], layer: int | None = None
    ) -> tuple[float, float, float]:
        """The mean similarity, that of random spaces, and the standard deviation of that, over all
        matrices or those of a layer; NaN for a layer that they do not share.
        """
        angles: list[Angles] = [
            getattr(each, side) for each in self.overlaps if layer is None or each.layer == layer
        ]
        if not angles:
            return float("nan"), float("nan"), float("nan")
        n = len(angles)
        return (
            sum(each.similarity for each in angles) / n,
            sum(each.random_similarity for each in angles) / n,
            # of independent ones in each matrix
            hypot(*(each.random_similarity_spread for each in angles)) / n,
        )


@dataclass(frozen=True, slots=True)
class SharedRank:
    """How large a basis is that holds 99 % of several adapters' energy, each counting alike:
    `together`; beside the sum of what each needs alone, `apart`, and what random subspaces with the
    same singular values need together: the mean, and the standard deviation between them.
    """

    together: int
    apart: int
    random: float
    random_spread: float


@dataclass(frozen=True, slots=True)
class SharedBasis:
    """What all adapters could share in one matrix that at least two of them change: a basis of what
    is written and one of what is read.
    """

    target: str
    name: str
    layer: int | None
    expert: int | None
    n_adapters: int
    written: SharedRank
    read: SharedRank


@dataclass(frozen=True)
class Analysis:
    """All of it. `comparisons` has every pair of adapters, `shared` the matrices that at least two
    of them change; both are () for one adapter. `activations` are None if nothing was run.
    `n_random` random adapters were drawn with `seed`, to compare each with.
    """

    base: Path | None
    seed: int
    n_random: int
    adapters: tuple[AdapterWeights, ...]
    comparisons: tuple[Comparison, ...]
    shared: tuple[SharedBasis, ...]
    activations: Activations | None = None

    @property
    def worst(self) -> Level | None:
        """The level of the worst finding, None if there is none."""
        found = {finding.level for each in self.adapters for finding in each.findings}
        return max(found, key=LEVELS.index) if found else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; numbers that are not finite become strings."""
        shown: dict[str, Any] = plain(self)
        return shown

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for each in self.adapters:
            yield str(each)
            yield from (f"  {finding}" for finding in each.findings)
        yield from map(str, self.comparisons)
        yield from map(str, self.activations.adapters if self.activations else ())


@dataclass(frozen=True, slots=True)
class TruncatedMatrix:
    """A matrix that was cut from `rank_before` to `rank`: how much of ||dW||_F^2 is `kept`, 1 if
    dW is 0.
    """

    target: str
    expert: int | None
    rank_before: int
    rank: int
    kept: float


@dataclass(frozen=True)
class Truncation:
    """What truncate() wrote. `kept` is the part of the sum of squares of all matrices together."""

    path: Path
    rank: int
    nbytes: int
    kept: float
    matrices: tuple[TruncatedMatrix, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        shown: dict[str, Any] = plain(self)
        return shown

    def __str__(self) -> str:
        return f"{self.path}: rank {self.rank}, {self.kept:.2%} of ||dW||_F^2 kept"
