"""A benchmark's result, which is the object that --json prints, as tables and as a chart.

Samples are in the order they were taken in; seconds, but for decoding, which has tokens per second.
What could not be measured is None or absent, and `notes` say why. Does not measure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import click
from alora_gguf.cli.chart import Line, write_picture
from alora_gguf.cli.render import plural, size_text, wrapped

HOW: Final = (
    "the aLoRA's own weights, on from the first token, which makes a plain LoRA of them; what a "
    "LoRA costs depends on its shape, not on its weights' values"
)
Result = dict[str, Any]
_Table = tuple[str, str, list[Sequence[str]]]  # a title, the columns' widths, rows

SIDES: Final = ("alora", "lora", "base")
_PAIRS: Final = (("lora", "alora"), ("alora", "base"), ("lora", "base"))
_HEADINGS: Final = ("context", "aLoRA", "plain LoRA", "no adapter", "LoRA/aLoRA", "aLoRA/none")
# side, label, style, colour
_LINES: Final = (
    ("lora", "plain LoRA, reads everything; numbers: times the aLoRA", "s--", "#b2400d"),
    ("alora", "aLoRA, on the base's cells", "o-", "#0b3c6f"),
    ("base", "no adapter, on the base's cells", "^:", "#7a7a7a"),
)


def at_context(n_tokens: int) -> Result:
    """The row of a context: how long the base took to read it, once for all its questions; and the
    sides, the aLoRA and the base on its cached cells, the plain LoRA that reads it all. Each has
    the prompt's tokens that were `reused` and `evaluated`, and for each question the time to the
    first token and in total.
    """
    return {"n_tokens": n_tokens, "read": [], **dict.fromkeys(SIDES)}


def add_ratios(result: Result) -> Result:
    """The result, into which the ratios of its medians are written."""
    result["plain_lora"] = HOW if _has_alora(result) else None
    for row in result["contexts"]:
        row["ratios"] = {
            what: {f"{a}_to_{b}": _ratio(_samples(row, a, what), _samples(row, b, what))
                   for a, b in _PAIRS}
            for what in ("first_token", "total")
        }  # fmt: skip
    for row in result["together"]:
        row["one_by_one_to_at_once"] = _ratio(row["one_by_one"], row["at_once"])
    if decoding := result["decoding"]:
        decoding["base_to_adapter"] = _ratio(decoding["base"], decoding["adapter"])
    if memory := result["memory"]:
        memory["apart_to_forks"] = memory["cells_apart"] / memory["cells"]
    return result


def _ratio(above: Sequence[float], below: Sequence[float]) -> float | None:
    """Of the medians; None where a side has no samples, or there is nothing to divide by."""
    divisor = median(below) if below else 0.0
    return median(above) / divisor if above and divisor else None


def _samples(row: Result, way: str, what: str) -> list[float]:
    samples: list[float] = row[way][what] if row[way] else []
    return samples


def _has_alora(result: Result) -> bool:
    return any(adapter["kind"] == "alora" for adapter in result["adapters"])


# As text ----------------------------------------------------------------------------------------


def report(result: Result, width: int) -> Iterator[str]:
    """Its lines, styled; sentences are `width` columns wide, tables at most 80."""
    base = result["base"]
    millions = base["n_parameters"] / 1e6
    size = f"{millions:.1f} million" if millions < 1e3 else f"{millions / 1e3:.2f} billion"
    facts = f"{base['architecture']}, {size} parameters, {size_text(base['nbytes'])}"
    yield from wrapped(f"{base['name']} ({facts}) on {_computed_by(result)}", width)
    for adapter in result["adapters"]:
        kind = f"plain LoRA of rank {adapter['rank']}"
        if adapter["kind"] == "alora":
            invocation = plural(adapter["n_invocation"], "token")
            kind = f"aLoRA of rank {adapter['rank']}, invoked by {invocation}"
        yield from wrapped(f"{adapter['name']}: {kind}", width, "  ", hang="    ")
    for title, layout, rows in (*_by_context(result), *_by_row(result)):
        yield from ("", click.style(title, bold=True))
        for row in rows:
            # fixed widths, so that one result's tables compare with another's
            cells = zip(row, layout.split(), strict=False)
            line = "  " + "".join(f"{cell:{form}}" for cell, form in cells)
            yield click.style(line, dim=True) if "<" not in layout and row is rows[0] else line
    yield ""
    yield from wrapped(_summary(result), width, long_words=True)
    for note in result["notes"]:
        yield from wrapped(f"{note[:1].upper()}{note[1:]}.", width)


def duration(seconds: float) -> str:
    """Three digits: 0.31 ms, 12.3 ms, 456 ms, 1.81 s, 12.3 s."""
    ms = 1000 * seconds
    number, unit = (ms, "ms") if ms < 999.5 else (seconds, "s")
    digits = 0 if number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f} {unit}"


def times(value: float | None) -> str:
    """A ratio: 1.07x, 12.3x, 456x; "-" for none."""
    if value is None:
        return "-"
    return f"{value:.0f}x" if value >= 99.95 else f"{value:.{1 if value >= 9.995 else 2}f}x"


def _by_context(result: Result) -> Iterator[_Table]:
    answer = f"To the end of an answer of {result['method']['answer_tokens']} tokens"
    for what, title in (("first_token", "To the first token"), ("total", answer)):
        rows: list[Sequence[str]] = [_HEADINGS]
        for row in result["contexts"]:
            sides = (_samples(row, way, what) for way in SIDES)
            ratios = row["ratios"][what]
            rows.append((
                str(row["n_tokens"]),
                *(duration(median(side)) if side else "-" for side in sides),
                times(ratios["lora_to_alora"]),
                times(ratios["alora_to_base"]),
            ))  # fmt: skip
        if result["contexts"]:
            yield title, ">8 >11 >12 >12 >13 >12", rows


def _by_row(result: Result) -> Iterator[_Table]:
    """The rows that need one context."""
    rows: list[Sequence[str]] = [("aLoRAs", "one batch", "one by one", "ratio")]
    for row in result["together"]:
        sides = (duration(median(row[side])) for side in ("at_once", "one_by_one"))
        rows.append((str(row["n_adapters"]), *sides, times(row["one_by_one_to_at_once"])))
    if result["together"]:
        title = f"Several aLoRAs asked after {result['together'][0]['n_tokens']} tokens"
        yield f"{title}, to the end of all answers", ">8 >11 >12 >12", rows
    if row := result["decoding"]:
        adapter, base = (f"{median(row[side]):.1f} tokens/s" for side in ("adapter", "base"))
        rows = [("with the adapter", adapter), ("no adapter", base, times(row["base_to_adapter"]))]
        yield f"Decoding after {row['n_tokens']} tokens", "<18 >19 >12", rows
    if row := result["memory"]:
        n, factor = row["n_forks"], times(row["apart_to_forks"])
        forked, apart = (
            (f"{row[cells]} cells", size_text(round(row[cells] * row["cell_nbytes"])))
            for cells in ("cells", "cells_apart")
        )
        title = f"Memory of {n} questions and answers after {row['n_tokens']} tokens"
        rows = [("one context, forked", *forked), (f"{n} contexts", *apart, factor)]
        yield title, "<22 >14 >12 >10", rows


def _computed_by(result: Result) -> str:
    """Threads, and layers on the GPU if there are any."""
    method = result["method"]
    threads, layers = plural(method["threads"], "thread"), method["gpu_layers"]
    if not layers:
        return threads
    return f"{threads}, {'all layers' if layers < 0 else plural(layers, 'layer')} on the GPU"


def _summary(result: Result) -> str:
    rounds = [len(_samples(row, "lora", "total")) for row in result["contexts"]] or [0]
    least, most = min(rounds), max(rounds)
    how_many = plural(most, "round") if least == most else f"{least} to {most} rounds"
    asked = result["method"]["asked"]
    text = f"Medians of {how_many}, measured in {result['elapsed']:.0f} s. "
    if not _has_alora(result):
        return text + (
            f"The plain LoRA is '{asked}', which reads everything; the base is asked on "
            "the cells that it has computed."
        )
    return text + (
        f"The aLoRA is '{asked}', asked on the cells that the base has computed, like the "
        "base itself; the plain LoRA has the same weights, is on from the first token and reads "
        "everything."
    )


# As a chart -------------------------------------------------------------------------------------


def write_chart(result: Result, path: Path) -> None:
    """Draws the time to the first token over the context's length. Raises FileFormatError if it
    cannot be written.
    """
    lines = []
    for way, label, style, colour in _LINES:
        sides = ((row["n_tokens"], _samples(row, way, "first_token")) for row in result["contexts"])
        if points := [(n, median(samples)) for n, samples in sides if samples]:
            lines.append(Line(label, style, colour, points))
    notes = [
        (row["n_tokens"], median(row["lora"]["first_token"]), times(factor))
        for row in result["contexts"]
        if (factor := row["ratios"]["first_token"]["lora_to_alora"]) is not None
    ]
    write_picture(path, lines, notes, title=f"{result['base']['name']}, {_computed_by(result)}")
