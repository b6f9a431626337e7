"""What commands show, as rich renders it: tables of adapters, settings, turns and commands, and
a map of the KV cache. Rich is loaded when it is needed: a reply through a pipe does without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Literal

from alora_gguf.cli.adapters import KINDS
from alora_gguf.cli.calls import usage
from alora_gguf.cli.render import duration, plural, printable, shortened, visible

import alora_gguf as ag

from .arguments import SETTINGS, shown_setting
from .asking import Turn
from .steering import is_vector
from .talk import intrinsics_of
from .view import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType

_REUSED, _READ, _OTHER, _PROMISED, _FREE = "█", "▓", "▒", "▫", "·"
_COLOURS: Final = ("magenta", "yellow", "green", "blue", "red")
_BASE: Final = "cyan"
_NARROWEST, _WIDEST = 8, 96


def cache_map(chat: ag.Chat, report: ag.CacheReport, reused: int, width: int) -> Shown:
    """The cache as a row of at most `width` columns, and a line per holder below it. The first
    `reused` cells of the chat were there before it was last read.
    """
    from rich.text import Text

    spans = chat.session.spans
    own = spans[-1].end if spans else 0
    reused, others = min(reused, own), max(0, report.used - own)
    colours = _colours(spans)
    cells = _cells(spans, colours, reused, others, report)
    room = max(_NARROWEST, min(width - 2, _WIDEST))
    per = max(1, -(-report.n_cells // room))
    text = Text("  ")
    for begin in range(0, report.n_cells, per):
        _, sign, style = max(cells[begin : begin + per], key=itemgetter(0))
        text.append(sign, style=style)
    unit = f"{per} cells" if per > 1 else "1 cell"
    text.append(f"\n  one character is {unit} of {report.n_cells}\n\n", style="dim")
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
        text.append(f"    {_OTHER} {others} left over from what ended; ")
        text.append("freed when room is needed\n")
    text.append(f"  {report.free} cells free")
    data = {"n_cells": report.n_cells, "free": report.free, "reused": reused, "others": others}
    return Shown(text, {**data, "spans": [asdict(span) for span in spans]})


def _cells(
    spans: tuple[ag.CacheSpan, ...],
    colours: Mapping[str | None, str],
    reused: int,
    others: int,
    report: ag.CacheReport,
) -> list[tuple[int, str, str]]:
    """Each cell's sign and style, the chat's own first, then others'; of several behind one
    character that with the highest rank is shown, which comes first.
    """
    cells = [
        (3 if span.adapter is None else 4, _REUSED if i < reused else _READ, colours[span.adapter])
        for span in spans
        for i in range(span.begin, span.end)
    ]
    cells += [(2, _OTHER, "dim")] * others + [(1, _PROMISED, "dim")] * report.promised
    return cells + [(0, _FREE, "dim")] * (report.n_cells - len(cells))


def _colours(spans: tuple[ag.CacheSpan, ...]) -> dict[str | None, str]:
    adapters = dict.fromkeys(span.adapter for span in spans if span.adapter is not None)
    colours: dict[str | None, str] = {None: _BASE}
    colours.update({name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(adapters)})
    return colours


_NARROW: Final = 60  # columns that a table of numbers needs
_BESIDE: Final = len("  vector  rank  contract  ")  # names and where they begin
_LEAST: Final = 16
_HEADS: Final = ("adapter", "kind", "rank", "contract", "begins at")


def adapters(model: ag.Model, width: int) -> Shown:
    """The loaded ones, a line for each where there is room."""
    if not model.adapters:
        return Shown("no adapters; /load NAME=PATH loads one", [])
    from rich.cells import cell_len

    asked, rows, data = intrinsics_of(model), [], []
    room = max(_LEAST, width - max(map(cell_len, model.adapters)) - _BESIDE)
    for name, file in model.adapters.items():
        begins = file.invocation_text or (
            model.detokenize(file.invocation, special=True)
            if file.invocation
            else f"the {file.begins}"
        )
        kind = kind_of(file)
        contract = "yes" if name in asked else "no" if file.io_yaml is None else "broken"
        rows.append((name, kind, str(file.rank), contract, shortened(printable(begins), room)))
        data.append(dict(zip(_HEADS, (name, kind, file.rank, contract, begins), strict=True)))
    return Shown(_table(_HEADS, rows), data)


def kind_of(file: ag.Loaded) -> str:
    """What an adapter is, in a word."""
    return KINDS[file.kind]


def documents(given: Sequence[ag.Document]) -> Shown:
    """With their numbers; of one that has a title, that."""
    if not given:
        return Shown("no documents", [])
    n = len(str(len(given)))
    rows = [(f"  {i:>{n}}", each.title or each.text) for i, each in enumerate(given, 1)]
    return Shown(_table(("", ""), rows), [asdict(each) for each in given])


def room(chat: ag.Chat) -> Shown:
    """What the cache has room for, and what of it the conversation takes."""
    model, used = chat.model, chat.session.cached
    trained = model.n_ctx_train
    text = f"{used} of {model.n_ctx} tokens" + (f"; trained for {trained}" if trained else "")
    return Shown(text, {"used": used, "n_ctx": model.n_ctx, "n_ctx_train": trained})


def said(chat: ag.Chat) -> str:
    """How many messages there are, without the system message, which nobody said."""
    return plural(len(chat.messages) - (chat.system is not None), "message")


def place_note(chat: ag.Chat) -> str | None:
    """Where the documents stand, if the chat template has no place for them."""
    if not chat.documents or chat.documents_place == "template":
        return None
    where = "the system message" if chat.documents_place == "system" else "your first message"
    return f"the model's chat template takes no documents: they stand in {where}"


def settings(options: ag.GenerateOptions) -> Shown:
    """How replies are made."""
    rows = [(name, shown_setting(options, name)) for name in SETTINGS]
    return Shown(_table(("setting", "value"), rows), dict(rows))


def costs(turns: Sequence[Turn], width: int) -> Shown:
    """What turns cost; a line for each where a table has no room."""
    heads = ("turn", "reused", "read", "first token", "written", "tokens/s", "watching")
    rows, data = [], [{**asdict(turn.timings), "watching": len(turn.verdicts)} for turn in turns]
    for i, turn in enumerate(turns, 1):
        timings = turn.timings
        first, rate = timings.first_token, timings.tokens_per_second
        rows.append((
            *map(str, (i, timings.reused, timings.evaluated)),
            "-" if first is None else duration(first),
            str(timings.generated),
            "-" if rate is None else f"{rate:.0f}",
            str(len(turn.verdicts)),
        ))  # fmt: skip
    if not rows:
        return Shown("no turn yet", data)
    if width < _NARROW:
        pairs = (zip(heads, row, strict=True) for row in rows)
        lines = (", ".join(f"{head} {cell}" for head, cell in row) for row in pairs)
        return Shown("\n".join(lines), data)
    return Shown(_table(heads, rows, justify="right"), data)


def commands(known: Mapping[str, str], model: ag.Model) -> Shown:
    """What can be typed behind a slash: `known` usages with their help, then the adapters."""
    rows, asked = [*known.items()], intrinsics_of(model)
    for name in model.adapters:
        what = "ask about the conversation" if name in asked else "what this adapter would reply"
        if is_vector(model.adapters[name]):
            what = "what would be replied with this vector; /steer has it stay"
        rows.append((f"/{usage(name, asked[name]) if name in asked else name}", what))
    return Shown(_table(("", ""), rows), dict(rows))


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], justify: Literal["left", "right"] = "left"
) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.show_header = any(heads)
    for head in heads:
        table.add_column(head, overflow="fold", justify=justify)
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return table
