"""The time to the first token over the context's length, as a picture; by matplotlib, an extra."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alora_gguf.cli.measure import median, ratio
from alora_gguf.cli.render import printable

from alora_gguf.errors import InputError

from .table import computed_by, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .results import BenchResult, Way

_FORMATS: Final = (".png", ".svg", ".pdf")
_SIZE: Final = (7.0, 4.4)  # inches
_DPI: Final = 110
# label, side, colour, marker, dash: told apart without colours too
_LINES: Final[tuple[tuple[str, Way, str, str, str], ...]] = (
    ("plain LoRA, reads everything; numbers: times the aLoRA", "lora", "#b2400d", "s", "--"),
    ("aLoRA, on the base's cells", "alora", "#0b3c6f", "o", "-"),
    ("no adapter, on the base's cells", "base", "#7a7a7a", "^", ":"),
)


def check_chart(path: Path) -> None:
    """Raises InputError if no chart could be written to `path`, before anything is measured."""
    from alora_gguf.files import check_target

    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"{path}: expected a name that ends in {', '.join(_FORMATS)}")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is a directory or a device, expected a file name for the chart")
    check_target(path, what="chart")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "--plot needs matplotlib, which is not installed: pip install 'alora-gguf[plot]'"
        )


def write_chart(result: BenchResult, path: Path) -> None:
    """Draws the chart; a file of that name is replaced in the end. Raises FileFormatError if it
    cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from alora_gguf.files import write_whole

    form = path.suffix.lower().removeprefix(".")
    # nothing of the machine in the file: neither date nor version
    metadata: dict[str, str | None] = {"Software": None} if form == "png" else {"Creator": None}
    if form == "svg":
        metadata["Date"] = None
    elif form == "pdf":
        metadata |= {"Producer": None, "CreationDate": None}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "alora-gguf", "font.size": 10.0}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.add_subplot(), result)
        with write_whole(path, what="chart") as file:
            figure.savefig(file, format=form, dpi=_DPI, metadata=metadata)


def _draw(axes: Axes, result: BenchResult) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for label, way, colour, marker, dash in _LINES:
        points = [(row.n_tokens, side) for row in result.contexts if (side := row.side(way))]
        if points:
            lengths = [n for n, _ in points]
            seconds = [median(side.first_token) for _, side in points]
            axes.plot(
                lengths, seconds, dash, marker=marker, color=colour, label=label, markersize=6
            )
    for row in result.contexts:
        if row.lora and row.alora:
            factor = ratio(row.lora.first_token, row.alora.first_token)
            axes.annotate(
                times(factor),
                (row.n_tokens, median(row.lora.first_token)),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([row.n_tokens for row in result.contexts])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _tick(seconds)))
    axes.margins(x=0.08, y=0.14)
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("time to the first token")
    axes.set_title(_plain(f"{result.base.name}, {computed_by(result)}"))
    axes.legend(frameon=False, loc="upper left")


def _tick(seconds: float) -> str:
    return f"{seconds:g} s" if seconds > 0.999 else f"{1000 * seconds:g} ms"


def _plain(text: str) -> str:
    """For matplotlib, to which a pair of dollars is mathematics."""
    return printable(text).replace("$", r"\$")
