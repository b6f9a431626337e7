"""`alora-gguf analyse`: what adapters change and where, as a report, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import alora_gguf as ag

from . import options
from .analyse_report import report
from .bases import NamedBase, checked_file
from .progress import Progress
from .render import colour, columns, plural, printable

if TYPE_CHECKING:
    from alora_gguf.analyse import Analysis

_LEVELS: Final = ("error", "warning", "note")
_RUN: Final = ("text", "probes", "ranks", "dump", "max_tokens", "n_threads", "n_gpu_layers")


def _numbers(_ctx: click.Context, _param: click.Parameter, text: str | None) -> tuple[int, ...]:
    """Of a list with commas between."""
    found = tuple(int(each) if each.strip().isdecimal() else 0 for each in (text or "").split(","))
    if text is not None and 0 in found:
        raise click.BadParameter(f"{text!r} is not a list of ranks, such as 4,8,16")
    return () if text is None else found


@click.command("analyse")
@click.argument(
    "adapters", metavar="ADAPTER...", nargs=-1, shell_complete=options.store_names("adapter")
)
@click.option(
    "--base",
    shell_complete=options.store_names("base"),
    help="The base's GGUF, its name in the store, or smollm2: show dW relative to its weights.",
)
@click.option(
    "--text",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Run the base on this text, or on the conversations of a .jsonl file, without and with "
    "each adapter. Needs --base.",
)
@click.option("--probes", is_flag=True, help="Likewise, on a few built-in conversations.")
@click.option(
    "--ranks",
    metavar="K,...",
    callback=_numbers,
    help="Say what truncating to these ranks changes in the next token on the texts.",
)
@click.option(
    "--dump",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the states of layers and their change on the texts there, as safetensors.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 2**20),
    help="Read texts until an adapter has acted on so many tokens.  [default: 1024]",
)
@options.threads
@options.gpu_layers
@click.option(
    "--fail-on",
    type=click.Choice(_LEVELS),
    help="Exit with status 1 if there is a finding of this level, or a worse one.",
)
@click.option(
    "--sarif",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the findings there in SARIF 2.1.0, for CI.",
)
@click.option(
    "--write-rank",
    metavar="K",
    type=click.IntRange(min=1),
    help="Write the adapter to --output, truncated to rank K.",
)
@click.option(
    "-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="For --write-rank."
)
@click.option("--force", "overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Draw it over layers and targets: .png, .svg or .pdf. Needs matplotlib: pip install "
    "'alora-gguf[plot]'.",
)
@click.option(
    "--random",
    "n_random",
    type=click.IntRange(2, 64),
    default=5,
    show_default=True,
    help="Random adapters to compare with.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of those.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    *,
    adapters: tuple[str, ...],
    base: str | None,
    fail_on: str | None,
    sarif: Path | None,
    plot: Path | None,
    n_random: int,
    seed: int,
    as_json: bool,
    **written: Any,
) -> None:
    """Say what adapters change and where, by their weights and on texts.

    An ADAPTER is a name in the store or the path of a GGUF file, or with --base smollm2 one of its
    own; those in the store must have the SHA-256 that they were stored with.

    Shows norms and ranks of what an adapter adds to the base's weights, dW = scale * B A, by layer
    and target, beside those of random adapters of the same norm; for several adapters, how the
    spaces that they write and read overlap, and what a basis that they share would need. Findings
    are what is odd about an adapter, and may be meant.

    With --text or --probes it also runs the base without and with each adapter, and with random
    ones: how much the states of each layer change, how alike they stay, in how many directions they
    move, and what that does to the next token. Without, no model is run.

    The exit status is 0 whatever is found, unless --fail-on is given.
    """
    from alora_gguf import analyse

    run = {name: written.pop(name) for name in _RUN}
    asked = _asked(base, **run)
    _check_usage(adapters, **written)
    _check_names({"plot": plot, "sarif": sarif, "output": written["output"], "dump": run["dump"]})
    if plot is not None:
        from .chart import check_picture

        check_picture(plot)
    base_path = None if base is None else checked_file(base, "base")
    named = None if base is None else NamedBase.of(base)
    paths = [checked_file(each, "adapter", named) for each in adapters]
    if written["write_rank"] is not None:
        how = {"rank": written["write_rank"], "overwrite": written["overwrite"]}
        analyse.check_truncation(paths[0], written["output"], **how)
    if sarif is not None:
        analyse.check_sarif(sarif)
    how_run = None if asked is None else analyse.ActivationOptions(**asked)
    with Progress("Measuring") as progress:
        found = analyse.analyse(
            paths,
            base=base_path,
            activations=how_run,
            n_random=n_random,
            seed=seed,
            progress=progress.fraction,
        )
    truncated = None
    if written["write_rank"] is not None:
        truncated = analyse.truncate(paths[0], written["output"], **how)
    if sarif is not None:
        analyse.write_sarif(found, sarif)
    if as_json:
        shown = found.to_dict()
        shown["truncation"] = truncated and truncated.to_dict()
        click.echo(json.dumps(shown, indent=2, allow_nan=False))
    else:
        for line in report(found, columns()):
            click.echo(line, color=colour())
        if truncated is not None:
            click.echo(f"\n{printable(str(truncated))}")
    if plot is not None:  # after the report: a disk that is full does not lose what was measured
        from .analyse_plot import write_plot

        write_plot(found, plot)
    _fail(found, fail_on)


def _asked(base: str | None, *, probes: bool, **run: Any) -> dict[str, Any] | None:
    """Fields of ActivationOptions, None if no model is to be run."""
    given = [name for name in ("ranks", "dump", "max_tokens") if run[name]]
    if probes and run["text"] is not None:
        raise click.UsageError("--text and --probes exclude each other; give one of them")
    if not probes and run["text"] is None:
        if given:
            name = given[0].replace("_", "-")
            raise click.UsageError(f"--{name} is only used with --text or --probes; give one, too")
        return None
    if base is None:
        raise click.UsageError(f"--{'probes' if probes else 'text'} needs --base, the model to run")
    return {name: value for name, value in run.items() if value is not None}


def _check_usage(
    adapters: Sequence[str], *, write_rank: int | None, output: Path | None, overwrite: bool
) -> None:
    if not adapters:
        raise click.UsageError("Missing argument 'ADAPTER...'.")
    if write_rank is None and (output is not None or overwrite):
        given = "--output" if output is not None else "--force"
        raise click.UsageError(f"{given} is only used with --write-rank; give both")
    if write_rank is not None and output is None:
        raise click.UsageError("--write-rank needs --output, the file to write")
    if write_rank is not None and len(adapters) > 1:
        raise click.UsageError(f"--write-rank takes one adapter, got {len(adapters)}")


def _check_names(outputs: Mapping[str, Path | None]) -> None:
    """What is written goes to a file of its own each."""
    seen = dict[Path, str]()
    for option, path in outputs.items():
        if path is not None and (other := seen.setdefault(path.absolute(), option)) != option:
            raise click.UsageError(f"--{other} and --{option} are both {path}; name two files")


def _fail(found: Analysis, level: str | None) -> None:
    failing = _LEVELS[: _LEVELS.index(level) + 1] if level else ()
    for adapter in found.adapters:
        bad = [finding for finding in adapter.findings if finding.level in failing]
        if bad:
            raise ag.AdapterError(
                f"{adapter.path}: {plural(len(bad), 'finding')} of level {level} or worse, first: "
                f"{bad[0].message}"
            )
