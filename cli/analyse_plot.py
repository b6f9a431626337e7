"""What `alora-gguf analyse` draws: what its tables say, over layers and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from .chart import Curve, Panel, write_panels
from .render import shortened

if TYPE_CHECKING:
    from alora_gguf.analyse import Activations, Analysis, Totals

_LABEL: Final = 28  # columns, of an adapter in the legend
_WEIGHTS: Final = {
    "relative": "|dW|2 / |W|2, the largest",
    "frobenius": "|dW|_F",
    "effective_rank": "effective rank",
    "utilisation": "utilisation",
}
_STATES: Final = (
    {"change": "|d| / |h|", "cosine": "cosine of h+d and h", "dimension": "dimension of d"},
    {"cka": "CKA of h+d and h", "cka_delta": "CKA of d and h"},
)
_Row = tuple[float, Any, Any, Any]
"""Where a point stands; what has it as an attribute: an adapter, the mean and the spread of random
ones.
"""


def write_plot(found: Analysis, path: Path) -> None:
    """Draws it; raises FileFormatError if it cannot be written."""
    labels = _labels(found)
    what = labels[0] if len(labels) == 1 else f"{len(labels)} adapters"
    title = f"{what}, beside {found.n_random} random ones of the same shapes and norms"
    write_panels(path, panels(found), title=title)


def panels(found: Analysis) -> list[list[Panel]]:
    """Rows: weights by layer and by target, and states by layer if adapters were run."""
    names = sorted({target.name for adapter in found.adapters for target in adapter.targets})
    layers = [
        [_totals(layer.layer, layer.totals) for layer in adapter.layers]
        for adapter in found.adapters
    ]
    targets = [
        [_totals(names.index(target.name), target.totals) for target in adapter.targets]
        for adapter in found.adapters
    ]
    labels = _labels(found)
    shown = {name: _WEIGHTS[name] for name in _WEIGHTS if name != _other(found)}
    rows = [
        [_panel(shown, name, "layer", labels, layers) for name in shown] if any(layers) else [],
        [_panel(shown, name, "target", labels, targets, names) for name in shown],
        *([] if found.activations is None else _states(found.activations, labels)),
    ]
    return [row for row in rows if row]


def _labels(found: Analysis) -> list[str]:
    return [shortened(adapter.label, _LABEL) for adapter in found.adapters]


def _other(found: Analysis) -> str:
    """The norm that is not shown."""
    return "relative" if found.base is None else "frobenius"


def _totals(place: float, totals: Totals) -> _Row:
    return place, totals, totals.random, totals.random_spread


def _states(found: Activations, labels: Sequence[str]) -> Iterator[list[Panel]]:
    points = [
        [(float(each.layer), each.states, each.random, each.random_spread) for each in run.layers]
        for run in found.adapters
    ]
    for names in _STATES:
        panels = [_panel(names, name, "layer", labels, points) for name in names]
        yield [panel for panel in panels if any(curve.points for curve in panel.curves)]


def _panel(
    titles: dict[str, str],
    name: str,
    below: str,
    labels: Sequence[str],
    adapters: Sequence[Sequence[_Row]],
    names: Sequence[str] = (),
) -> Panel:
    """A figure of all adapters, each with what is random beside it."""
    own = [
        Curve(label, _points(rows, lambda row: getattr(row[1], name)), i)
        for i, (label, rows) in enumerate(zip(labels, adapters, strict=True))
    ]
    chance = list[Curve]()
    for i, rows in enumerate(adapters):
        # |dW|_F is the same by construction
        points = _points(rows, lambda row: getattr(row[2], name, None))
        spread = [value for _, value in _points(rows, lambda row: getattr(row[3], name, None))]
        chance.append(Curve("random", points, i, True, spread))
    return Panel(titles[name], below, [*own, *chance], names)


def _points(
    rows: Sequence[_Row], value: Callable[[_Row], float | None]
) -> list[tuple[float, float]]:
    return [(row[0], found) for row in rows if (found := value(row)) is not None]
