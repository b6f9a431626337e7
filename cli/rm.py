"""`alora-gguf rm`: takes an adapter or a base out of the store."""

from __future__ import annotations

import json

import click

import alora_gguf as ag
from alora_gguf.smollm2 import PACKAGE

from . import options
from .bases import packaged
from .render import size_text


@click.command("rm")
@click.argument("name", shell_complete=options.store_names())
@click.option("--json", "as_json", is_flag=True, help="Print what was removed as JSON.")
def command(*, name: str, as_json: bool) -> None:
    """Remove NAME and its files from the store.

    What huggingface_hub has in its cache stays there; `hf cache` manages that.
    """
    try:
        entry = ag.Store().remove(name)
    except ag.InputError:
        if name.lower() in packaged():
            raise ag.InputError(
                f"{name} is not in the store but in the package {PACKAGE}: pip uninstall {PACKAGE}"
            ) from None
        raise
    if as_json:
        click.echo(json.dumps(None if entry is None else entry.to_dict(), indent=2))
    else:
        size = "a damaged entry" if entry is None else size_text(entry.nbytes)
        click.echo(f"Removed {name if entry is None else entry.name} ({size}).")
