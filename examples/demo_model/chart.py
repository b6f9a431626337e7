"""The results as an SVG: how often each side is right, and how long its first token takes.

Colours follow the reader's light or dark mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

from .tables import ROWS, Results, figure_name, milliseconds

SIDES: Final = {"alora": "aLoRA", "lora": "LoRA", "base": "base alone"}
WIDTH: Final = 840
_TOP, _ROW, _BOTTOM = 84, 50, 34  # pixels above the rows, of a row, and below
_LABEL, _LEFT, _RIGHT = 150, 165, 500  # where labels end and the scale of shares lies
_BARS, _BARS_END = 560, 760  # where the bars of milliseconds lie
_OFFSETS: Final = {"alora": -11, "lora": 0, "base": 11}
_STYLE: Final = """\
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #57606a; }
.strong { font-weight: 600; fill: #24292f; }
.small { font-size: 11px; }
.grid { stroke: #d0d7de; }
.alora { fill: #0969da; stroke: #0969da; }
.lora { fill: #bc4c00; stroke: #bc4c00; }
.base { fill: #6e7781; stroke: #6e7781; }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1; }
  .strong { fill: #e6edf3; }
  .grid { stroke: #3d444d; }
  .alora { fill: #58a6ff; stroke: #58a6ff; }
  .lora { fill: #f0883e; stroke: #f0883e; }
  .base { fill: #8b949e; stroke: #8b949e; }
}"""


def svg(results: Results) -> str:
    """The whole chart."""
    tasks = results.tasks
    height = _TOP + _ROW * len(tasks) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">',
        f"<title>{escape(_title(results))}</title>",
        f"<style>\n{_STYLE}\n</style>",
        *_legend(),
        *_shares(results, height),
        *_times(results),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _title(results: Results) -> str:
    sides = ", ".join(SIDES.values())
    return f"{sides}: how often right on {results.n} held-out conversations, and how fast"


def _legend() -> Iterator[str]:
    x = _LEFT
    for side, label in SIDES.items():
        yield _mark(side, x + 5, 16)
        yield _text(x + 16, 20, label)
        x += 40 + 7 * len(label)


def _shares(results: Results, height: int) -> Iterator[str]:
    yield _text(_LEFT, 48, "right, with 95 % intervals", "strong")
    bottom = height - _BOTTOM
    for percent in range(0, 101, 20):
        x = _x(percent / 100)
        yield _line(x, _TOP - 16, x, bottom, "grid")
        yield _text(x, bottom + 16, f"{percent} %", "small", anchor="middle")
    for i, task in enumerate(results.tasks):
        y = _TOP + _ROW * i + _ROW // 2 - 8
        yield _text(_LABEL, y, ROWS[task], "strong", anchor="end")
        yield _text(_LABEL, y + 15, figure_name(task), "small", anchor="end")
        for side in SIDES:
            figure = results.headline(task, side)
            at = y + 3 + _OFFSETS[side]
            # an error becomes a share of what is right, so that right is on the right everywhere
            low, value, high = figure.as_share()
            yield _line(_x(low), at, _x(high), at, side)
            yield _mark(side, _x(value), at)


def _times(results: Results) -> Iterator[str]:
    rows = results.long_latency()
    if not rows:
        return
    tokens = max(row["conversation_tokens"] for row in rows.values())
    yield _text(_BARS, 48, "first token, milliseconds", "strong")
    yield _text(_BARS, 63, f"behind a conversation of {tokens:,} tokens", "small")
    longest = max(row["first_token_ms"]["median"] for row in rows.values())
    for i, task in enumerate(results.tasks):
        for side, offset in (("alora", -7), ("lora", 7)):
            row = rows.get((task, side))
            if row is None:
                continue
            y = _TOP + _ROW * i + _ROW // 2 - 5 + offset
            ms = row["first_token_ms"]["median"]
            width = max(1.0, (_BARS_END - _BARS) * ms / longest)
            yield (
                f'<rect class="{side}" x="{_BARS}" y="{y - 5}" width="{width:.1f}" height="10" '
                'stroke="none"/>'
            )
            yield _text(_BARS + width + 6, y + 4, milliseconds(ms), "small")


def _x(share: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * min(max(share, 0.0), 1.0)


def _mark(side: str, x: float, y: float) -> str:
    """A circle, a diamond or a square: colour is not all that tells the sides apart."""
    if side == "alora":
        return f'<circle class="alora" cx="{x:.1f}" cy="{y}" r="4.5"/>'
    if side == "lora":
        points: Sequence[tuple[float, float]] = [(x, y - 5), (x + 5, y), (x, y + 5), (x - 5, y)]
        path = " ".join(f"{px:.1f},{py}" for px, py in points)
        return f'<polygon class="lora" points="{path}"/>'
    return f'<rect class="{side}" x="{x - 4:.1f}" y="{y - 4}" width="8" height="8"/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    width = 1 if kind == "grid" else 2
    return (
        f'<line class="{kind}" x1="{x1:.1f}" y1="{y1}" x2="{x2:.1f}" y2="{y2}" '
        f'stroke-width="{width}"/>'
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    attributes: dict[str, Any] = {"x": f"{x:.1f}", "y": y, "text-anchor": anchor}
    if kind:
        attributes["class"] = kind
    shown = " ".join(f'{name}="{value}"' for name, value in attributes.items())
    return f"<text {shown}>{escape(text)}</text>"
