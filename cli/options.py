"""Options that several commands have, so that they are called and do the same everywhere."""

from __future__ import annotations

from typing import Final

import click


def _on_gpu(_ctx: click.Context, _param: click.Parameter, layers: int) -> int:
    """As many as there can be; says so if there can be none, for nobody should believe otherwise of
    what is measured.
    """
    if not layers:
        return 0
    from alora_gguf._native import load

    if load().llama.llama_supports_gpu_offload():
        return layers
    click.echo(
        "Note: this build computes on the CPU only, so --gpu-layers changes nothing; README.md "
        "says how to build for a GPU",
        err=True,
    )
    return 0


threads: Final = click.option(
    "--threads", type=click.IntRange(1, 512), help="Threads to compute with."
)
gpu_layers: Final = click.option(
    "--gpu-layers", type=int, default=0, callback=_on_gpu, help="Layers on the GPU, -1 for all."
)
