"""What commands show, as rich renders it: tables of adapters, settings, turns and commands, and
a map of the KV cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from alora_gguf.cli.render import duration, printable, shortened, visible
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alora_gguf import CacheReport, CacheSpan, Chat, Document, GenerateOptions, Model

from .arguments import SETTINGS, shown_setting, wanted_arguments
from .talk import Turn, intrinsics_of

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


_NARROW: Final = 60  # columns that a table of numbers needs
_BESIDE: Final = len("  aLoRA  rank  contract  ")  # names and where they begin
_LEAST: Final = 16


def text(shown: str) -> Text:
    """As it is, whatever rich's markup would make of it."""
    return Text(visible(shown), overflow="fold")


def adapters(model: Model, width: int) -> RenderableType:
    """The loaded ones, a line for each where there is room."""
    if not model.adapters:
        return text("no adapters; /load NAME=PATH loads one")
    table = _table("adapter", "kind", "rank", "contract", "begins at")
    asked = intrinsics_of(model)
    room = max(_LEAST, width - max(map(cell_len, model.adapters)) - _BESIDE)
    for name, file in model.adapters.items():
        begins = file.invocation_text or (
            model.detokenize(file.invocation, special=True) if file.invocation else "the start"
        )
        kind = "aLoRA" if file.invocation else "LoRA"
        contract = "yes" if name in asked else "no"
        _add_row(table, name, kind, str(file.rank), contract, shortened(begins, room))
    return table


def documents(given: Sequence[Document]) -> RenderableType:
    """With their numbers; of one that has a title, that."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for i, each in enumerate(given, 1):
        table.add_row(f"  {i}", Text(visible(each.title or each.text), overflow="fold"))
    return table


def settings(options: GenerateOptions) -> RenderableType:
    """How replies are made."""
    table = _table("setting", "value")
    for name in SETTINGS:
        _add_row(table, name, shown_setting(options, name))
    return table


def costs(turns: Sequence[Turn], width: int) -> RenderableType:
    """What turns cost; a line for each where a table has no room."""
    heads = ("turn", "reused", "read", "first token", "written", "tokens/s", "verdicts")
    rows = [_cost(i, turn) for i, turn in enumerate(turns, 1)]
    if not rows:
        return text("no turn yet")
    if width < _NARROW:
        pairs = (zip(heads, row, strict=True) for row in rows)
        return Group(*(text(", ".join(f"{head} {cell}" for head, cell in row)) for row in pairs))
    table = _table(*heads)
    for column in table.columns:
        column.justify = "right"
    for row in rows:
        _add_row(table, *row)
    return table


def _cost(i: int, turn: Turn) -> tuple[str, ...]:
    timings = turn.timings
    first, rate = timings.first_token, timings.tokens_per_second
    return (
        str(i),
        str(timings.reused),
        str(timings.evaluated),
        "-" if first is None else duration(first),
        str(timings.generated),
        "-" if rate is None else f"{rate:.0f}",
        str(len(turn.verdicts)),
    )


def commands(known: Mapping[str, str], model: Model) -> RenderableType:
    """What can be typed behind a slash: `known` usages with their help, then the adapters."""
    table = _table("", "")
    table.show_header = False
    for usage, what in known.items():
        _add_row(table, usage, what)
    asked = intrinsics_of(model)
    for name in model.adapters:
        wanted = wanted_arguments(model, name) if name in asked else []
        usage = " ".join([f"/{name}", *(f"{each}=…" for each in wanted)])
        what = "ask about the conversation" if name in asked else "what this adapter would reply"
        _add_row(table, usage, what)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add_row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))
