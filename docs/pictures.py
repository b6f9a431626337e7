"""The pictures of explanation.md and steering.md, as SVG.

They bring their own background, so that they can be read on a light page and on a dark one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Final

_STYLE: Final = """\
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f; }
.small { font-size: 12px; fill: #57606a; }
.on { fill: #ffffff; font-size: 12px; }
.page { fill: #ffffff; stroke: #d0d7de; }
.line { stroke: #57606a; fill: none; }
.base { fill: #0969da; }
.a { fill: #bc4c00; }
.b { fill: #8250df; }
.c { fill: #1a7f37; }
.pale { fill: #8fb8e8; }
.none { fill: #f0f2f5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .small { fill: #9198a1; }
  .on { fill: #ffffff; }
  .page { fill: #0d1117; stroke: #3d444d; }
  .line { stroke: #9198a1; }
  .base { fill: #1f6feb; }
  .a { fill: #bd561d; }
  .b { fill: #8957e5; }
  .c { fill: #238636; }
  .pale { fill: #33557d; }
  .none { fill: #1b2129; }
}
"""


def attention() -> str:
    """Who looks at whom: rows are tokens, columns the tokens they look at."""
    tokens = ["We", "are", "open", "at", "six", ".", "<", "sure", ">", "yes"]
    first = 6  # of the invocation
    size, left, top = 32.0, 214.0, 92.0
    body = []
    for row, token in enumerate(tokens):
        y = top + row * size
        body.append(_text(left - 10, y + 21, token, anchor="end"))
        body.append(_text(left + row * size + size / 2, top - 10, token, "small", "middle"))
        for column in range(len(tokens)):
            kind = "none" if column > row else "base" if row < first else "pale"
            kind = "a" if first <= column <= row else kind
            body.append(_rect(left + column * size + 1, y + 1, size - 2, size - 2, kind))
    middle, bottom = top + first * size, top + len(tokens) * size
    right = left + len(tokens) * size + 16
    body += _brace(left - 76, top, middle - 3)
    body += _brace(left - 76, middle + 3, bottom)
    body += _lines(left - 88, (top + middle) / 2, ["the conversation,", "read by the base"], "end")
    body += _lines(left - 88, (middle + bottom) / 2, ["the invocation", "and the answer"], "end")
    notes = [
        (
            top + 2.2 * size,
            "base",
            ["looks at the base's cells only:", "no later token can change it"],
        ),
        (middle + 0.9 * size, "pale", ["the base's cells, as they are", "in the cache"]),
        (middle + 2.6 * size, "a", ["computed with the adapter:", "all there is to read"]),
        (top + 0.5 * size, "none", ["not looked at: it comes later"]),
    ]
    for y, kind, words in notes:
        body.append(_rect(right, y - 8, 16, 16, kind))
        body += _lines(right + 26, y, words, "start")
    body.insert(0, _text(24, 36, "Each row is a token, each column one that it may look at"))
    title = "Attention is causal: rows of the conversation look at nothing behind the invocation"
    return _svg(800, bottom + 24, title, body)


def forks() -> str:
    """Three adapters asked about one conversation, as aLoRAs and as plain LoRAs."""
    left, width, n = 150, 460, 3
    names = ("answerability", "uncertainty", "jailbreak")
    body = [_text(24, 36, "Activated LoRAs: the conversation is read once, by the base")]
    y = 56
    body.append(_rect(left, y, width, 26, "base"))
    body.append(
        _text(left + width / 2, y + 18, "conversation: read by the base, once", "on", "middle")
    )
    body.append(_rect(left + width + 4, y, 100, 26, "base"))
    body.append(_text(left + width + 54, y + 18, "goes on", "on", "middle"))
    body.append(_text(left - 10, y + 18, "the base", anchor="end"))
    for i, (name, kind) in enumerate(zip(names, "abc", strict=True), 1):
        row = y + i * 34
        body.append(_path(f"M {left + width - 12} {y + 26} V {row + 13} H {left + width + 4}"))
        body.append(_rect(left + width + 4, row, 100, 26, kind))
        body.append(_text(left + width + 54, row + 18, "asks", "on", "middle"))
        body.append(_text(left + width - 22, row + 18, f"a fork for {name}", anchor="end"))
    y += (n + 1) * 34 + 40
    body.append(
        _text(24, y - 18, "Plain LoRAs: each changes every token, so each reads it all again")
    )
    for i, (name, kind) in enumerate(zip(names, "abc", strict=True)):
        row = y + i * 34
        body.append(_text(left - 10, row + 18, name, anchor="end"))
        body.append(_rect(left, row, width, 26, kind))
        body.append(_text(left + width / 2, row + 18, "conversation: read again", "on", "middle"))
        body.append(_rect(left + width + 4, row, 100, 26, kind))
        body.append(_text(left + width + 54, row + 18, "asks", "on", "middle"))
    row = y + n * 34
    body.append(_text(left - 10, row + 18, "the base", anchor="end"))
    body.append(_rect(left, row, width, 26, "base"))
    body.append(
        _text(left + width / 2, row + 18, "conversation: read again, or kept apart", "on", "middle")
    )
    body.append(_rect(left + width + 4, row, 100, 26, "base"))
    body.append(_text(left + width + 54, row + 18, "goes on", "on", "middle"))
    return _svg(740, row + 46, "Forks that share the conversation's cells, and none that do", body)


def steering() -> str:
    """What an adapter changes of three blocks, what a vector does, and from which token on."""
    block, gap, top, bottom = 58.0, 46.0, 66.0, 380.0
    panels = (
        (190.0, "An adapter changes weights: the pipes", "a"),
        (590.0, "A vector changes the stream: the water", "b"),
    )
    body = []
    for middle, head, kind in panels:
        body.append(_text(middle, 36, head, anchor="middle"))
        body.append(_rect(middle - 7, top - 14, 14, bottom - top + 14, "pale"))
        for i in range(3):
            y = top + i * (block + gap)
            weights = kind == "a"
            body.append(_rect(middle - 100, y, 200, block, "base"))
            words = "block: W·x" if not weights else "block: W·x +"
            x, anchor = (middle, "middle") if not weights else (middle - 4, "end")
            body.append(_text(x, y + block / 2 + 5, words, "on", anchor))
            if weights:
                body.append(_rect(middle + 4, y + 14, 84, block - 28, kind))
                body.append(_text(middle + 46, y + block / 2 + 5, "B·(A·x)", "on", "middle"))
            elif i < 2:
                body.append(_rect(middle - 34, y + block + 9, 68, gap - 18, kind))
                body.append(_text(middle, y + block + gap / 2 + 5, "+ s·v", "on", "middle"))
        body.append(_text(middle + 14, bottom - 2, "a token's h, from below", "small"))
    y, left, size = bottom + 62, 60.0, 36.0
    body.append(_text(24, y - 22, "Both begin at a token; what is before it is the base's"))
    tokens = 18
    for row, (first, kind, name) in enumerate(
        ((9, "a", "an aLoRA, from its invocation on"), (12, "b", "a vector, from the reply on"))
    ):
        for i in range(tokens):
            kind_here = "base" if i < first else kind
            body.append(_rect(left + i * size / 1.5, y + row * 36, size / 1.5 - 2, 24, kind_here))
        body.append(_text(left + tokens * size / 1.5 + 14, y + row * 36 + 17, name))
    return _svg(780, y + 78, "Weights are the pipes, a vector goes into the water", body)


PICTURES: Final[dict[str, Callable[[], str]]] = {
    "attention.svg": attention,
    "forks.svg": forks,
    "steering.svg": steering,
}


def _svg(width: int, height: float, title: str, body: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" '
        f'width="{width}" height="{height:g}" role="img">'
    )
    page = (
        f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1:g}" rx="8"/>'
    )
    lines = [head, f"<title>{escape(title)}</title>", f"<style>\n{_STYLE}</style>", page, *body]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _rect(x: float, y: float, width: float, height: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3"/>'
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _lines(x: float, y: float, words: Sequence[str], anchor: str) -> Iterator[str]:
    """Lines of small text whose middle is at y."""
    first = y + 4 - 8 * (len(words) - 1)
    for i, line in enumerate(words):
        yield _text(x, first + 16 * i, line, "small", anchor)


def _brace(x: float, top: float, bottom: float) -> Iterator[str]:
    yield _path(f"M {x + 6:g} {top:g} H {x:g} V {bottom:g} H {x + 6:g}")


def _path(d: str) -> str:
    return f'<path class="line" d="{d}"/>'
