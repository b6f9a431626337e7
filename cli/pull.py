"""`alora-gguf pull`: from the hub into the store, adapters converted, bases as they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

import alora_gguf as ag

from . import options
from .inspect import contract_problems
from .progress import Progress, hush_hub
from .render import aligned, printable, size_text

if TYPE_CHECKING:
    from alora_gguf.convert import ConversionReport, HubReference, RemoteModel, Source

    from .inspect import Summary

_LARGE: Final = 100 << 20  # bytes, of which one wants to know before they come


@click.command("pull")
@click.argument("repository")
@click.option(
    "--list", "only_list", is_flag=True, help="Show what REPOSITORY holds; fetch nothing."
)
@click.option("--intrinsic", metavar="NAME", help="Which adapter, if REPOSITORY has several.")
@click.option(
    "--model", metavar="NAME", help="For which base, if not for the one that --base's name says."
)
@click.option(
    "--technology",
    type=click.Choice(["alora", "lora"]),
    help="Which kind; an aLoRA by default, where there is one.",
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
@options.contract
@options.no_contract
@click.option("--name", help="What to call it; the intrinsic's or the file's name by default.")
@click.option("--force", is_flag=True, help="Replace what the store has under that name.")
@click.option("--json", "as_json", is_flag=True, help="Print what was stored as JSON.")
def command(
    *,
    repository: str,
    only_list: bool,
    intrinsic: str | None,
    model: str | None,
    technology: str | None,
    base: str | None,
    pattern: str | None,
    outtype: str,
    invocation: str | None,
    contract: Path | None,
    no_contract: bool,
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
    from alora_gguf.convert import Pick, RemoteModel, convert_adapter, find_source

    reference = _reference(repository)
    hush_hub()
    if only_list:
        _list(reference, as_json=as_json)
        return
    store = ag.Store()
    if reference.path.lower().endswith(".gguf") and pattern is None:
        pattern = reference.path
    if pattern is not None:
        given: dict[str, object] = {
            "--intrinsic": intrinsic, "--model": model, "--technology": technology, "--base": base,
            "--invocation": invocation, "--contract": contract,
            "--no-contract": no_contract or None,
        }  # fmt: skip
        for option, value in given.items():
            if value is not None:
                raise click.UsageError(
                    f"{option} is for an adapter that has to be converted, and --file takes a "
                    "GGUF as it is; leave one of them out"
                )
        remote = RemoteModel(reference, pattern)
        with Progress("Checking") as progress:
            name = store.name_from(remote.stem) if name is None else name
            pulled = _pull_gguf(remote, store, name, replace=force, progress=progress)
    else:
        if base is None:
            raise click.UsageError(_no_base(store))
        on = _base(base, store)
        pick = Pick(intrinsic, model, technology)
        found = find_source(reference.text, pick, on[0])
        with Progress("Converting") as progress:
            convert = partial(
                convert_adapter,
                pick=pick,
                outtype=outtype,
                invocation=invocation,
                contract=options.given_contract(contract, no_contract),
                progress=progress,
            )
            name = store.name_from(found.name) if name is None else name
            with store.adding(name, replace=force) as addition:
                pulled = _pull_adapter(found, *on, addition, convert)
    path = store.path(pulled.entry)
    if as_json:
        more = {"path": str(path), "changed": pulled.changed}
        found_json = {**pulled.entry.to_dict(), **more, "warnings": list(pulled.warnings)}
        click.echo(json.dumps(found_json, indent=2))
    else:
        _print(pulled, path)


def _reference(text: str) -> HubReference:
    from alora_gguf.convert import is_reference, parse_reference

    if "://" in text and not is_reference(text):
        raise ag.InputError(
            f"{text}: is a web address, expected a repository of the hub: OWNER/REPO"
            "[@REVISION][/PATH]"
        )
    return parse_reference(text if is_reference(text) else f"hf://{text}")


def _no_base(store: ag.Store) -> str:
    bases = [e.name for e in store.contents().entries if e.about.kind == "base"]
    there = f" (stored: {', '.join(bases)})" if bases else ""
    return (
        f"give --base, the model that the adapter is for{there}; or, for a GGUF that is stored as "
        "it is, --file; --list shows what there is"
    )


@dataclass(frozen=True)
class _Pulled:
    """What is stored; `changed` is false if the store had the very same files already."""

    entry: ag.StoreEntry
    changed: bool
    warnings: tuple[str, ...] = ()


# Adapters ---------------------------------------------------------------------------------------


def _base(text: str, store: ag.Store) -> tuple[str | Path, str]:
    """What the converter takes for the base, and what an entry says that it was."""
    from alora_gguf.convert import is_reference

    if is_reference(text):
        return text, text
    if store.is_path(text):
        return Path(text), Path(text).name
    path, entry = store.resolve(text, "base"), store.find(text)
    return path, text if entry is None else entry.name


def _pull_adapter(
    found: Source,
    base: str | Path,
    base_name: str,
    addition: ag.StoreAddition,
    convert: Callable[..., ConversionReport],
) -> _Pulled:
    """Converts an adapter for a base into the store. Raises what `convert` and Store do."""
    out = addition.folder / f"{addition.name}.gguf"
    try:
        report = convert(found.directory, base, out)
    except ag.ConvertError as error:
        if isinstance(error.__cause__, OSError) and str(error).startswith(str(out)):
            raise ag.Store().refusal(error.__cause__) from error
        raise
    about = ag.Description.of(
        out,
        repository=found.repo,
        commit=found.revision,
        sources=[found.path or ""],
        base=base_name,
    )
    return _Pulled(addition.commit(about), addition.changed, report.warnings)


# GGUFs as they are ------------------------------------------------------------------------------


def _pull_gguf(
    model: RemoteModel, store: ag.Store, name: str, *, replace: bool, progress: Progress
) -> _Pulled:
    """Fetches a base, or an adapter or vector that is a GGUF already, and stores it as it is.

    Raises InputError and FileFormatError for files that are none of these, or did not arrive as
    they were, and what Store does.
    """
    expected = [model.sha256(file) for file in model.names]
    known = [each for each in expected if each is not None]
    told = len(known) == len(expected) and not replace
    if told and (old := store.find_same(name, known)) is not None:  # nothing is fetched
        return _Pulled(old, changed=False)
    if model.nbytes >= _LARGE:
        click.echo(f"Fetching {printable(model.stem)}, {size_text(model.nbytes)}", err=True)
    paths = model.fetch()
    summary = _check(model, paths[0])
    about = ag.Description.of(
        paths[0], repository=model.reference.repo, commit=model.commit, sources=model.names
    )
    with store.adding(name, replace=replace) as addition:
        for i, path in enumerate(paths, 1):
            part = f"-{i:05}-of-{len(paths):05}" if len(paths) > 1 else ""
            addition.put(path, f"{name}{part}.gguf")
        files = addition.files(progress)
        for own, path, file, sha256 in zip(model.names, paths, files, expected, strict=True):
            if sha256 not in (None, file.sha256):
                raise ag.FileFormatError(
                    f"{model.reference.text}: '{own}' arrived with the SHA-256 {file.sha256}, but "
                    f"the hub says {sha256}; remove {path.resolve()} and pull again"
                )
        warnings = (*summary.problems, *contract_problems(summary))
        return _Pulled(addition.commit(about), addition.changed, warnings)


def _check(model: RemoteModel, path: Path) -> Summary:
    """What a fetched file, or the first part of a split one, is. Raises InputError if it is neither
    a base nor an adapter nor a vector, FileFormatError for a malformed one.
    """
    summary = ag.inspect_gguf(path)
    where = f"{model.reference.text}: '{model.names[0]}'"
    if summary.kind not in ("alora", "lora", "vector", "classifier", "model"):
        raise ag.InputError(
            f"{where}: is a GGUF of the kind '{summary.kind}', expected a base model, an adapter "
            "or a steering vector; choose another --file"
        )
    if summary.problems and summary.kind != "model":
        what = "steering vector" if summary.kind == "vector" else "adapter"
        raise ag.FileFormatError(
            f"{where}: is a malformed {what}: {summary.problems[0]}; choose another --file"
        )
    return summary


# What there is ----------------------------------------------------------------------------------


def _list(reference: HubReference, *, as_json: bool) -> None:
    """All of a repository, with sizes; one line each."""
    from alora_gguf.convert import offers

    found = offers(reference)
    if as_json:
        rows = [
            {"kind": each.kind, "path": each.path, "bytes": each.nbytes}
            | (each.layout._asdict() if each.layout else {})
            for each in found
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    lines = [
        (*map(printable, each.layout or (each.path or ".", "", "")), _size(each.nbytes))
        for each in found
    ]
    for line in aligned(lines, "<<<>"):
        click.echo(line)
    kinds = {each.kind for each in found}
    ways = {"adapter": "--intrinsic NAME --base BASE for an adapter", "gguf": "--file NAME"}
    hints = " or ".join(way for kind, way in ways.items() if kind in kinds)
    click.echo(f"Fetch one: alora-gguf pull {printable(reference.text)} {hints}", err=True)


def _size(nbytes: int | None) -> str:
    return "?" if nbytes is None else size_text(nbytes)


# What is said of it -----------------------------------------------------------------------------


def _print(pulled: _Pulled, path: Path) -> None:
    from .list import kind_of

    entry, about = pulled.entry, pulled.entry.about
    state = "" if pulled.changed else " (it was there already)"
    click.echo(f"{entry.name}: {kind_of(entry)}, {size_text(entry.nbytes)}{state}")
    rows = {"from": about.origin, "commit": about.commit or "", "base": about.base or ""}
    for label, text in {**rows, "file": str(path)}.items():
        if text or label != "base":
            click.echo(f"  {label:<6}  {printable(text)}")
    for warning in pulled.warnings:
        click.echo(f"warning: {printable(warning)}", err=True)
