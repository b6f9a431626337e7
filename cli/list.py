"""`alora-gguf list`: what is in the store."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from .listing import table
from .text import printable_lines

if TYPE_CHECKING:
    from alora_gguf.store.entry import StoreEntry
    from alora_gguf.store.store import Store


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known as JSON.")
def command(*, as_json: bool) -> None:
    """Show the adapters and bases in the store.

    They are named by `alora-gguf pull`, in ALORA_GGUF_HOME or the system's directory for a user's
    data. BASE is the model that an adapter was converted for; FROM is the repository and commit.
    """
    from alora_gguf.store.store import Store

    store = Store()
    contents = store.contents()
    paths: dict[str, str | None] = {}
    problems = [str(problem) for problem in contents.problems]
    for entry in contents.entries:
        paths[entry.name], problem = _path(store, entry)
        problems += [problem] if problem else []
    if as_json:
        entries = [{**entry.to_dict(), "path": paths[entry.name]} for entry in contents.entries]
        report = {"home": str(store.home), "entries": entries, "problems": problems}
        click.echo(json.dumps(report, indent=2))
        return
    if contents.entries:
        click.echo("\n".join(table(contents.entries)))
    elif not problems:
        click.echo(f"The store {store.home} is empty; `alora-gguf pull` adds to it.", err=True)
    for problem in problems:
        click.echo(f"warning: {printable_lines(problem)}", err=True)


def _path(store: Store, entry: StoreEntry) -> tuple[str | None, str | None]:
    """The file to open, or what is wrong with it."""
    from alora_gguf.errors import FileFormatError

    try:
        return str(store.path(entry)), None
    except FileFormatError as error:
        return None, str(error)
