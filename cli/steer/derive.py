"""`alora-gguf steer derive`: a vector of contrast pairs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from alora_gguf.cli import options
from alora_gguf.cli.bases import checked_file
from alora_gguf.cli.progress import Progress
from alora_gguf.cli.render import aligned, columns, plural, printable, wrapped

from alora_gguf.steer import HOOKS, OPERATIONS

from .shared import (
    RUN,
    layers_option,
    makes_vector,
    runs,
    show,
    shown_layers,
)

if TYPE_CHECKING:
    from alora_gguf.steer import Derivation


@click.command("derive")
@makes_vector
@click.argument("pairs", type=options.FilePath())
@click.option(
    "--method",
    type=click.Choice(["mean", "pca"]),
    default="mean",
    show_default=True,
    help="The mean of the pairs' differences, or their principal components.",
)
@click.option(
    "--operation",
    type=click.Choice(OPERATIONS),
    default="add",
    show_default=True,
    help="What it does to what flows.",
)
@click.option(
    "--hook",
    type=click.Choice(HOOKS),
    default="block",
    show_default=True,
    help="Where in each layer it is read and acts: behind the block, its attention or its FFN.",
)
@layers_option
@click.option(
    "--rank",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Directions to project out, with --method pca.",
)
@click.option(
    "--scale",
    type=click.FloatRange(-1000, 1000),
    help="What scale 1 of an activation stands for: of additions the length of all parts together, "
    "in |h| of their layers, by default 0.4; of projections the part to take out, by default 1.",
)
@click.option(
    "--read-at",
    type=click.Choice(["answer", "last"]),
    default="answer",
    show_default=True,
    help="Read the mean over each answer's tokens, or its last token.",
)
@runs
def derive(
    *, base: str, pairs: Path, output: Path, overwrite: bool, as_json: bool, **given: Any
) -> None:
    """Make a vector of contrast pairs.

    PAIRS is a file of JSON lines: {"prompt": ..., "positive": ..., "negative": ...}, where the
    prompt is what the user says or a list of messages, and positive and negative are two answers,
    with and without what the vector is to do. Without a prompt they are two lists of messages, such
    as two system prompts with the same question, or two texts.

    A quarter of the pairs is held out, unless lines have a "split", "train" or "held_out". How well
    each layer tells those is shown beside random directions, and chooses the layers.
    """
    from alora_gguf import steer

    run = steer.RunOptions(**{name: given.pop(name) for name in RUN})
    how = steer.DeriveOptions(**given)
    with Progress("Reading") as progress:
        found = steer.derive(
            checked_file(base, "base"),
            pairs,
            output,
            options=how,
            run=run,
            overwrite=overwrite,
            progress=progress.fraction,
        )
    show(found.to_dict(), derived(found, columns()), as_json=as_json)


def derived(found: Derivation, width: int) -> Iterator[str]:
    """The lines of a report."""
    sums = found.operation.startswith("add")
    unit = f"{found.scale:g} |h|" if sums else f"{found.scale:.0%} of it"
    chosen = shown_layers(found.chosen)
    part = {"attention": "the attention of ", "ffn": "the FFN of "}.get(found.hook, "")
    text = (
        f"{printable(str(found.output))}: {found.operation} of {found.method}, behind "
        f"{part}{chosen}; scale 1 is {unit}. Learnt from {plural(found.n_train, 'pair')}, told on "
        f"{found.n_held_out} held out:"
    )
    yield from wrapped(text, width)
    yield ""
    rows: list[tuple[str, ...]] = [("layer", "|h|", "AUROC", "95 %", "random", "d'", "")]
    for each in found.layers:
        interval = f"{each.interval.low:.2f}-{each.interval.high:.2f}"
        distance = f"{each.d_prime:.2f}" if abs(each.d_prime) < 1000 else f"{each.d_prime:.0e}"
        numbers = (f"{each.auroc:.3f}", interval, f"{each.random:.3f}", distance)
        mark = "acts" if each.chosen else ""
        rows.append((str(each.layer), f"{each.norm:.3g}", *numbers, mark))
    yield from aligned(rows, ">>>>>><", indent=2)
    weak = [each for each in found.layers if each.chosen and each.interval.low <= 0.5]
    if weak:
        yield ""
        yield from wrapped(
            f"Note: at {shown_layers([each.layer for each in weak])} the held-out pairs are not "
            "told for certain; give more pairs, or clearer ones.",
            width,
        )
    yield ""
    yield from wrapped(
        "AUROC: how often a positive side lies further along the direction than a negative one, "
        "0.5 is chance; d': the distance of their means in standard deviations. What separates "
        "need not steer: `alora-gguf steer sweep` says what the vector does.",
        width,
    )
