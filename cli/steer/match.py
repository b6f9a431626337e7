"""`alora-gguf steer match`: the vector that does what a prompt does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from alora_gguf.cli import options
from alora_gguf.cli.bases import checked_file
from alora_gguf.cli.progress import Progress
from alora_gguf.cli.render import aligned, columns, printable, wrapped

from .shared import (
    RUN,
    layers_option,
    makes_vector,
    runs,
    show,
    shown_layers,
)

if TYPE_CHECKING:
    from alora_gguf.steer import Match


@click.command("match")
@makes_vector
@click.option(
    "--prompt",
    metavar="FILE",
    required=True,
    type=options.FilePath(),
    help="The system prompt's text, or .json with messages that stand before each question.",
)
@click.option(
    "--questions",
    metavar="FILE",
    required=True,
    type=options.FilePath(),
    help='JSON lines of {"prompt": ...}: what a user says, or messages. A file of pairs will do.',
)
@layers_option
@click.option(
    "-n",
    "--max-tokens",
    "n_tokens",
    type=click.IntRange(1, 1024),
    default=24,
    show_default=True,
    help="The most tokens of each reply that is read.",
)
@runs
def match(
    *,
    base: str,
    prompt: Path,
    questions: Path,
    output: Path,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Make the vector that does what a prompt does.

    The base replies to the questions with the prompt before them, and reads its replies again
    without it. The vector is the mean difference of its states, at the layers and the scale which
    recover most on three quarters of the questions; how much of what the prompt does to the next
    token it recovers is told on the others.
    """
    from alora_gguf import steer

    run = steer.RunOptions(**{name: given.pop(name) for name in RUN})
    how = steer.MatchOptions(**given)
    with Progress("Matching") as progress:
        found = steer.match(
            checked_file(base, "base"),
            prompt,
            questions,
            output,
            options=how,
            run=run,
            overwrite=overwrite,
            progress=progress.fraction,
        )
    show(found.to_dict(), matched(found, columns()), as_json=as_json)


def matched(found: Match, width: int) -> Iterator[str]:
    """The lines of a report."""
    text = (
        f"{printable(str(found.output))}: behind {shown_layers(found.layers)}, "
        f"{found.scale:g} times the mean difference. On {found.n_held_out} held-out questions, "
        f"{found.n_tokens} tokens of replies:"
    )
    yield from wrapped(text, width)
    yield ""
    interval = f"95 %: {found.interval.low:.0%} to {found.interval.high:.0%}"
    rows = [
        ("recovered of the prompt's effect", f"{found.recovered:.0%}", interval),
        ("by random vectors of the same norms", f"{found.random:.0%}", ""),
        ("tokens that are the likeliest ones", f"{found.agreement:.0%}", "with the vector"),
        ("", f"{found.without:.0%}", "with neither"),
        ("tokens that each prompt is shorter", f"{found.tokens_saved:.0f}", ""),
    ]
    yield from aligned(rows, "<><", indent=2)
    yield ""
    yield from wrapped(
        f"recovered: 1 - KL(prompt || vector) / KL(prompt || neither) of the next token; the "
        f"latter is {found.kl:.2f} nats a token.",
        width,
    )
