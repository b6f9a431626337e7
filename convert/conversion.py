"""convert_adapter: reads a PEFT adapter, checks it against the base, writes the GGUF."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alora_gguf.errors import ConvertError, FileFormatError, InputError
from alora_gguf.files import check_target
from alora_gguf.gguf.writer import measure_gguf, write_gguf

from .base_match import compare_base
from .bases import open_base
from .invocation import find_invocation
from .metadata import Origin, adapter_metadata
from .outtypes import OUTTYPES
from .peft_config import read_config
from .plan import make_plan
from .report import ConversionReport
from .safetensors_file import SafetensorsFile
from .source import Source, find_source

if TYPE_CHECKING:
    from .pickle_file import PickleFile

_THREADS: Final = 2  # that make values, beside the one that writes


@dataclass(frozen=True)
class Pick:
    """Which adapter of a library is meant, and whether a pickle may be read.

    intrinsic     such as "answerability"
    model         the base's name, such as "granite-3.3-2b-instruct"
    technology    "alora" or "lora"
    allow_pickle  reads adapter_model.bin where there is no adapter_model.safetensors; needs torch,
                  and is for files you trust: torch's restricted loader has had holes
    """

    intrinsic: str | None = None
    model: str | None = None
    technology: str | None = None
    allow_pickle: bool = False


def convert_adapter(
    source: str | Path,
    base: str | Path,
    out: str | Path | None = None,
    *,
    pick: Pick = Pick(),
    outtype: str = "f16",
    name: str | None = None,
    invocation: str | Sequence[int] | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Converts a PEFT LoRA or aLoRA to an adapter GGUF, exactly or not at all.

    source      directory with adapter_config.json and adapter_model.safetensors, or one with
                several such directories, or "hf://owner/repo[/path][@revision]"
    base        the model it was trained on: a GGUF, of which only the header is read, a Hugging
                Face model directory, or "hf://owner/repo[/file.gguf][@revision]"
    out         the GGUF to write, which appears complete or not at all; by default the adapter's
                name with ".gguf", in the current directory
    pick        which adapter, if the source has several
    outtype     "f16", "bf16", "f32", where each value is rounded once, or "q8_0"
    name        general.name; the intrinsic's or the directory's name by default
    invocation  an aLoRA's invocation, as text or as token ids, where its configuration lacks it
    overwrite   whether an existing `out` may be replaced
    dry_run     does everything but write
    progress    called with the bytes done and the bytes in all

    Raises InputError for unusable arguments, FileFormatError for damaged files,
    UnsupportedAdapterError for what would not convert exactly, AdapterMismatchError for another
    base, ConvertError for values that do not fit and for a file system or network that refuses.
    """
    start = time.perf_counter()
    if outtype not in OUTTYPES:
        raise InputError(f"outtype is '{outtype}', expected one of {', '.join(OUTTYPES)}")
    if out is not None and not dry_run:  # before anything is fetched
        _check_out(Path(out), overwrite=overwrite)
    found = find_source(
        source,
        intrinsic=pick.intrinsic,
        model=pick.model,
        technology=pick.technology,
        allow_pickle=pick.allow_pickle,
    )
    target = Path(out) if out is not None else Path(f"{found.stem}.gguf")
    if not dry_run:
        _check_out(target, overwrite=overwrite)
        _check_not_an_input(target, (found.weights, found.config, base))
    config = read_config(found.config)
    with closing(_open_weights(found)) as weights, ThreadPoolExecutor(_THREADS) as pool:
        sha256 = pool.submit(weights.sha256)
        from .job import Job  # imports numpy, which takes as long as hashing does

        model = open_base(base)
        activated = invocation is not None or config.names_invocation
        plan = make_plan(config, weights, model, activated=activated)
        if another := compare_base(config.base_model, model):
            plan.warnings.append(another)
        trigger = find_invocation(config, invocation, model)
        plan.warnings += trigger.warnings
        job = Job(config, weights, plan, outtype, pool)
        title = name or found.name
        origin = _origin(found, sha256.result())
        metadata = adapter_metadata(title, outtype, job.alpha, model, config, trigger, origin)
        tensors = job.tensors()
        if dry_run:
            nbytes = measure_gguf(metadata, tensors, progress)
        else:
            nbytes = write_gguf(target, metadata, tensors, overwrite=overwrite, progress=progress)
    return ConversionReport(
        out=target,
        written=not dry_run,
        name=title,
        kind="alora" if trigger.tokens else "lora",
        architecture=model.architecture,
        invocation=trigger.tokens,
        invocation_text=trigger.text,
        targets=dict(sorted(Counter(_short(pair.target) for pair in plan.pairs).items())),
        ranks=tuple(sorted({pair.rank for pair in plan.pairs})),
        alpha=job.alpha,
        folded=job.folded,
        outtype=outtype,
        nbytes=nbytes,
        seconds=time.perf_counter() - start,
        source_sha256=origin.sha256,
        warnings=tuple(plan.warnings),
    )


def _origin(found: Source, sha256: str) -> Origin:
    contract = _read_text(found.io_yaml)
    return Origin(sha256, found.licence, found.repo, found.revision, found.path, contract)


def _open_weights(found: Source) -> SafetensorsFile | PickleFile:
    if found.weights.suffix == ".bin":  # find_source gives one only if the caller allows it
        from .pickle_file import PickleFile

        return PickleFile(found.weights)
    return SafetensorsFile(found.weights)


def _read_text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise FileFormatError(f"{path}: is not UTF-8; save it again") from None


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


def _short(target: str) -> str:
    """A target without its layer: "blk.3.attn_q" is an "attn_q"."""
    return re.sub(r"^blk\.\d+\.", "", target).removesuffix(".weight")
