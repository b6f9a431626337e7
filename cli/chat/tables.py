"""What commands show, as rich renders it: tables of adapters, settings, turns and commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from alora_gguf.cli.render import duration, printable, shortened, visible
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alora_gguf import Document, GenerateOptions, Model

from .arguments import SETTINGS, shown_setting, wanted_arguments
from .talk import Turn, intrinsics_of

if TYPE_CHECKING:
    from .commands import Command

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


def commands(known: Iterable[Command], model: Model) -> RenderableType:
    """What can be typed behind a slash."""
    table = _table("", "")
    table.show_header = False
    for command in known:
        _add_row(table, command.usage, command.help)
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
