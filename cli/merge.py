"""`alora-gguf merge`: one GGUF of a base and a plain LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from . import options
from .bases import NamedBase, checked_file
from .progress import Progress
from .render import size_text

if TYPE_CHECKING:
    from alora_gguf.analyse import Merging

_MOST: Final = 0.25  # of the adapter's own KL that requantizing may cost without a word


@click.command("merge")
@click.argument("base", shell_complete=options.store_names("base"))
@click.argument("adapter", shell_complete=options.store_names("adapter"))
@click.option(
    "-o",
    "--output",
    "out",
    required=True,
    type=click.Path(path_type=Path),
    help="The GGUF to write.",
)
@options.threads
@click.option("--no-measure", is_flag=True, help="Write only; do not run the two models.")
@click.option("--force", "overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    *,
    base: str,
    adapter: str,
    out: Path,
    n_threads: int | None,
    no_measure: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write BASE with the plain LoRA ADAPTER in its weights, as one GGUF.

    BASE and ADAPTER are names in the store or paths of GGUF files. Changed tensors are dequantized,
    changed, and quantized to their own types; every other byte of BASE stays. An aLoRA is refused:
    it must not change what stands before its invocation.

    Then a few texts are read by BASE with ADAPTER and by what was written: how far they are apart
    is what requantizing cost.
    """
    from alora_gguf.analyse import merge

    paths = checked_file(base, "base"), checked_file(adapter, "adapter", NamedBase.of(base))
    with Progress("Merging") as progress:
        found = merge(
            *paths,
            out,
            overwrite=overwrite,
            measure=not no_measure,
            n_threads=n_threads,
            progress=progress,
        )
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else _report(found))
    cost = found.cost
    if cost is not None and cost.kl > _MOST * cost.kl_adapter:
        click.echo(
            "Note: requantizing undoes much of what the adapter changes; merge into the base in "
            "F16 or Q8_0, or use the adapter as an adapter",
            err=True,
        )


def _report(found: Merging) -> str:
    types = ", ".join(f"{kind} x{count}" for kind, count in found.types.items())
    lines = [f"{found.path}: {size_text(found.nbytes)}", f"  changed  {types}"]
    cost = found.cost
    if cost is not None:
        lines += [
            f"  cost     KL {cost.kl:.2g} nats a token (at most {cost.kl_largest:.2g}), over "
            f"{cost.n_tokens} tokens;",
            f"           the adapter itself: {cost.kl_adapter:.2g}",
            f"  top      another likeliest token after {cost.top_changed:.1%} of them",
            f"  logits   up to {cost.largest:.2g} of the largest apart",
        ]
    return "\n".join(lines)
