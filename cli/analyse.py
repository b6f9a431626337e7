"""`alora-gguf analyse`: what adapters change and where, as a report or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import alora_gguf as ag

from . import activations, options
from .bases import NamedBase, checked_file
from .progress import Progress
from .render import aligned, colour, columns, plural, printable, shortened, wrapped

if TYPE_CHECKING:
    from alora_gguf.analyse import AdapterWeights, Analysis, Comparison, SharedBasis, Totals

_COLOURS: Final = {"error": "red", "warning": "yellow", "note": "cyan"}
_LEVELS: Final = ("error", "warning", "note")
_RUN: Final = ("text", "probes", "ranks", "dump", "max_tokens", "n_threads", "n_gpu_layers")
_NAME: Final = 20  # columns of a target's name, at most


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
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the random adapters to compare with.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    *,
    adapters: tuple[str, ...],
    base: str | None,
    fail_on: str | None,
    sarif: Path | None,
    as_json: bool,
    **written: Any,
) -> None:
    """Say what adapters change and where, by their weights and on texts.

    An ADAPTER is a name in the store or the path of a GGUF file, or with --base smollm2 one of its
    own; those in the store must have the SHA-256 that they were stored with.

    Shows norms and ranks of what an adapter adds to the base's weights, dW = scale * B A, by layer
    and target, beside those of a random adapter of the same norm; for several adapters, how the
    spaces that they write and read overlap, and what a basis that they share would need. Findings
    are what is odd about an adapter, and may be meant.

    With --text or --probes it also runs the base without and with each adapter, and with a random
    one: how much the states of each layer change, how alike they stay, in how many directions they
    move, and what that does to the next token. Without, no model is run.

    The exit status is 0 whatever is found, unless --fail-on is given.
    """
    from alora_gguf import analyse

    seed = written.pop("seed")
    run = {name: written.pop(name) for name in _RUN}
    asked = _asked(base, **run)
    _check_usage(adapters, **written)
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
            paths, base=base_path, activations=how_run, seed=seed, progress=progress.fraction
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


def _fail(found: Analysis, level: str | None) -> None:
    failing = _LEVELS[: _LEVELS.index(level) + 1] if level else ()
    for adapter in found.adapters:
        bad = [finding for finding in adapter.findings if finding.level in failing]
        if bad:
            raise ag.AdapterError(
                f"{adapter.path}: {plural(len(bad), 'finding')} of level {level} or worse, first: "
                f"{bad[0].message}"
            )


# The report -------------------------------------------------------------------------------------


def report(found: Analysis, width: int) -> Iterator[str]:
    """The lines of a report of `width` columns, paths and tables apart; styled."""
    alone = len(found.adapters) == 1
    for adapter in found.adapters:
        yield from _adapter(adapter, width)
        if alone:
            yield from ("", *_layers(adapter), "", *_targets(adapter))
        yield ""
    if not alone:
        yield from _depth(found.adapters)
        yield ""
        yield from _pairs(found, width)
        yield ""
    if found.activations is not None:
        yield from activations.report(found.activations, width)
        yield ""
    text = (
        "dW is what is added to a weight W: norms |dW|, singular values s. stable: sum of s^2 / "
        "largest s^2. effective: exp of the entropy of s. 99 %: the fewest s with 99 % of the sum "
        "of s^2. random: of an adapter of the same shapes and norm whose A and B are random."
    )
    yield from wrapped(text, width)


def _adapter(adapter: AdapterWeights, width: int) -> Iterator[str]:
    kind = "aLoRA" if adapter.kind == "alora" else "plain LoRA"
    about = f"{kind} of rank {adapter.rank}, {adapter.architecture}"
    name = click.style(printable(adapter.label), bold=True)
    yield f"{name}: {printable(about)}, {adapter.n_parameters:,} parameters"
    totals, n = adapter.totals, len(adapter.layers)
    if adapter.alive:
        chance = totals.random
        text = (
            f"|dW|_F {totals.frobenius:.4g} over {_matrices(totals.n_matrices)}, ranks "
            f"{totals.stable_rank:.1f} stable, {totals.effective_rank:.1f} effective, "
            f"{totals.energy_rank:.1f} for 99 % (random {chance.stable_rank:.1f}, "
            f"{chance.effective_rank:.1f}, {chance.energy_rank:.1f}); utilisation "
            f"{totals.utilisation:.0%}"
        )
        if n:
            text += f"; concentration {adapter.concentration:.2f} (even: {1 / n:.2f})"
        yield from wrapped(text, width, "  ")
    for finding in adapter.findings:
        first, *more = wrapped(f"{finding.message} [{finding.rule}]", width, " " * 11)
        mark = click.style(f"{finding.level:<9}", fg=_COLOURS[finding.level])
        yield f"  {mark}{first[11:]}"
        yield from more


def _matrices(n: int) -> str:
    return "1 matrix" if n == 1 else f"{n} matrices"


def _layers(adapter: AdapterWeights) -> Iterator[str]:
    """One row a layer, with a bar of its share."""
    if not adapter.layers:
        return
    rows = [("layer", *_heading(adapter.layers[0].totals), "")]
    largest = max(layer.totals.share for layer in adapter.layers)
    for layer in adapter.layers:
        bar = "#" * round(8 * layer.totals.share / largest) if largest else ""
        rows.append((str(layer.layer), *_cells(layer.totals), bar))
    yield from aligned(rows, ">" * (len(rows[0]) - 1) + "<", indent=2)


def _targets(adapter: AdapterWeights) -> list[str]:
    rows = [("target", *_heading(adapter.totals), "dead")]
    for target in adapter.targets:
        dead = f"{target.totals.n_dead} of {target.totals.n_matrices}"
        name = shortened(printable(target.name), _NAME)
        rows.append((name, *_cells(target.totals), dead))
    return aligned(rows, "<" + ">" * (len(rows[0]) - 1), indent=2)


def _heading(totals: Totals) -> tuple[str, ...]:
    relative = () if totals.relative is None else ("|dW|2/|W|2",)
    norms = ("|dW|_F", "share", "|dW|_2", "random", *relative)
    return (*norms, "stable", "effective", "random", "99 %")


def _cells(totals: Totals) -> tuple[str, ...]:
    relative = () if totals.relative is None else (f"{totals.relative:.3f}",)
    return (
        f"{totals.frobenius:.3g}",
        f"{totals.share:.0%}",
        f"{totals.spectral:.3g}",
        f"{totals.random.spectral:.3g}",
        *relative,
        f"{totals.stable_rank:.1f}",
        f"{totals.effective_rank:.1f}",
        f"{totals.random.effective_rank:.1f}",
        f"{totals.energy_rank:.1f}",
    )


# Several ----------------------------------------------------------------------------------------


def _depth(adapters: Sequence[AdapterWeights]) -> Iterator[str]:
    """|dW|_F and effective rank of all, side by side; columns by number."""
    yield click.style("Side by side", bold=True)
    for i, adapter in enumerate(adapters):
        yield f"  {i + 1}  {printable(adapter.label)}"
    layers = sorted({layer.layer for adapter in adapters for layer in adapter.layers})
    found = [{layer.layer: layer.totals for layer in adapter.layers} for adapter in adapters]
    numbers = [str(i + 1) for i in range(len(adapters))]
    first = [f"|dW|_F {numbers[0]}", *numbers[1:]]
    rows = [["layer", *first, f"effective {numbers[0]}", *numbers[1:]]]
    for layer in layers:
        totals = [each.get(layer) for each in found]
        norms = ["-" if t is None else f"{t.frobenius:.3g}" for t in totals]
        ranks = ["-" if t is None else f"{t.effective_rank:.1f}" for t in totals]
        rows.append([str(layer), *norms, *ranks])
    yield ""
    yield from aligned(rows, ">" * len(rows[0]), indent=2)


def _pairs(found: Analysis, width: int) -> Iterator[str]:
    """How similar the spaces are that each two write and read, and what all could share."""
    yield click.style("Spaces in common", bold=True)
    text = (
        "Mean squared cosine of the principal angles: 1 if one space contains the other. written: "
        "columns of dW, from B; read: rows of dW, from A."
    )
    yield from wrapped(text, width, "  ")
    numbers = {adapter.label: str(i + 1) for i, adapter in enumerate(found.adapters)}
    heading = ("", "written", "random", "read", "random", "cosine of dW", "apart")
    rows: list[tuple[str, ...]] = [heading]
    rows += [_pair(each, numbers) for each in found.comparisons]
    yield ""
    yield from aligned(rows, "<>>>>>>", indent=2)
    if len(found.comparisons) == 1 and found.comparisons[0].overlaps:
        yield from ("", *_pair_by_layer(found.comparisons[0]))
    if found.shared:
        yield ""
        for side, verb in (("written", "write"), ("read", "read")):
            yield from wrapped(_sharing(found.shared, side, verb), width, "  ")


def _pair(each: Comparison, numbers: dict[str, str]) -> tuple[str, ...]:
    name = f"{numbers[each.first]}, {numbers[each.second]}"
    if not each.overlaps:
        return (name, "-", "-", "-", "-", "-", str(each.n_apart))
    (written, by_chance), (read, by_chance_too) = each.mean("written"), each.mean("read")
    cosine = sum(overlap.cosine for overlap in each.overlaps) / len(each.overlaps)
    numbers_of = (written, by_chance, read, by_chance_too, cosine)
    return (name, *(f"{number:.3f}" for number in numbers_of), str(each.n_apart))


def _pair_by_layer(each: Comparison) -> list[str]:
    rows: list[tuple[str, ...]] = [("layer", "written", "random", "read", "random")]
    for layer in sorted({o.layer for o in each.overlaps if o.layer is not None}):
        (written, by_chance), (read, other) = each.mean("written", layer), each.mean("read", layer)
        numbers = (written, by_chance, read, other)
        rows.append((str(layer), *(f"{number:.3f}" for number in numbers)))
    return aligned(rows, ">" * len(rows[0]), indent=2)


def _sharing(shared: Sequence[SharedBasis], side: str, verb: str) -> str:
    n = len(shared)
    ranks = [getattr(each, side) for each in shared]
    together, apart, by_chance = (
        sum(getattr(rank, name) for rank in ranks) / n for name in ("together", "apart", "random")
    )
    many = max(each.n_adapters for each in shared)
    whose = "both" if many == 2 else f"all {many}"
    return (
        f"99 % of what {whose} {verb} could share a basis of rank {together:.1f}; their own bases "
        f"add up to {apart:.1f}, and random spaces would share one of {by_chance:.1f} (means over "
        f"{n} of the matrices)."
    )
