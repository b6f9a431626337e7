"""What the commands of `alora-gguf steer` have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import click
from alora_gguf.cli import options
from alora_gguf.cli.render import colour, printable, shortened

RUN: Final = ("n_threads", "n_gpu_layers")
_LAYERS: Final = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")  # more than any model has
_Command = Callable[..., Any]


def _layers(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[int, ...] | None:
    """Of numbers and ranges with commas between; None for auto."""
    if text == "auto":
        return None
    found = set[int]()
    for each in text.split(","):
        wanted = _LAYERS.fullmatch(each.strip())
        some = range(int(wanted[1]), int(wanted[2] or wanted[1]) + 1) if wanted else ()
        if not some:
            raise click.BadParameter(
                f"'{shortened(printable(text), 40)}' is neither auto nor layers such as 8-14 or "
                "8,10,12"
            )
        found.update(some)
    return tuple(sorted(found))


base_argument: Final = click.argument("base", shell_complete=options.store_names("base"))
layers_option: Final = click.option(
    "--layers",
    metavar="auto|L,L-L",
    default="auto",
    show_default=True,
    callback=_layers,
    help="Where it acts: zero-based layers and ranges, such as 8-14.",
)
_output: Final = click.option(
    "-o",
    "--output",
    metavar="FILE",
    required=True,
    type=options.FilePath(),
    help="The vector's GGUF to write.",
)
force_option: Final = click.option(
    "--force", "overwrite", is_flag=True, help="Replace the output if it exists."
)
_seed: Final = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of what is held out, and of random vectors.",
)
_json: Final = click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")


def makes_vector(command: _Command) -> _Command:
    """What the commands that write a new vector begin with."""
    for option in (force_option, _output, base_argument):
        command = option(command)
    return command


def runs(command: _Command) -> _Command:
    """What all of these have in the end."""
    for option in (_json, options.gpu_layers, options.threads, _seed):
        command = option(command)
    return command


def shown_layers(layers: Sequence[int]) -> str:
    """Such as "layers 8 to 14"."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    if list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers))}"


def show(found: dict[str, Any], lines: Iterator[str], *, as_json: bool) -> None:
    """Prints what was found."""
    if as_json:
        click.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    for line in lines:
        click.echo(line, color=colour())
