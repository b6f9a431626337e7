"""convert_adapter: reads an adapter, checks it against the base, writes the GGUF."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Final

from alora_gguf._calls import checked
from alora_gguf.errors import ContractError, ConvertError, InputError, UnsupportedAdapterError
from alora_gguf.files import check_target
from alora_gguf.gguf.writer import OutTensor, measure_gguf, write_gguf

from .adapter import open_weights, read_adapter_config
from .base.match import compare_base
from .classifier import (
    check_labels,
    convert_classifier,
    holds_head,
    labelled,
    made_contract,
    peft_head,
)
from .find import find_source, open_base
from .library import Pick
from .metadata import OUTTYPES, adapter_metadata
from .peft.config import PeftConfig
from .peft.invocation import find_invocation
from .plan import make_plan
from .report import ConversionReport
from .source import HEAD, Source

_GROWTH: Final = 16  # times the weights; from f16 to f32, and with fused weights, up to 6
_ALWAYS: Final = 256 << 20  # bytes of a file that may be more: adapters of few experts are small
_THREADS: Final = 2  # that make values, beside the one that writes


@checked
def convert_adapter(
    source: str | Path,
    base: str | Path,
    out: str | Path | None = None,
    *,
    pick: Pick = Pick(),  # noqa: B008 - frozen
    outtype: str = "f16",
    name: str | None = None,
    invocation: str | Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    contract: str | Path | bool = True,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Converts a LoRA or aLoRA of PEFT's, or a LoRA of mlx-lm's, to an adapter GGUF, exactly or not
    at all.

    source      directory with adapter_config.json and adapter_model.safetensors (mlx-lm's:
                adapters.safetensors), or one with several such directories, or
                "hf://owner/repo[@revision][/path]"
    base        the model it was trained on: a GGUF, of which only the header is read, a Hugging
                Face model directory, or "hf://owner/repo[@revision][/file.gguf]"
    out         the GGUF to write, which appears complete or not at all; by default the adapter's
                name with ".gguf", in the current directory
    pick        which adapter, if the source has several
    outtype     "f16", "bf16", "f32", where each value is rounded once, or "q8_0"
    name        general.name; by default as the contract or a library's path names the intrinsic,
                else the directory's
    invocation  an aLoRA's invocation, as text or as token ids, where its configuration lacks it
    labels      what a classifier's head tells apart, in the order of its rows: of a LoRA that PEFT
                trained as a sequence classifier, or of Granite Switch's
                classifier_head.safetensors, which then is what `source` holds
    contract    whether the io.yaml beside the adapter goes into it; or another one, or a directory
                that has one
    overwrite   whether an existing `out` may be replaced
    dry_run     does everything but write
    progress    called with the bytes done and the bytes in all

    Raises InputError for unusable arguments, FileFormatError for damaged files, ContractError for
    a contract that cannot be read, UnsupportedAdapterError for what would not convert exactly,
    AdapterMismatchError for another base, ConvertError for values that do not fit and for a file
    system or network that refuses.
    """
    start = time.perf_counter()
    if outtype not in OUTTYPES:
        raise InputError(f"outtype is '{outtype}', expected one of {', '.join(OUTTYPES)}")
    if out is not None and not dry_run:  # before anything is fetched
        _check_out(Path(out), overwrite=overwrite)
    labels = None if labels is None else tuple(labels)
    if labels is not None:
        check_labels(labels)
        if holds_head(source):
            return convert_classifier(
                source, base, None if out is None else Path(out), labels, name=name,
                invocation=invocation, contract=contract, overwrite=overwrite, dry_run=dry_run,
                check=partial(_check_target, overwrite=overwrite, dry_run=dry_run),
                progress=progress,
            )  # fmt: skip
    found = _with_contract(find_source(source, pick, base), contract)
    target = Path(out) if out is not None else Path(f"{found.stem}.gguf")
    _check_target(target, (found.weights, found.config, base), overwrite=overwrite, dry_run=dry_run)
    config = read_adapter_config(found.config)
    _check_labelled(config, labels, invocation)
    opened = cache(lambda: open_base(base))
    with (
        open_weights(config, found.weights, opened) as weights,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        sha256 = pool.submit(weights.sha256)
        from .job import Job  # imports numpy, which takes as long as hashing does

        model = opened()
        activated = invocation is not None or config.names_invocation
        pairs, remarks = make_plan(config, weights, model, activated=activated)
        another = compare_base(config.base_model, model)
        trigger = find_invocation(config, invocation, model)
        job = Job(config, weights, pairs, outtype, pool)
        tensors = job.tensors()
        if labels is not None:
            tensors += peft_head(weights, labels, model)
        if config.tuner != "VERA":  # whose file holds once what all modules share
            _check_growth(tensors, found.weights)
        title, digest = name or found.name, sha256.result()
        metadata = adapter_metadata(
            title, outtype, job.alpha, model, config, trigger, found, digest
        )
        if labels is not None:
            text = None if contract is False else made_contract(found.io_yaml, labels, title)[0]
            metadata = labelled(metadata, labels, model, text)
        if dry_run:
            nbytes = measure_gguf(metadata, tensors, progress)
        else:
            nbytes = write_gguf(target, metadata, tensors, overwrite=overwrite, progress=progress)
    if found.io_yaml is not None and not trigger.tokens and pick.technology is None:
        remarks.append(
            f"{found.name} is a plain LoRA: asked about a conversation it reads all of it "
            "again, where an aLoRA would go on with what the base has read"
        )
    if found.has_head:
        remarks.append(
            f"{HEAD} beside it is left out: it is a classifier of its own, converted with --labels"
        )
    remarks += [another, *(how for _, how in model.departures), *trigger.warnings, *job.warnings]
    kinds = (re.sub(r"^blk\.\d+\.|\.weight$", "", pair.target) for pair in pairs)
    return ConversionReport(
        out=target,
        written=not dry_run,
        name=title,
        kind="alora" if trigger.tokens else "lora",
        architecture=model.architecture,
        invocation=trigger.tokens,
        invocation_text=trigger.text,
        targets=dict(sorted(Counter(kinds).items())),
        ranks=tuple(sorted({pair.rank for pair in pairs})),
        alpha=job.alpha,
        folded=job.folded,
        outtype=outtype,
        nbytes=nbytes,
        seconds=time.perf_counter() - start,
        source_sha256=digest,
        warnings=tuple(filter(None, remarks)),
        contract=found.io_yaml,
        labels=labels or (),
    )


def _check_labelled(config: PeftConfig, labels: Sequence[str] | None, invocation: object) -> None:
    """Raises InputError where only one of adapter and caller knows of labels, or it has labels and
    the caller an invocation.
    """
    if config.classifies and invocation is not None:
        raise InputError(
            f"{config.path}: is of a sequence classifier (task_type SEQ_CLS), a plain LoRA; leave "
            "the invocation out"
        )
    if config.classifies and labels is None:
        raise InputError(
            f"{config.path}: is of a sequence classifier (task_type SEQ_CLS); say what the rows of "
            "its head stand for, in their order (--labels LABEL,LABEL)"
        )
    if labels is not None and not config.classifies:
        raise InputError(
            f"{config.path}: is of no classifier (task_type SEQ_CLS), but labels are given; leave "
            "them out"
        )


def _check_growth(tensors: Sequence[OutTensor], weights: Path) -> None:
    """Raises UnsupportedAdapterError, before anything is computed, for a file much larger than what
    it is made of: ranks are padded to the largest of a weight's experts.
    """
    nbytes, most = sum(each.nbytes for each in tensors), _GROWTH * weights.stat().st_size
    if nbytes > max(most, _ALWAYS):
        raise UnsupportedAdapterError(
            f"{weights}: would become {nbytes} bytes, expected at most {_GROWTH} times its own "
            f"{most // _GROWTH}; a few experts have a rank far above the others': train them alike"
        )


def _with_contract(found: Source, wanted: str | Path | bool) -> Source:
    """The adapter with the contract that is wanted. Raises ContractError, MissingFileError."""
    if wanted is False:
        return replace(found, io_yaml=None)
    path = found.io_yaml if wanted is True else Path(wanted)
    if path is None:
        return found
    from alora_gguf.intrinsics.contract import Contract, file_in  # imports PyYAML

    path = file_in(path)
    try:
        Contract.read(path)
    except ContractError as error:
        raise ContractError(
            f"{error}; or convert with another contract (--contract FILE), or without one "
            "(--no-contract)"
        ) from error
    return replace(found, io_yaml=path)


def _check_target(
    path: Path, inputs: Sequence[str | Path], *, overwrite: bool, dry_run: bool
) -> None:
    if not dry_run:
        _check_out(path, overwrite=overwrite)
        _check_not_an_input(path, inputs)


def _check_out(path: Path, *, overwrite: bool) -> None:
    instead = "--dry-run checks without writing"
    check_target(path, overwrite=overwrite, what="GGUF", instead=instead, error=ConvertError)


def _check_not_an_input(out: Path, inputs: Sequence[str | Path]) -> None:
    for path in inputs:
        try:
            same = out.samefile(path)
        except (OSError, ValueError):  # one of them does not exist, or cannot
            continue
        if same:
            raise InputError(f"{out}: is one of the files to convert from; choose another name")
