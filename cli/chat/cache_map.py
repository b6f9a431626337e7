"""A map of the KV cache: whose cells they are, and what the last reading reused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from alora_gguf.cli.render import printable
from rich.text import Text

from alora_gguf import CacheReport, CacheSpan, Chat

_REUSED, _READ, _OTHER, _PROMISED, _FREE = "█", "▓", "▒", "▫", "·"
_COLOURS: Final = ("magenta", "yellow", "green", "blue", "red")
_BASE: Final = "cyan"
_NARROWEST, _WIDEST = 8, 96


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Cells [begin, end) of one kind; of several behind one character the highest is shown."""

    begin: int
    end: int
    sign: str
    style: str
    rank: int = 0


def cache_map(chat: Chat, report: CacheReport, reused: int, width: int) -> Text:
    """The cache as a row of at most `width` columns, and a line per holder below it. The first
    `reused` cells of the chat were there before it was last read.
    """
    spans = _own_spans(chat)
    own = spans[-1].end if spans else 0
    others = max(0, report.used - own)
    stretches = _stretches(spans, min(reused, own), others, report)
    room = max(_NARROWEST, min(width - 2, _WIDEST))
    per = max(1, -(-report.n_cells // room))
    text = Text("  ")
    for begin in range(0, report.n_cells, per):
        here = (each for each in stretches if each.begin < begin + per and each.end > begin)
        shown = max(here, key=lambda each: each.rank)
        text.append(shown.sign, style=shown.style)
    unit = f"{per} cells" if per > 1 else "1 cell"
    text.append(f"\n  one character is {unit} of {report.n_cells}\n\n", style="dim")
    _legend(text, spans, min(reused, own), others, report)
    return text


def _stretches(
    spans: tuple[CacheSpan, ...], reused: int, others: int, report: CacheReport
) -> list[_Stretch]:
    """All cells in a row: the chat's own, then others'."""
    found, colours = [], _colours(spans)
    for span in spans:
        rank = 4 if span.adapter is not None else 3
        for begin, end, sign in (
            (span.begin, min(span.end, reused), _REUSED),
            (max(span.begin, reused), span.end, _READ),
        ):
            if begin < end:
                found.append(_Stretch(begin, end, sign, colours[span.adapter], rank))
    at = spans[-1].end if spans else 0
    for n, sign, rank in ((others, _OTHER, 2), (report.promised, _PROMISED, 1)):
        found.append(_Stretch(at, at + n, sign, "dim", rank))
        at += n
    return [*found, _Stretch(at, report.n_cells, _FREE, "dim")]


def _legend(
    text: Text, spans: tuple[CacheSpan, ...], reused: int, others: int, report: CacheReport
) -> None:
    colours = _colours(spans)
    text.append("  this conversation\n", style="bold")
    if not spans:
        text.append("    nothing is read yet\n")
    for span in spans:
        who = "base" if span.adapter is None else printable(span.adapter)
        at = f" at {span.scale:g}" if span.adapter is not None and span.scale != 1 else ""
        text.append(f"    {span.begin:>6} to {span.end:<6} ")
        text.append(f"{who}{at}\n", style=colours[span.adapter])
    if spans:
        text.append(
            f"    {_REUSED} {reused} reused by the last reading, "
            f"{_READ} {spans[-1].end - reused} read or written since\n",
            style="dim",
        )
    if others:
        text.append("  others\n", style="bold")
        text.append(f"    {_OTHER} {others} of what was taken back or is over; ")
        text.append("they go when room is needed\n")
    text.append(f"  {report.free} cells free")


def _own_spans(chat: Chat) -> tuple[CacheSpan, ...]:
    n, found = chat.session.cached, chat.session.provenance
    names = {file.identity: name for name, file in chat.model.adapters.items()}
    ends = [*(begin for begin, _ in found[1:]), n]
    return tuple(
        CacheSpan(
            begin,
            end,
            None if by.identity is None else names.get(by.identity, by.identity[:12]),
            by.scale,
        )
        for (begin, by), end in zip(found, ends, strict=True)
        if begin < end
    )


def _colours(spans: tuple[CacheSpan, ...]) -> dict[str | None, str]:
    adapters = dict.fromkeys(span.adapter for span in spans if span.adapter is not None)
    colours: dict[str | None, str] = {None: _BASE}
    colours.update({name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(adapters)})
    return colours
