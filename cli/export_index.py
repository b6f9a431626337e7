"""`alora-gguf export-index`: adapter GGUFs as a library of PEFT directories, with an index."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from . import options
from .bases import checked_file
from .export import opened_base
from .render import plural, printable, size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alora_gguf.convert import ExportIndexReport

# what vLLM's --max-lora-rank may be
_VLLM_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@click.command("export-index")
@click.argument("adapters", nargs=-1, required=True, shell_complete=options.store_names("adapter"))
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--base",
    required=True,
    shell_complete=options.store_names("base"),
    help="The model that the adapters are for, as for convert.",
)
@click.option(
    "--model",
    help="What the base is called in the library's paths, such as granite-4.1-3b. Default: its own "
    "name.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    *, adapters: tuple[str, ...], directory: Path, base: str, model: str | None, as_json: bool
) -> None:
    """Write ADAPTERS, GGUFs or names in the store, as a library in DIRECTORY.

    Each becomes a PEFT directory, as export writes it, in NAME/MODEL/alora or NAME/MODEL/lora,
    where Granite Switch's composer looks for it, and convert and pull; vLLM takes the plain LoRAs.
    mellea finds their contracts by adapter_index.json. DIRECTORY must not exist, or be empty; it
    appears whole or not at all.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from alora_gguf.convert import export_index

    own, opened = opened_base(base)
    files = [checked_file(each, "adapter", own) for each in adapters]
    report = export_index(files, opened, directory, model=model)
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
        return
    nbytes = sum(each.nbytes for each in report.adapters)
    count = plural(len(report.adapters), "adapter")
    click.echo(f"{report.out}: {count} for {printable(report.model)}, {size_text(nbytes)}")
    for each in report.adapters:
        ranks = ", ".join(map(str, each.ranks))
        path = each.out.relative_to(report.out).as_posix()
        click.echo(f"  {path}: {plural(each.modules, 'module')} of rank {ranks}")
    for text in _ways_on(report):
        click.echo(printable(text))
    for warning in (
        *report.warnings,
        *(text for each in report.adapters for text in each.warnings),
    ):
        click.echo(f"warning: {printable(warning)}", err=True)


def _ways_on(report: ExportIndexReport) -> Iterator[str]:
    """The commands of the engines that can use what was written."""
    loras = [each for each in report.adapters if each.kind == "lora"]
    if loras:
        modules = [f"{each.name}={each.out}" for each in loras]
        rank = max(rank for each in loras for rank in each.ranks)
        rank = next((room for room in _VLLM_RANKS if room >= rank), rank)
        wanted = ("--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", *modules)
        yield f"vLLM: vllm serve {report.model} {shlex.join(wanted)}"
    if any(each.architecture.startswith("granite") for each in report.adapters):
        wanted = ("--target-model", report.model, "--adapters", str(report.out))
        yield (
            "Granite Switch: python -m granite_switch.composer.compose_granite_switch "
            f"--base-model {report.model} {shlex.join(wanted)}"
        )
