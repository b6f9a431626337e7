"""What is kept of texts while adapters are run on them, and what follows from it: no model is known
here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import combinations

import numpy as np

from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.verification.probe import Hidden, Reading, changes, divergence

from .activation_records import (
    AdapterActivations,
    DeltaCosines,
    LayerActivations,
    LayerStates,
    RankLoss,
)
from .factors import Doubles
from .passages import Passage
from .random_adapters import mean_and_spread
from .states import FEWEST, cka, dimension, gram, mean_cosine

ByLayer = dict[int, list[Hidden]]
"""States of the tokens that an adapter acts on, text by text."""


@dataclass
class Cut:
    """An adapter cut to `rank`, and what that loses, token by token."""

    name: str
    rank: int
    kept: float = 1.0
    kl: list[float] = field(default_factory=list)
    top_changed: list[bool] = field(default_factory=list)

    def add(self, adapted: Reading, less: Reading, n: int) -> None:
        """Of the last `n` rows."""
        for p, q in zip(adapted.logits[-n:], less.logits[-n:], strict=True):
            self.kl.append(divergence(p, q))
            self.top_changed.append(bool(p.argmax() != q.argmax()))

    def result(self) -> RankLoss:
        """What was lost, over all tokens."""
        kl, changed = float(np.mean(self.kl)), float(np.mean(self.top_changed))
        return RankLoss(self.rank, self.kept, kl, max(self.kl), changed)


@dataclass
class Run:
    """One adapter: what it reads, and what was computed, for the tokens that it acted on."""

    label: str
    file: AdapterFile
    name: str
    passages: list[Passage] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    base: ByLayer = field(default_factory=dict)
    adapted: ByLayer = field(default_factory=dict)
    _kl: list[float] = field(default_factory=list)
    _logits: list[Hidden] = field(default_factory=list)  # of the base, text by text
    _drawn: ByLayer = field(default_factory=dict)  # of the draw that is read now
    _drawn_kl: list[float] = field(default_factory=list)
    _draws: list[dict[int, LayerStates]] = field(default_factory=list)
    _draws_kl: list[float] = field(default_factory=list)

    def add(self, base: Reading, adapted: Reading, n: int) -> None:
        """A text; the last `n` rows are those that the adapter acts on."""
        _keep(self.base, base, n)
        _keep(self.adapted, adapted, n)
        self._logits.append(base.logits[-n:].copy())
        self._kl += _divergences(adapted.logits[-n:], self._logits[-1])

    def add_random(self, drawn: Reading) -> None:
        """The next text, with a random adapter."""
        first = next(iter(self.base))
        number = len(self._drawn.get(first, ()))
        logits = self._logits[number]
        _keep(self._drawn, drawn, len(logits))
        self._drawn_kl += _divergences(drawn.logits[-len(logits) :], logits)

    def end_draw(self) -> None:
        """All texts were read with one random adapter; what is kept is what is told of it."""
        states = {i: _states(*_joined(self.base[i], self._drawn[i])) for i in self.base}
        self._draws.append(states)
        self._draws_kl.append(float(np.mean(self._drawn_kl)))
        self._drawn, self._drawn_kl = {}, []

    def delta(self, adapted: Reading, number: int) -> dict[int, Hidden]:
        """What was added to the base's states of a text, by layer."""
        return {i: adapted.layers[i][-len(h[number]) :] - h[number] for i, h in self.base.items()}

    def result(self) -> AdapterActivations:
        """All figures, once everything was read."""
        n_tokens = sum(each.n_adapted for each in self.passages)
        few = f"{n_tokens} tokens do not carry a CKA: it needs at least {FEWEST}"
        random_kl, spread = mean_and_spread(np.array(self._draws_kl))
        return AdapterActivations(
            label=self.label,
            n_tokens=n_tokens,
            n_before=sum(each.n_before for each in self.passages),
            kl=float(np.mean(self._kl)),
            random_kl=float(random_kl),
            random_kl_spread=float(spread),
            no_cka=few if n_tokens < FEWEST else None,
            layers=tuple(self._layers()),
            ranks=tuple(cut.result() for cut in self.cuts),
        )

    def _layers(self) -> Iterator[LayerActivations]:
        for layer, base in self.base.items():
            own = _states(*_joined(base, self.adapted[layer]))
            drawn = [draw[layer] for draw in self._draws]
            yield LayerActivations(layer, own, *_mean_and_spread(drawn))


class Cosines:
    """Between what adapters add, summed over the tokens that follow all invocations."""

    def __init__(self, n_adapters: int) -> None:
        self.n = 0
        self._pairs = list(combinations(range(n_adapters), 2))
        self._eye = np.eye(n_adapters)
        self._sums: dict[int, Doubles] = {}

    def add(self, deltas: Sequence[Mapping[int, Hidden]], n: int) -> None:
        """Deltas of each adapter by layer; the last `n` rows are of the same tokens."""
        self.n += n
        for layer in deltas[0] if self._pairs else ():
            total = self._sums.setdefault(layer, np.zeros_like(self._eye))
            for i, j in self._pairs:
                total[i, j] += n * mean_cosine(deltas[i][layer][-n:], deltas[j][layer][-n:])
                total[j, i] = total[i, j]

    def means(self) -> dict[int, Doubles]:
        """By layer, [n_adapters, n_adapters]."""
        return {layer: total / self.n + self._eye for layer, total in self._sums.items()}


def delta_cosines(own: Cosines, random: Sequence[Cosines]) -> Iterator[DeltaCosines]:
    """Beside each other, layer by layer."""
    drawn = [each.means() for each in random]
    for layer, matrix in own.means().items():
        mean, spread = mean_and_spread(np.stack([each[layer] for each in drawn]))
        yield DeltaCosines(layer, *(_rows(each) for each in (matrix, mean, spread)))


def _rows(matrix: Doubles) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))


def _keep(states: ByLayer, reading: Reading, n: int) -> None:
    for layer, hidden in reading.layers.items():
        states.setdefault(layer, []).append(hidden[-n:].copy())


def _joined(*states: Sequence[Hidden]) -> tuple[Hidden, ...]:
    return tuple(np.concatenate(each) for each in states)


def _divergences(p: Hidden, q: Hidden) -> list[float]:
    return [divergence(first, second) for first, second in zip(p, q, strict=True)]


def _states(base: Hidden, adapted: Hidden) -> LayerStates:
    ratio, cosine = changes(base, adapted)
    delta = adapted.astype(np.float64) - base
    below = gram(base)
    return LayerStates(
        change=float(ratio.mean()),
        cosine=float(cosine.mean()),
        cka=cka(gram(adapted), below),
        cka_delta=cka(gram(delta), below),
        dimension=dimension(delta),
    )


def _mean_and_spread(drawn: Sequence[LayerStates]) -> tuple[LayerStates, LayerStates]:
    """Of each figure; None if one is."""
    found = dict[str, tuple[float | None, float | None]]()
    for name in (each.name for each in fields(LayerStates)):
        values = [getattr(each, name) for each in drawn]
        if None in values:
            found[name] = None, None
        else:
            mean, spread = mean_and_spread(np.array(values))
            found[name] = float(mean), float(spread)
    first, second = ({name: both[i] for name, both in found.items()} for i in (0, 1))
    return LayerStates(**first), LayerStates(**second)  # type: ignore[arg-type]
