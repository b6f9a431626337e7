"""Charts: layers as bars in plain characters; times, and curves beside each other, as lines in a
picture by matplotlib.

Knows how they are drawn, and nothing of how they were measured.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

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
_STYLES: Final = (("o-", "#0969da"), ("x--", "#8c959f"), ("s:", "#bc4c00"))  # of curves
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


class Panel(NamedTuple):
    """Curves over the same numbers, by their labels; the first is drawn in front."""

    title: str
    below: str
    curves: Mapping[str, Sequence[tuple[float, float]]]


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


def write_panels(path: Path, panels: Sequence[Panel], *, title: str) -> None:
    """Draws panels side by side; as write_picture()."""
    from matplotlib.figure import Figure

    with _drawing():
        size = (_PANEL[0] * len(panels), _PANEL[1])
        figure = Figure(figsize=size, layout="constrained")
        for number, panel in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), number + 1)
            drawn = [(label, points) for label, points in panel.curves.items() if points]
            for at, (label, points) in reversed([*enumerate(drawn)]):
                x, y = zip(*points, strict=True)
                style, colour = _STYLES[at % len(_STYLES)]
                axes.plot(x, y, style, color=colour, label=label, markersize=5)
            axes.set_title(_plain(panel.title), fontsize=10)
            axes.set_xlabel(panel.below)
            axes.grid(visible=True, color="#dddddd", linewidth=0.7)
            axes.set_axisbelow(True)
            axes.legend(frameon=False)
        figure.suptitle(_plain(title))
        _save(figure, path)


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
