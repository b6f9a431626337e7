"""`alora-gguf pull`: from the hub into the store, adapters converted, bases as they are."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from .progress import Progress, hush_hub
from .render import printable, size_text

if TYPE_CHECKING:
    from alora_gguf.convert.hub.reference import HubReference

    from alora_gguf import Store

    from .pulling import Pulled


@click.command("pull")
@click.argument("repository")
@click.option("--intrinsic", metavar="NAME", help="Which adapter, if REPOSITORY has several.")
@click.option("--model", metavar="NAME", help="For which base, if REPOSITORY has several.")
@click.option(
    "--technology", type=click.Choice(["alora", "lora"]), help="Which kind, if there are both."
)
@click.option(
    "--base",
    metavar="BASE",
    help="The model to convert the adapter for: a stored base's name, the path of a GGUF (with a "
    "separator or .gguf), or hf://OWNER/REPO[@REVISION][/FILE.gguf].",
)
@click.option(
    "--file",
    "pattern",
    metavar="PATTERN",
    help="Store this GGUF as it is: its name, or a pattern such as '*Q4_K_M*' that means one file, "
    "or all parts of one split model.",
)
@click.option(
    "--outtype",
    type=click.Choice(["f16", "bf16", "f32", "q8_0"]),
    default="f16",
    show_default=True,
    help="Type of a converted adapter's weights.",
)
@click.option(
    "--invocation",
    metavar="TEXT",
    help="The text that switches an aLoRA on, if adapter_config.json lacks it.",
)
@click.option("--name", help="What to call it; the intrinsic's or the file's name by default.")
@click.option("--force", is_flag=True, help="Replace what the store has under that name.")
@click.option("--json", "as_json", is_flag=True, help="Print what was stored as JSON.")
def command(
    *,
    repository: str,
    intrinsic: str | None,
    model: str | None,
    technology: str | None,
    base: str | None,
    pattern: str | None,
    outtype: str,
    invocation: str | None,
    name: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Fetch an adapter or a base from the Hugging Face Hub into the store.

    REPOSITORY is OWNER/REPO[@REVISION][/PATH]. Without --file it holds PEFT adapters; the chosen
    one is converted for --base. Pulling the same again changes nothing.

    HF_TOKEN, HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_OFFLINE count as everywhere; ALORA_GGUF_HOME says
    where the store is.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in convert
    from alora_gguf.convert import Pick

    from alora_gguf import Store

    from .pulling import AdapterOptions, Place, pull_adapter, pull_gguf

    reference = _reference(repository)
    hush_hub()
    place = Place(Store(), name, force)
    if reference.path.lower().endswith(".gguf") and pattern is None:
        pattern = reference.path
    if pattern is not None:
        given = {"--intrinsic": intrinsic, "--model": model, "--technology": technology}
        given |= {"--base": base, "--invocation": invocation}
        for option, value in given.items():
            if value is not None:
                raise click.UsageError(
                    f"{option} is for an adapter that has to be converted, and --file takes a "
                    "GGUF as it is; leave one of them out"
                )
        with Progress("Checking") as progress:
            pulled = pull_gguf(reference, pattern, place, progress)
    else:
        if base is None:
            raise click.UsageError(_no_base(place.store))
        pick = Pick(intrinsic, model, technology)
        options = AdapterOptions(pick, base, outtype, invocation)
        with Progress("Converting") as progress:
            pulled = pull_adapter(reference, options, place, progress)
    if as_json:
        click.echo(json.dumps(_plain(pulled), indent=2))
    else:
        _print(pulled)


def _reference(text: str) -> HubReference:
    from alora_gguf.convert.hub.reference import is_reference, parse_reference

    from alora_gguf.errors import InputError

    if "://" in text and not is_reference(text):
        raise InputError(
            f"{text}: is a web address, expected a repository of the hub: OWNER/REPO"
            "[@REVISION][/PATH]"
        )
    return parse_reference(text if is_reference(text) else f"hf://{text}")


def _no_base(store: Store) -> str:
    bases = [e.name for e in store.contents().entries if e.about.kind == "base"]
    there = f" (stored: {', '.join(bases)})" if bases else ""
    return (
        f"give --base, the model that the adapter is for{there}; or, for a GGUF that is stored as "
        "it is, --file"
    )


def _plain(pulled: Pulled) -> dict[str, object]:
    return {
        **pulled.entry.to_dict(),
        "path": str(pulled.path),
        "changed": pulled.changed,
        "warnings": list(pulled.warnings),
    }


def _print(pulled: Pulled) -> None:
    from .list import kind_of

    entry = pulled.entry
    size = size_text(entry.nbytes)
    state = "" if pulled.changed else " (it was there already)"
    click.echo(f"{entry.name}: {kind_of(entry)}, {size}{state}")
    rows = [("from", entry.about.origin), ("commit", entry.about.commit or "")]
    if entry.about.base:
        rows.append(("base", entry.about.base))
    rows.append(("file", str(pulled.path)))
    for label, text in rows:
        click.echo(f"  {label:<6}  {printable(text)}")
    for warning in pulled.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
