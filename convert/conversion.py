"""convert_adapter: reads a PEFT adapter, checks it against the base, writes the GGUF."""

from __future__ import annotations

import re
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alora_gguf.errors import ConvertError, FileFormatError, InputError

from .assemble import make_a, make_b
from .bases import open_base
from .invocation import find_invocation
from .metadata import Origin, adapter_metadata
from .peft_config import PeftConfig, read_config
from .plan import Pair, Plan, make_plan
from .report import ConversionReport
from .safetensors_file import SafetensorsFile, WeightsFile
from .source import Source, find_source
from .values import OUTTYPES, check_finite, encode, stored_type
from .writer import LateString, OutTensor, check_target, measure_gguf, write_gguf


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
    if out is not None and not dry_run:
        check_target(Path(out), overwrite=overwrite)
    found = find_source(
        source,
        intrinsic=pick.intrinsic,
        model=pick.model,
        technology=pick.technology,
        allow_pickle=pick.allow_pickle,
    )
    target = Path(out) if out is not None else Path(f"{found.stem}.gguf")
    if not dry_run:
        check_target(target, overwrite=overwrite)
        _check_not_an_input(target, (found.weights, found.config, base))
    config = read_config(found.config)
    model = open_base(base)
    with closing(_open_weights(found)) as weights, ThreadPoolExecutor(1) as pool:
        plan = make_plan(config, weights, model)
        trigger = find_invocation(config, invocation, model)
        plan.warnings += trigger.warnings
        job = _Job(config, weights, plan, outtype)
        sha256 = pool.submit(weights.sha256)
        title = name or found.name
        origin = Origin(
            LateString(64, sha256.result),
            found.licence,
            found.repo,
            found.revision,
            found.path,
            _read_text(found.io_yaml),
        )
        metadata = adapter_metadata(title, outtype, job.alpha, model, config, trigger, origin)
        if dry_run:
            nbytes = measure_gguf(metadata, job.tensors(), progress)
        else:
            nbytes = write_gguf(
                target, metadata, job.tensors(), overwrite=overwrite, progress=progress
            )
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
            source_sha256=sha256.result(),
            warnings=tuple(plan.warnings),
        )


class _Job:
    """Makes the values of a plan's tensors, one at a time, and keeps count."""

    def __init__(self, config: PeftConfig, weights: WeightsFile, plan: Plan, outtype: str) -> None:
        self.weights = weights
        self.plan = plan
        self.outtype = outtype
        # the one alpha of the file; GGUF keeps it as float32, so folding starts from that value
        self.alpha: float = struct.unpack("<f", struct.pack("<f", config.alpha))[0]
        self.folded = sum(any(f != 1.0 for f in self.factors(pair)) for pair in plan.pairs)
        self.changes_anything = False
        self.a_is_zero = False

    def factors(self, pair: Pair) -> list[float]:
        """What each piece's B is multiplied with, for alpha/rank to give the piece's own scale."""
        return [piece.scale * pair.rank / self.alpha for piece in pair.pieces]

    def tensors(self) -> list[OutTensor]:
        """The file's tensors: every pair's A, then its B; the writer keeps the order."""
        out = []
        for pair in self.plan.pairs:
            experts = (pair.n_experts,) if pair.n_experts else ()
            a_shape = (pair.rank, pair.n_in) if pair.flip_a else (pair.n_in, pair.rank)
            for suffix, shape, make in (
                ("lora_a", a_shape, self.make_a),
                ("lora_b", (pair.rank, pair.n_out), self.make_b),
            ):
                kind = stored_type(self.outtype, shape[0])
                data = partial(make, pair, kind)
                name = f"{pair.target}.{suffix}"
                out.append(OutTensor(name, (*shape, *experts), OUTTYPES[kind][0], data))
        return out

    def make_a(self, pair: Pair, kind: str) -> bytes:
        """The bytes of a pair's A."""
        values = make_a(pair, self._read)
        self.a_is_zero = not values.any()
        return self._encode(values, kind, pair.pieces[0].a.name)

    def make_b(self, pair: Pair, kind: str) -> bytes:
        """The bytes of a pair's B, scaled and with its rows in llama.cpp's order."""
        values = make_b(pair, self._read, self.factors(pair))
        self.changes_anything |= not self.a_is_zero and bool(values.any())
        if pair is self.plan.pairs[-1] and not self.changes_anything:
            raise ConvertError(
                f"{self.weights.path}: in every pair lora_A or lora_B is zero throughout, so the "
                "adapter changes nothing; it was probably saved before it was trained"
            )
        return self._encode(values, kind, pair.pieces[0].b.name)

    def _read(self, name: str) -> NDArray[np.floating]:
        values = self.weights.read(name)
        check_finite(values, str(self.weights.path), name)
        return values

    def _encode(self, values: NDArray[np.floating], kind: str, name: str) -> bytes:
        data, lost = encode(values, kind, name)
        if lost * 1000 > values.size:
            self.plan.warnings.append(
                f"'{name}': {lost} of {values.size} values are too small for {kind} and became "
                "zero; f32 would keep them"
            )
        return data


def _open_weights(found: Source) -> WeightsFile:
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


def _check_not_an_input(out: Path, inputs: Sequence[str | Path]) -> None:
    for path in inputs:
        if out.exists() and Path(path).exists() and out.samefile(path):
            raise InputError(f"{out}: is one of the files to convert from; choose another name")


def _short(target: str) -> str:
    """A target without its layer: "blk.3.attn_q" is an "attn_q"."""
    return re.sub(r"^blk\.\d+\.", "", target).removesuffix(".weight")
