"""Changes by layer as a chart of bars, in plain characters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from alora_gguf.verification import LayerChange

_ROWS: Final = 24
_SHORTEST: Final = 8  # a bar of the largest change


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of the chart: what is before the bar, and the bar."""

    label: str
    bar: str


def chart(layers: Sequence[LayerChange], width: int) -> tuple[str, list[Bar]]:
    """A heading and rows of at most `width` columns.

    Of many layers as many neighbours share a row as leave 24 rows, which then has their means. The
    largest change fills the width; what is too small for a character is a dot.
    """
    size = math.ceil(len(layers) / _ROWS)
    groups = [layers[i : i + size] for i in range(0, len(layers), size)]
    labels = [_numbers(group) for group in groups]
    changes = [_mean([each.change for each in group]) for group in groups]
    cosines = [_mean([each.cosine for each in group]) for group in groups]
    names = max(len("layer"), *map(len, labels))
    largest = max((c for c in changes if math.isfinite(c)), default=0.0)
    room = max(_SHORTEST, width - names - 22)
    rows = [
        Bar(f"  {label:>{names}}  {_short(change)}  {cosine:7.4f}  ", _bar(change, largest, room))
        for label, change, cosine in zip(labels, changes, cosines, strict=True)
    ]
    return f"  {'layer':>{names}}  {'change':>7}  {'cosine':>7}", rows


def _bar(change: float, largest: float, room: int) -> str:
    if not math.isfinite(change):
        return ""
    marks = round(room * change / largest) if largest else 0
    return "#" * marks or ("." if change else "")


def _numbers(group: Sequence[LayerChange]) -> str:
    first, last = group[0].layer, group[-1].layer
    return str(first) if len(group) == 1 else f"{first}-{last}"


def _short(change: float) -> str:
    """In seven columns: 0.0123, 12.3, 1.2e+05."""
    return f"{change:7.4f}" if change < 10 else f"{change:7.3g}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
