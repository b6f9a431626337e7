"""`alora-gguf convert`: a PEFT adapter directory to an adapter GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

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


@click.command("convert")
@click.argument("source", metavar="PEFT_DIR", type=click.Path(path_type=Path))
@click.option(
    "--base",
    required=True,
    type=click.Path(path_type=Path),
    help="GGUF of the model the adapter was trained on; only its header is read.",
)
@click.option(
    "-o",
    "--output",
    "out",
    required=True,
    type=click.Path(path_type=Path),
    help="The adapter GGUF to write.",
)
@click.option(
    "--outtype",
    type=click.Choice(["f16", "bf16", "f32"]),
    default="f16",
    show_default=True,
    help="Type of the weights; each value is rounded once.",
)
@click.option("--name", help="The adapter's name; the directory's name by default.")
@click.option(
    "--invocation-tokens",
    metavar="IDS",
    callback=_ids,
    help="Token ids that switch an aLoRA on, such as 27,91,3, if adapter_config.json lacks them.",
)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    source: Path,
    base: Path,
    out: Path,
    outtype: str,
    name: str | None,
    invocation_tokens: list[int] | None,
    force: bool,
    as_json: bool,
) -> None:
    """Convert the LoRA or aLoRA in PEFT_DIR to a GGUF, exactly or not at all.

    Needs neither torch nor transformers. What would not convert exactly is refused with the name of
    the field or tensor. The output appears complete or not at all.
    """
    from alora_gguf.convert import convert_adapter

    report = convert_adapter(
        source,
        base,
        out,
        outtype=outtype,
        name=name,
        invocation=invocation_tokens,
        overwrite=force,
    )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
    else:
        _print(report)


def _print(report: ConversionReport) -> None:
    targets = ", ".join(f"{name} x{count}" for name, count in report.targets.items())
    rows = [
        ("kind", "aLoRA" if report.kind == "alora" else "LoRA"),
        ("architecture", report.architecture),
        ("targets", targets),
        ("rank", ", ".join(map(str, report.ranks))),
        ("alpha", f"{report.alpha:g}" + (f" ({report.folded} folded)" if report.folded else "")),
    ]
    if report.invocation:
        rows.insert(1, ("invocation", ", ".join(map(str, report.invocation))))
    click.echo(
        f"{report.out}: {report.nbytes / 1e6:.2f} MB {report.outtype} in {report.seconds:.2f} s"
    )
    for label, text in rows:
        click.echo(f"  {label:<12}  {text}")
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
