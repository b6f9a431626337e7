"""What running adapters on texts shows: plain records, and how it is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from alora_gguf._calls import Within, checked


@checked
@dataclass(frozen=True, slots=True)
class ActivationOptions:
    """What adapters are to read, and how; without a `text` the built-in probes.

    text          a file of conversations as JSON lines, if it ends in .jsonl, else of text
    ranks         ranks to truncate each adapter to, for the KL that this costs
    dump          a safetensors file to write the states of one adapter to
    max_tokens    texts are read until an adapter has acted on so many tokens
    n_threads, n_gpu_layers   as in ContextOptions

    States of max_tokens are kept: for a base of 32 layers and 4,096 values 512 KiB a token, four
    times, and the base's logits.
    """

    text: str | os.PathLike[str] | None = None
    ranks: Sequence[Annotated[int, Within(1)]] = ()
    dump: str | os.PathLike[str] | None = None
    max_tokens: Annotated[int, Within(1, 2**20)] = 1024
    n_threads: Annotated[int, Within(1, 512)] | None = None
    n_gpu_layers: Annotated[int, Within()] = 0


@dataclass(frozen=True, slots=True)
class LayerStates:
    """The residual stream after a layer, with an adapter (h + delta) and without (h).

    change      ||delta|| / ||h||, the mean over tokens
    cosine      of h + delta and h, the mean over tokens
    cka         debiased linear CKA of h + delta and h: how alike tokens relate to each other
    cka_delta   of delta and h: whether what is added follows what is there
    dimension   in how many directions delta is: (sum of s^2)^2 / sum of s^4 of its singular values

    The CKA are None where there are too few tokens for one, or nothing varies.
    """

    change: float
    cosine: float
    cka: float | None
    cka_delta: float | None
    dimension: float


@dataclass(frozen=True, slots=True)
class LayerActivations:
    """After one layer, and `random` with random adapters of the same shapes and norms: the mean,
    and in `random_spread` the standard deviation between them.
    """

    layer: int
    states: LayerStates
    random: LayerStates
    random_spread: LayerStates


@dataclass(frozen=True, slots=True)
class RankLoss:
    """What cutting an adapter to `rank` loses: `kept` is the part of ||dW||_F^2 that stays. `kl` is
    the mean of KL(adapter || truncated) of the next token in nats, `largest` the largest, and
    `top_changed` the part of tokens after which another one is the likeliest.

    The last one of an adapter is of its own rank: the same dW in other factors, so that it shows
    what rounding alone changes, which in a quantized base is not nothing.
    """

    rank: int
    kept: float
    kl: float
    largest: float
    top_changed: float


@dataclass(frozen=True)
class AdapterActivations:
    """One adapter on the texts.

    n_tokens    that it acted on: those that all figures rest on
    n_before    rows before an invocation that were looked at, and were the base's bit for bit
    kl          KL(adapter || base) of the next token, the mean over tokens, in nats: what is lost
                without the adapter
    random_kl   the same of random adapters: the mean, and in `random_kl_spread` the standard
                deviation between them
    no_cka      why there is no CKA, None if there is
    """

    label: str
    n_tokens: int
    n_before: int
    kl: float
    random_kl: float
    random_kl_spread: float
    no_cka: str | None
    layers: tuple[LayerActivations, ...]
    ranks: tuple[RankLoss, ...]

    def __str__(self) -> str:
        return (
            f"{self.label}: KL of the next token to the base {self.kl:.4g} (random "
            f"{self.random_kl:.4g}), over {self.n_tokens} tokens"
        )


@dataclass(frozen=True, slots=True)
class DeltaCosines:
    """Of each two adapters the cosine of what they add to the stream after a layer, the mean over
    the tokens that follow their invocations in all texts; `random` is that of random adapters, the
    mean, and `random_spread` the standard deviation between them.
    """

    layer: int
    cosines: tuple[tuple[float, ...], ...]
    random: tuple[tuple[float, ...], ...]
    random_spread: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Merge:
    """Two clusters of adapters, by their labels, that are joined, and the mean cosine between."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    cosine: float


@dataclass(frozen=True)
class Activations:
    """All that was read: `n_texts` of `text`, or of the probes if that is None.

    n_common   tokens that all adapters acted on alike: those that `cosines` rests on
    cosines    by layer, for several adapters
    clusters   of those, joined from the most alike on by their mean cosine over layers
    """

    text: Path | None
    n_texts: int
    adapters: tuple[AdapterActivations, ...]
    n_common: int
    cosines: tuple[DeltaCosines, ...]
    clusters: tuple[Merge, ...]
