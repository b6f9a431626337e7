"""`alora-gguf bench`: what adapters cost on this machine, as tables, JSON and a chart."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Final

import click
from alora_gguf.cli import options
from alora_gguf.cli.bases import NamedBase
from alora_gguf.cli.chart import check_picture
from alora_gguf.cli.progress import Progress
from alora_gguf.cli.render import colour, columns, printable

import alora_gguf as ag

# rounds, seconds, contexts
_USUAL: Final = (5, 60, (128, 512, 2048, 8192))
_QUICK: Final = (2, 10, (128, 512))
_LONGEST: Final = 1 << 20


def _lengths(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """What --contexts says."""
    if value is None:
        return None
    try:
        lengths = tuple(int(part) for part in value.split(","))
    except ValueError:
        lengths = (0,)
    if min(lengths) < 1 or max(lengths) > _LONGEST:
        raise click.BadParameter(
            f"'{value}' is not a list of lengths; expected tokens from 1 to {_LONGEST}, separated "
            "by commas, such as 512,2048"
        )
    return lengths


@click.command("bench")
@click.argument("base", required=False, shell_complete=options.store_names("base"))
@click.argument(
    "adapters",
    metavar="[ADAPTER]...",
    nargs=-1,
    shell_complete=options.store_names("adapter"),
)
@click.option(
    "--contexts",
    metavar="N,N,...",
    callback=_lengths,
    help=f"Lengths of contexts in tokens; by default {','.join(map(str, _USUAL[2]))}, as far as "
    "the base goes.",
)
@options.threads
@options.gpu_layers
@click.option(
    "--rounds", type=click.IntRange(1, 1000), help=f"Rounds at most; {_USUAL[0]} by default."
)
@click.option(
    "--time",
    "seconds",
    metavar="SECONDS",
    type=click.IntRange(1, 86400),
    help=f"How long measuring may take; {_USUAL[1]} by default.",
)
@click.option(
    "--quick",
    is_flag=True,
    help=f"{_QUICK[0]} rounds, {_QUICK[1]} seconds and contexts of "
    f"{' and '.join(map(str, _QUICK[2]))} tokens, unless said otherwise.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random text."
)
@click.option(
    "--plot",
    metavar="FILE",
    type=options.FilePath(),
    help="Draw the time to the first token: .png, .svg or .pdf. Needs matplotlib: pip install "
    "'alora-gguf[plot]'.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all samples as JSON.")
@options.verbose
def command(
    *,
    base: str | None,
    adapters: tuple[str, ...],
    contexts: tuple[int, ...] | None,
    rounds: int | None,
    seconds: int | None,
    quick: bool,
    plot: Path | None,
    as_json: bool,
    **computing: Any,
) -> None:
    """Measure what adapters cost on this machine.

    BASE and ADAPTERs are names in the store or paths of GGUF files; BASE may be smollm2, and
    ADAPTERs its own. Without ADAPTERs they are all of BASE's own, without any argument the demo
    model and its adapters. An aLoRA asked about a cached context is compared with a plain LoRA,
    which must read it all, and with the base; several at once with one after another.

    What does not fit into --time is left out, the longest contexts first, and said. Ctrl-C ends it
    earlier and prints what was measured; the exit status is 130 then.
    """
    if plot is not None:
        check_picture(plot)
    from .measuring import Measuring
    from .result import report, write_chart
    from .subjects import choose, opened

    few = _QUICK if quick else _USUAL
    choice = choose(*_files(base, adapters), contexts, usual=few[2])
    with contextlib.ExitStack() as stack:
        with Progress("Loading") as loading:
            subjects = stack.enter_context(opened(choice, progress=loading.fraction, **computing))
        measuring = Measuring(subjects, rounds=rounds or few[0], seconds=seconds or few[1])
        result = measuring.run(stack.enter_context(Progress("Measuring")))
    if as_json:
        click.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        for line in report(result, columns()):
            click.echo(line, color=colour())
    if result["interrupted"]:
        raise KeyboardInterrupt
    if plot is not None:
        write_chart(result, plot)
        if not as_json:
            click.echo(f"The chart is in {printable(str(plot))}.")


def _files(base: str | None, adapters: tuple[str, ...]) -> tuple[Path, list[Path]]:
    """The base and the adapters: those that were named, or the base's own."""
    named = NamedBase.of(base)
    if not adapters and named.adapters:
        return named.path, list(named.adapters.values())
    if not adapters:
        raise click.UsageError(
            "give at least one adapter after the base; or neither, for the demo model"
        )
    store = ag.Store()
    return named.path, [named.own(each) or store.resolve(each, "adapter") for each in adapters]
