"""Charts: layers as bars in plain characters; times, and curves beside each other, as lines in a
picture by matplotlib.

Knows how they are drawn, and nothing of how they were measured.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import alora_gguf as ag

from .render import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from alora_gguf.verification import LayerChange

_ROWS: Final = 24
_SHORTEST: Final = 8  # a bar of the largest change
_FORMATS: Final = (".png", ".svg", ".pdf")
_SIZE: Final = (7.0, 4.4)  # inches
_DPI: Final = 110
_PANEL: Final = (3.6, 3.0)  # inches
_NAMED: Final = 3  # labels of the legend for each column of panels
_DENSE: Final = 24  # points whose markers would touch
_APART: Final = 0.7  # of a place's width, for the points that stand there
_MARKERS: Final = (  # of curves, with colours that can be told apart, also by the colour-blind
    *(("o", "#0969da"), ("s", "#bc4c00"), ("^", "#1a7f37"), ("D", "#8250df")),
    *(("v", "#0a8f9c"), ("P", "#9a6700"), ("*", "#bf3989"), ("h", "#57606a")),
)
# nothing of the machine in a file: neither date nor version
_METADATA: Final[dict[str, dict[str, str | None]]] = {
    "png": {"Software": None},
    "svg": {"Creator": None, "Date": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}


class Line(NamedTuple):
    """Seconds by tokens; marker and dash tell lines apart without colours too."""

    label: str
    style: str
    colour: str
    points: Sequence[tuple[int, float]]


class Curve(NamedTuple):
    """Points, and half the height of a band around each. The `number` chooses colour and marker;
    `chance` is what it is compared with, dashed and pale.
    """

    label: str
    points: Sequence[tuple[float, float]]
    number: int = 0
    chance: bool = False
    spread: Sequence[float] = ()


class Panel(NamedTuple):
    """Curves over the same numbers; the first is drawn in front. With `names` of the places 0, 1,
    ... points stand apart, a place's beside each other.
    """

    title: str
    below: str
    curves: Sequence[Curve]
    names: Sequence[str] = ()


# Bars -------------------------------------------------------------------------------------------


def bars(layers: Sequence[LayerChange], width: int) -> tuple[str, list[tuple[str, str]]]:
    """A heading, and rows of at most `width` columns: what is before a bar, and the bar.

    Of many layers as many neighbours share a row as leave 24 rows, which then has their means. The
    largest change fills the width; what is too small for a character is a dot.
    """
    size = math.ceil(len(layers) / _ROWS)
    groups = [layers[i : i + size] for i in range(0, len(layers), size)]
    labels = [str(g[0].layer) + (f"-{g[-1].layer}" if len(g) > 1 else "") for g in groups]
    changes = [sum(each.change for each in group) / len(group) for group in groups]
    cosines = [sum(each.cosine for each in group) / len(group) for group in groups]
    names = max(len("layer"), *map(len, labels))
    largest = max((c for c in changes if math.isfinite(c)), default=0.0)
    room = max(_SHORTEST, width - names - 22)
    rows = []
    for label, change, cosine in zip(labels, changes, cosines, strict=True):
        short = f"{change:7.4f}" if change < 10 else f"{change:7.3g}"  # 0.0123, 12.3, 1.2e+05
        marks = round(room * change / largest) if largest and math.isfinite(change) else 0
        dot = "." if change and math.isfinite(change) else ""
        rows.append((f"  {label:>{names}}  {short}  {cosine:7.4f}  ", "#" * marks or dot))
    return f"  {'layer':>{names}}  {'change':>7}  {'cosine':>7}", rows


# Lines ------------------------------------------------------------------------------------------


def check_picture(path: Path) -> None:
    """Raises InputError if no picture could be written to `path`, before anything is measured."""
    from alora_gguf.files import check_target

    if path.suffix.lower() not in _FORMATS:
        raise ag.InputError(f"{path}: expected a name that ends in {', '.join(_FORMATS)}")
    check_target(path, what="chart")
    if importlib.util.find_spec("matplotlib") is None:
        raise ag.InputError(
            "--plot needs matplotlib, which is not installed: pip install 'alora-gguf[plot]'"
        )


def write_picture(
    path: Path, lines: Sequence[Line], notes: Sequence[tuple[int, float, str]], *, title: str
) -> None:
    """Draws lines, and notes above points of them; a file of that name is replaced in the end.
    Raises FileFormatError if it cannot be written.
    """
    from matplotlib.figure import Figure

    with _drawing():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            x, y = zip(*line.points, strict=True)
            axes.plot(x, y, line.style, color=line.colour, label=line.label, markersize=6)
        for n, seconds, text in notes:
            above = (0, 7)
            axes.annotate(text, (n, seconds), above, textcoords="offset points", ha="center")
        _lay_out(axes, sorted({n for line in lines for n, _ in line.points}))
        axes.set_title(_plain(title))
        _save(figure, path)


def write_panels(path: Path, rows: Sequence[Sequence[Panel]], *, title: str) -> None:
    """Draws rows of panels, with one legend for all; as write_picture()."""
    from matplotlib.figure import Figure

    with _drawing():
        n_rows, n_columns = len(rows), max(map(len, rows))
        size = (_PANEL[0] * n_columns, _PANEL[1] * n_rows)
        figure = Figure(figsize=size, layout="constrained")
        shown: dict[str, Any] = {}
        for i, row in enumerate(rows):
            for j, panel in enumerate(row):
                axes = figure.add_subplot(n_rows, n_columns, i * n_columns + j + 1)
                for label, artist in _draw(axes, panel).items():
                    shown.setdefault(label, artist)
        columns = max(1, min(len(shown), _NAMED * n_columns))
        figure.legend(
            [*shown.values()],
            [*map(_plain, shown)],
            loc="outside lower center",
            ncols=columns,
            frameon=False,
        )
        figure.suptitle(_plain(title))
        _save(figure, path)


def _draw(axes: Axes, panel: Panel) -> dict[str, Any]:
    """What a legend needs, the first curve first."""
    import numpy as np  # as late as matplotlib is: a command's help needs neither

    drawn: dict[str, Any] = {}
    order = [curve for curve in panel.curves if curve.points]
    groups = 1 + max((curve.number for curve in order), default=0)
    for curve in reversed(order):
        x, y = (np.array(each) for each in zip(*curve.points, strict=True))
        marker, colour = _MARKERS[curve.number % len(_MARKERS)]
        alpha = 0.5 if curve.chance else 1.0
        look: dict[str, Any] = {"color": colour, "label": curve.label, "alpha": alpha}
        look["markersize"] = 5 if len(x) < _DENSE else 2
        marker = "x" if curve.chance else marker
        if panel.names:
            x = x + (curve.number - (groups - 1) / 2) * _APART / groups
            error = curve.spread or None
            drawn[curve.label] = axes.errorbar(x, y, error, fmt=marker, linestyle="none", **look)
            continue
        line = "--" if curve.chance else "-"
        (drawn[curve.label],) = axes.plot(x, y, marker=marker, linestyle=line, **look)
        if curve.spread:
            low, high = y - curve.spread, y + curve.spread
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    if panel.names:
        axes.set_xticks(range(len(panel.names)), map(_plain, panel.names), rotation=30, ha="right")
    axes.set_title(_plain(panel.title), fontsize=10)
    axes.set_xlabel(panel.below)
    axes.grid(visible=True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    return dict(reversed(drawn.items()))


def _drawing() -> AbstractContextManager[None]:
    from matplotlib import rc_context

    return rc_context({"svg.fonttype": "none", "svg.hashsalt": "alora-gguf", "font.size": 10.0})


def _plain(text: str) -> str:
    """A pair of dollars would be mathematics."""
    return printable(text).replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from alora_gguf.files import write_whole

    form = path.suffix.lower().removeprefix(".")
    FigureCanvasAgg(figure)
    with write_whole(path, what="chart") as file:
        figure.savefig(file, format=form, dpi=_DPI, metadata=_METADATA[form])


def _lay_out(axes: Axes, lengths: Sequence[int]) -> None:
    """Both axes are logarithmic: lengths in tokens, and times with their units."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:.0f}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda s, _: f"{s:g} s" if s > 0.999 else f"{1000 * s:g} ms")
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.margins(x=0.08, y=0.14)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("time to the first token")
    axes.legend(frameon=False, loc="upper left")
