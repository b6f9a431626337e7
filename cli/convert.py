"""`alora-gguf convert`: an adapter of PEFT's or mlx-lm's to an adapter GGUF."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options
from .bases import named_file
from .progress import Progress, hush_hub
from .render import printable

if TYPE_CHECKING:
    from alora_gguf.convert import ConversionReport


def _ids(_context: click.Context, _option: click.Parameter, value: str | None) -> list[int] | None:
    """Parses "1,2,3"."""
    if value is None:
        return None
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"'{value}' is not a list of token ids such as 27,91,3") from None


def _labels(
    _context: click.Context, _option: click.Parameter, value: str | None
) -> list[str] | None:
    """Parses "safe,unsafe"."""
    return None if value is None else [part.strip() for part in value.split(",")]


@click.command("convert")
@click.argument("source")
@click.option(
    "--base",
    required=True,
    shell_complete=options.store_names("base"),
    help="The model the adapter was trained on: a GGUF (only its header is read), its name in the "
    "store, a Hugging Face model directory, or hf://OWNER/REPO[@REVISION][/FILE.gguf].",
)
@click.option(
    "-o",
    "--output",
    "out",
    type=options.FilePath(),
    help="The adapter GGUF to write; by default the adapter's name with .gguf, here.",
)
@click.option(
    "--outtype",
    type=click.Choice(["f16", "bf16", "f32", "q8_0"]),
    default="f16",
    show_default=True,
    help="Type of the weights; all but q8_0 round each value once.",
)
@click.option("--name", help="The adapter's name; the contract's or the directory's by default.")
@click.option(
    "--invocation",
    metavar="TEXT",
    help="The text that switches an aLoRA on, if adapter_config.json lacks it.",
)
@click.option(
    "--invocation-tokens",
    metavar="IDS",
    callback=_ids,
    help="The same as token ids, such as 27,91,3.",
)
@click.option(
    "--labels",
    metavar="LABEL,LABEL",
    callback=_labels,
    help="SOURCE holds a classifier's head (classifier_head.safetensors), whose rows stand for "
    "these, in their order.",
)
@options.contract
@options.no_contract
@click.option("--intrinsic", metavar="NAME", help="Which adapter, if SOURCE has several.")
@click.option("--model", metavar="NAME", help="For which base, if SOURCE has several.")
@click.option(
    "--technology", type=click.Choice(["alora", "lora"]), help="Which kind, if SOURCE has both."
)
@click.option("--force", "overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--dry-run", is_flag=True, help="Check and report everything; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    *,
    source: str,
    base: str,
    invocation: str | None,
    invocation_tokens: list[int] | None,
    contract: Path | None,
    no_contract: bool,
    intrinsic: str | None,
    model: str | None,
    technology: str | None,
    as_json: bool,
    **converted: Any,
) -> None:
    """Convert the LoRA or aLoRA in SOURCE to a GGUF, exactly or not at all.

    SOURCE is a directory of PEFT's or mlx-lm's, one with several of them (a hub snapshot), or
    hf://OWNER/REPO[@REVISION][/PATH].

    Needs neither torch nor transformers. What would not convert exactly is refused with the name of
    the field or tensor. The output appears complete or not at all.
    """
    # No linear algebra here: starting its threads would only take time.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from alora_gguf.convert import Pick, convert_adapter, is_reference

    if invocation is not None and invocation_tokens is not None:
        raise click.UsageError("give --invocation or --invocation-tokens, not both")
    if is_reference(source) or is_reference(base):
        hush_hub()
    with Progress("Converting") as progress:
        report = convert_adapter(
            source,
            base if is_reference(base) else named_file(base, "base"),
            pick=Pick(intrinsic, model, technology),
            invocation=invocation if invocation is not None else invocation_tokens,
            contract=options.given_contract(contract, no_contract),
            progress=progress,
            **converted,
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report, without=no_contract)


def _print(report: ConversionReport, *, without: bool) -> None:
    targets = ", ".join(f"{name} x{count}" for name, count in report.targets.items())
    kinds = {"alora": "aLoRA", "lora": "LoRA"}
    rows = [
        ("kind", kinds.get(report.kind, report.kind)),
        ("architecture", report.architecture),
    ]
    if report.labels:
        rows.append(("labels", ", ".join(map(printable, report.labels))))
    else:
        folded = f" ({report.folded} folded)" if report.folded else ""
        rows += [
            ("targets", targets),
            ("rank", ", ".join(map(str, report.ranks))),
            ("alpha", f"{report.alpha:g}{folded}"),
        ]
    if report.invocation:
        ids = ", ".join(map(str, report.invocation))
        text = "" if report.invocation_text is None else f"{json.dumps(report.invocation_text)} = "
        rows.insert(1, ("invocation", text + ids))
    held = report.contract
    none = "made of the labels" if report.labels else "none (there is no io.yaml)"
    told = none if held is None else printable(str(held))
    told = "none (--no-contract)" if without else told
    rows.append(("contract", told))
    size = f"{report.nbytes / 1e6:.2f} MB {report.outtype} in {report.seconds:.2f} s"
    click.echo(f"{report.out}: {size}" + ("" if report.written else " (dry run: not written)"))
    for label, text in rows:
        click.echo(f"  {label:<12}  {text}")
    for warning in report.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
