"""Adapters as people name them: what kinds there are, and the file that a GGUF's path, a name in
the store, or a PEFT directory, which is converted for the base at hand, stands for.
"""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import Final

import click
from alora_gguf.cli.progress import Progress
from alora_gguf.cli.render import printable

import alora_gguf as ag

KINDS: Final = {
    "alora": "aLoRA",
    "lora": "LoRA",
    "vector": "vector",
    "classifier": "classifier",
    "combination": "combination",
}


def adapter_file(text: str, base: Path) -> Path:
    """The GGUF of an adapter for `base`. One that was converted goes when the command ends. Raises
    StoreError, and what convert_adapter() does.
    """
    path = ag.Store().resolve(text, "adapter")
    return _converted(path, base) if path.is_dir() else path


def _converted(directory: Path, base: Path) -> Path:
    folder = click.get_current_context().with_resource(
        tempfile.TemporaryDirectory(prefix="alora-gguf-")
    )
    out = Path(folder) / f"{directory.resolve().name or 'adapter'}.gguf"
    with Progress("Converting") as progress:
        report = ag.convert_adapter(directory, base, out, progress=progress)
    command = shlex.join(["alora-gguf", "convert", str(directory), "--base", str(base)])
    click.echo(
        printable(f"{directory}: converted for this base and this run; to keep it: {command}"),
        err=True,
    )
    for warning in report.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
    return out
