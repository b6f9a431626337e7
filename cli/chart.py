"""Charts: layers as bars in plain characters, times as lines in a picture by matplotlib.

Knows how they are drawn, and nothing of how they were measured.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import alora_gguf as ag

from .render import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from alora_gguf.verification import LayerChange

_ROWS: Final = 24
_SHORTEST: Final = 8  # a bar of the largest change
_FORMATS: Final = (".png", ".svg", ".pdf")
_SIZE: Final = (7.0, 4.4)  # inches
_DPI: Final = 110
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
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from alora_gguf.files import write_whole

    form = path.suffix.lower().removeprefix(".")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "alora-gguf", "font.size": 10.0}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for line in lines:
            x, y = zip(*line.points, strict=True)
            axes.plot(x, y, line.style, color=line.colour, label=line.label, markersize=6)
        for n, seconds, text in notes:
            above = (0, 7)
            axes.annotate(text, (n, seconds), above, textcoords="offset points", ha="center")
        _lay_out(axes, sorted({n for line in lines for n, _ in line.points}))
        axes.set_title(printable(title).replace("$", r"\$"))  # a pair of them is mathematics
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
