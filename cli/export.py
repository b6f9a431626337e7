"""`alora-gguf export`: an adapter GGUF back to a PEFT directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from . import options
from .bases import NamedBase, checked_file, named_file
from .progress import hush_hub
from .render import plural, printable, size_text


@click.command("export")
@click.argument("adapter", shell_complete=options.store_names("adapter"))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--base",
    required=True,
    shell_complete=options.store_names("base"),
    help="The model that the adapter is for, as for convert: it tells which modules of "
    "transformers the tensors are.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(*, adapter: str, directory: Path, base: str, as_json: bool) -> None:
    """Write ADAPTER, a GGUF or a name in the store, as a PEFT directory.

    PEFT loads it, and convert makes the same tensors of it again. What PEFT's format cannot hold is
    refused by name. DIRECTORY must not exist, or be empty; it appears whole or not at all.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from alora_gguf.convert import export_adapter

    own, model = opened_base(base)
    report = export_adapter(checked_file(adapter, "adapter", own), model, directory)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
        return
    kind = "aLoRA" if report.kind == "alora" else "LoRA"
    click.echo(f"{report.out}: {kind} for {report.architecture}, {size_text(report.nbytes)}")
    ranks = ", ".join(map(str, report.ranks))
    click.echo(f"  {plural(report.modules, 'module')} of rank {ranks}")
    for warning in report.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)


def opened_base(base: str) -> tuple[NamedBase | None, str | Path]:
    """The base that has adapters of its own, if it is one, and what export_adapter() takes."""
    from alora_gguf.convert import is_reference

    if is_reference(base):
        hush_hub()
        return None, base
    # a directory of transformers' has no adapters of its own
    own = None if Path(base).is_dir() else NamedBase.of(base)
    return own, named_file(base, "base")
