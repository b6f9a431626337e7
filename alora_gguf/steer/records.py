"""What derive(), sweep() and match() find out: plain records, for programs and for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from alora_gguf.gguf.vector import Hook, Operation

Method = Literal["mean", "pca"]
ReadAt = Literal["answer", "last"]
METHODS: Final[tuple[Method, ...]] = ("mean", "pca")


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a figure lies in 95 of 100 drawings of the held-out pairs, with replacement."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LayerSeparation:
    """How well one layer's direction, learnt from the training pairs, tells the held-out ones.

    norm             the median of |h| at the hook
    auroc, interval  how often a positive side lies further along it than a negative one
    d_prime          the distance of the means of both in standard deviations
    random           the AUROC of random directions that know the sign, the mean over several
    chosen           whether the vector acts there
    """

    layer: int
    norm: float
    auroc: float
    interval: Interval
    d_prime: float
    random: float
    chosen: bool


@dataclass(frozen=True, slots=True)
class Derivation:
    """A vector that derive() wrote.

    output                  its file
    scale                   what an activation's scale 1 stands for: of additions the length of
                            all its parts, each relative to the typical |h| of its layer, together
    n_train, n_held_out     pairs
    read_at                 what of each side was read: the mean over its answer, or its last token
    layers                  all that can be acted at
    """

    base: Path
    pairs: Path
    output: Path
    method: Method
    operation: Operation
    hook: Hook
    read_at: ReadAt
    rank: int
    scale: float
    n_train: int
    n_held_out: int
    seed: int
    layers: tuple[LayerSeparation, ...]

    @property
    def chosen(self) -> tuple[int, ...]:
        """The layers that it acts at."""
        return tuple(each.layer for each in self.layers if each.chosen)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return _plain_object({**asdict(self), "chosen": self.chosen})


@dataclass(frozen=True, slots=True)
class Effect:
    """What a vector does at one scale.

    log_odds     of the positive against the negative answers, per token in nats, the mean over
                 pairs; None if the pairs have no answers
    preferred    the share of pairs whose positive answer is likelier, per token; None likewise
    score        the mean of what the score says of replies; None without one
    text_ratio   the perplexity of neutral text read under the vector, over the base's; None, as all
                 else, where the scale is so large that what the model computes is not finite
    reply_ratio  the perplexity that the base gives to what it writes under the vector, over that
                 of what the base writes
    repeats      the share of its replies' 3-grams that occurred before in the same reply
    replies      to the first questions, as far as they were written
    """

    log_odds: float | None
    preferred: float | None
    score: float | None
    text_ratio: float | None
    reply_ratio: float | None
    repeats: float | None
    replies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One scale of a sweep: the vector, the interval of its effect over the pairs, and the mean of
    random vectors of the same norms; `fluent` says whether all of its fluency is within the bound.
    `random_spread` is the standard deviation of the random vectors' log-odds, or without answers of
    their scores; None for fewer than two of them.
    """

    scale: float
    vector: Effect
    interval: Interval | None
    random: Effect | None
    fluent: bool
    random_spread: float | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """What sweep() finds: a vector over scales.

    unit       what scale 1 is: the length of all its parts together, in |h| of their layers; None
               for a vector that projects
    bound      what ratios of perplexities may reach
    suggested  the scale with the largest effect whose fluency is within the bound; None if there
               is none beside 0
    """

    base: Path
    vector: Path
    pairs: Path
    n_pairs: int
    n_random: int
    unit: float | None
    bound: float
    seed: int
    questions: tuple[str, ...]
    steps: tuple[Step, ...]
    suggested: float | None
    output: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return _plain_object(asdict(self))


@dataclass(frozen=True, slots=True)
class Candidate:
    """What of a prompt's effect one choice of layers and scale recovers on the training part."""

    layers: tuple[int, ...]
    scale: float
    recovered: float


@dataclass(frozen=True, slots=True)
class Match:
    """A vector that match() wrote in place of a prompt.

    recovered        1 - KL(with the prompt || with the vector) / KL(with || without), both summed
                     over the tokens of what the model replies to held-out questions with the prompt
    interval         of that, over questions
    random           the same of random vectors of the same norms at the same layers, the mean
    agreement        the share of those tokens that is the likeliest one under the vector; `without`
                     of those under neither
    kl               per token, without prompt and vector, in nats
    tokens_saved     of each prompt, the mean
    scale            as a Derivation's
    """

    base: Path
    prompt: Path
    questions: Path
    output: Path
    layers: tuple[int, ...]
    scale: float
    recovered: float
    interval: Interval
    random: float
    agreement: float
    without: float
    kl: float
    tokens_saved: float
    n_train: int
    n_held_out: int
    n_tokens: int
    seed: int
    candidates: tuple[Candidate, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return _plain_object(asdict(self))


def _plain_object(value: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(each) for name, each in value.items()}


def _plain(value: Any) -> Any:
    """As JSON can hold it: paths as text, and no numbers that are not finite."""
    if isinstance(value, Mapping):
        return _plain_object(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not -1e300 < value < 1e300:
        return None
    return value
