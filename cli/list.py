"""`alora-gguf list`: what is in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import click

import alora_gguf as ag
from alora_gguf.smollm2 import NAME, PACKAGE

from .adapters import KINDS
from .bases import own_adapters, packaged
from .render import aligned, printable, printable_lines, size_text

_HEAD: Final = ("NAME", "KIND", "SIZE", "BASE", "FROM")


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known as JSON.")
def command(*, as_json: bool) -> None:
    """Show the adapters and bases in the store.

    They are named by `alora-gguf pull`, in ALORA_GGUF_HOME or the system's directory for a user's
    data. BASE is the model that an adapter was converted for; FROM is the repository and commit, or
    the package of what is installed: smollm2, and its own adapters, which are known by name where
    it is the base.
    """
    store = ag.Store()
    contents = store.contents()
    paths: dict[str, str | None] = {}
    problems = [str(problem) for problem in contents.problems]
    for entry in contents.entries:
        paths[entry.name], problem = _path(store, entry)
        problems += [problem] if problem else []
    names = {entry.name.lower() for entry in contents.entries}
    there = {name: path for name, path in packaged().items() if name not in names}
    own = own_adapters()
    if as_json:
        entries = [{**entry.to_dict(), "path": paths[entry.name]} for entry in contents.entries]
        report: dict[str, object] = {
            "home": str(store.home),
            "entries": entries,
            "problems": problems,
        }
        report["packages"] = {name: str(path) for name, path in there.items()}
        report["adapters"] = {NAME: {n: str(path) for n, path in own.items()}} if own else {}
        click.echo(json.dumps(report, indent=2))
        return
    if contents.entries or there:
        click.echo("\n".join(table(contents.entries, there, own)))
    elif not problems:
        click.echo(f"The store {store.home} is empty; `alora-gguf pull` adds to it.", err=True)
    for problem in problems:
        click.echo(f"warning: {printable_lines(problem)}", err=True)


def _path(store: ag.Store, entry: ag.StoreEntry) -> tuple[str | None, str | None]:
    """The file to open, or what is wrong with it."""
    try:
        return str(store.path(entry)), None
    except ag.FileFormatError as error:
        return None, str(error)


def kind_of(entry: ag.StoreEntry) -> str:
    """What an entry is: aLoRA, LoRA, vector or base."""
    return KINDS.get(entry.about.technology or "", entry.about.kind)


def table(
    entries: Sequence[ag.StoreEntry], packages: Mapping[str, Path], own: Mapping[str, Path]
) -> list[str]:
    """A line for each entry, base of a package and adapter of smollm2's `own`, below a head."""
    rows = [_HEAD]
    for entry in entries:
        about = entry.about
        commit = f"@{about.commit[:12]}" if about.commit else ""
        source = f"{about.repository or '-'}{commit}"
        cells = (entry.name, kind_of(entry), size_text(entry.nbytes), about.base or "-", source)
        rows.append(tuple(map(printable, cells)))  # type: ignore[arg-type]
    for name, path in packages.items():
        rows.append((name, "base", size_text(path.stat().st_size), "-", PACKAGE))
    for name, path in own.items():
        rows.append((name, KINDS["alora"], size_text(path.stat().st_size), NAME, "alora-gguf"))
    return aligned(rows, "<<><<")
