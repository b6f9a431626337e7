"""Options that several commands have, so that they are called and do the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def store_names(kind: Literal["adapter", "base"] | None = None) -> Completer:
    """Completes names in the store, of one kind or of all; a shell completes files where none
    fits. A store that cannot be read has none.
    """

    def complete(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
        from alora_gguf import Store
        from alora_gguf.errors import AloraError

        files = [CompletionItem(begun, type="file")] if kind is not None else []
        try:
            entries = Store().contents().entries
        except AloraError:
            return files
        return files + [
            CompletionItem(entry.name, help=entry.about.repository)
            for entry in entries
            if kind in (None, entry.about.kind) and entry.name.startswith(begun)
        ]

    return complete


def _on_gpu(_ctx: click.Context, _param: click.Parameter, layers: int) -> int:
    """As many as there can be; says so if there can be none, for nobody should believe otherwise of
    what is measured.
    """
    if not layers:
        return 0
    from alora_gguf import Model

    if Model.can_offload():
        return layers
    click.echo(
        "Note: this build computes on the CPU only, so --gpu-layers changes nothing; README.md "
        "says how to build for a GPU",
        err=True,
    )
    return 0


def named_path(text: str) -> tuple[str, str] | None:
    """The name and the path that NAME=PATH says, or a path alone, or a name in the store; None if
    there is nothing before or behind the sign.
    """
    from alora_gguf import Store

    name, equals, path = text.partition("=")
    if equals and Store.is_path(name):  # a path with a sign in it
        name, equals = text, ""
    if not name or (equals and not path):
        return None
    return (name, path) if equals else (Path(text).name.removesuffix(".gguf"), text)


threads: Final = click.option(
    "--threads", type=click.IntRange(1, 512), help="Threads to compute with."
)
gpu_layers: Final = click.option(
    "--gpu-layers", type=int, default=0, callback=_on_gpu, help="Layers on the GPU, -1 for all."
)
