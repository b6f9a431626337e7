"""convert_adapter: reads a PEFT directory, checks it against the base, writes the GGUF."""

from __future__ import annotations

import re
import struct
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alora_gguf.errors import (
    AdapterMismatchError,
    ConvertError,
    FileFormatError,
    InputError,
    UnsupportedAdapterError,
)
from alora_gguf.gguf_types import ValueType

from .base_model import BaseModel
from .peft_config import FILE_NAME, PeftConfig, read_config
from .plan import Pair, Plan, make_plan
from .report import ConversionReport
from .safetensors_file import SafetensorsFile
from .values import OUTTYPES, check_finite, encode, fold, head_order
from .writer import OutTensor, Value, check_target, write_gguf

_WEIGHTS = "adapter_model.safetensors"


def convert_adapter(
    source: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    outtype: str = "f16",
    name: str | None = None,
    invocation_tokens: Sequence[int] | None = None,
    overwrite: bool = False,
) -> ConversionReport:
    """Converts a PEFT LoRA or aLoRA directory to an adapter GGUF, exactly or not at all.

    source             directory with adapter_config.json and adapter_model.safetensors
    base               GGUF of the model it was trained on; only its header is read
    out                the GGUF to write; it appears complete or not at all
    outtype            "f16", "bf16" or "f32": each value is rounded to it once
    name               general.name; the source directory's name by default
    invocation_tokens  an aLoRA's ids, where adapter_config.json lacks them
    overwrite          whether an existing `out` may be replaced

    Raises InputError for unusable arguments, FileFormatError for damaged files,
    UnsupportedAdapterError for what would not convert exactly, AdapterMismatchError for another
    base, ConvertError for values that do not fit and for a file system that refuses.
    """
    start = time.perf_counter()
    source, out = Path(source), Path(out)
    if outtype not in OUTTYPES:
        raise InputError(f"outtype is '{outtype}', expected one of {', '.join(OUTTYPES)}")
    check_target(out, overwrite=overwrite)
    config = read_config(_check_source(source) / FILE_NAME)
    weights = SafetensorsFile(source / _WEIGHTS)
    model = BaseModel(Path(base))
    _check_not_an_input(out, (model.path, weights.path, config.path))
    plan = make_plan(config, weights, model)
    invocation = _invocation(config, invocation_tokens, model, plan)

    job = _Job(config, weights, plan, outtype)
    sha256 = weights.sha256()
    title = name or source.resolve().name
    metadata = _metadata(title, config, model, job, invocation, sha256)
    nbytes = write_gguf(out, metadata, job.tensors(), overwrite=overwrite)
    return ConversionReport(
        out=out,
        name=title,
        kind="alora" if invocation else "lora",
        architecture=model.architecture,
        invocation=invocation,
        targets=dict(sorted(Counter(_short(pair.target) for pair in plan.pairs).items())),
        ranks=tuple(sorted({pair.rank for pair in plan.pairs})),
        alpha=job.alpha,
        folded=job.folded,
        outtype=outtype,
        nbytes=nbytes,
        seconds=time.perf_counter() - start,
        source_sha256=sha256,
        warnings=tuple(plan.warnings),
    )


class _Job:
    """Makes the values of a plan's tensors, one at a time, and keeps count."""

    def __init__(
        self, config: PeftConfig, weights: SafetensorsFile, plan: Plan, outtype: str
    ) -> None:
        self.weights = weights
        self.plan = plan
        self.outtype = outtype
        # the one alpha of the file; GGUF keeps it as float32, so folding starts from that value
        self.alpha: float = struct.unpack("<f", struct.pack("<f", config.alpha))[0]
        self.folded = sum(self.factor(pair) != 1.0 for pair in plan.pairs)
        self.changes_anything = False
        self.a_is_zero = False

    def factor(self, pair: Pair) -> float:
        """What B is multiplied with, for llama.cpp's alpha/rank to give the pair's own scale."""
        return pair.scale * pair.rank / self.alpha

    def tensors(self) -> list[OutTensor]:
        """The file's tensors: every pair's A, then its B; the writer keeps the order."""
        kind, _ = OUTTYPES[self.outtype]
        out = []
        for pair in self.plan.pairs:
            (rank, n_in), (n_out, _) = pair.a.shape, pair.b.shape
            a_shape = (rank, n_in) if pair.flip_a else (n_in, rank)
            out.append(
                OutTensor(f"{pair.target}.lora_a", a_shape, kind, partial(self.make_a, pair))
            )
            out.append(
                OutTensor(f"{pair.target}.lora_b", (rank, n_out), kind, partial(self.make_b, pair))
            )
        return out

    def make_a(self, pair: Pair) -> bytes:
        """The bytes of a pair's A."""
        values = self._read(pair.a.name)
        self.a_is_zero = not values.any()
        return self._encode(values.T if pair.flip_a else values, pair.a.name)

    def make_b(self, pair: Pair) -> bytes:
        """The bytes of a pair's B, scaled and with its rows in llama.cpp's order."""
        values = self._read(pair.b.name)
        self.changes_anything |= not self.a_is_zero and bool(values.any())
        if pair is self.plan.pairs[-1] and not self.changes_anything:
            raise ConvertError(
                f"{self.weights.path}: in every pair lora_A or lora_B is zero throughout, so the "
                "adapter changes nothing; it was probably saved before it was trained"
            )
        rows = fold(values, self.factor(pair))
        return self._encode(head_order(rows, pair.heads) if pair.heads else rows, pair.b.name)

    def _read(self, name: str) -> NDArray[np.float32]:
        values = self.weights.read(name)
        check_finite(values, str(self.weights.path), name)
        return values

    def _encode(self, values: NDArray[np.floating], name: str) -> bytes:
        data, lost = encode(values, self.outtype, name)
        if lost * 1000 > values.size:
            self.plan.warnings.append(
                f"'{name}': {lost} of {values.size} values are too small for {self.outtype} and "
                "became zero; f32 would keep them"
            )
        return data


def _check_source(source: Path) -> Path:
    """The directory, if it holds the two files; else an error that says what it is instead."""
    if source.is_file():
        raise InputError(f"{source}: is a file, expected the PEFT directory it lies in")
    if not source.is_dir():
        raise InputError(f"{source}: there is no such directory")
    if not (source / _WEIGHTS).exists() and (source / FILE_NAME).exists():
        if (source / "adapter_model.bin").exists():
            raise UnsupportedAdapterError(
                f"{source}: holds only adapter_model.bin, a pickle, which can run any code when it "
                "is loaded; load it with PEFT where you trust it and save it again: "
                "save_pretrained(..., safe_serialization=True) writes adapter_model.safetensors"
            )
        raise FileFormatError(
            f"{source / _WEIGHTS}: there is no such file; save the adapter again with PEFT's "
            "save_pretrained(), which writes it beside adapter_config.json"
        )
    return source


def _check_not_an_input(out: Path, inputs: Sequence[Path]) -> None:
    for path in inputs:
        if out.exists() and out.samefile(path):
            raise InputError(f"{out}: is one of the files to convert from; choose another name")


def _invocation(
    config: PeftConfig, given: Sequence[int] | None, base: BaseModel, plan: Plan
) -> tuple[int, ...]:
    """The ids that switch the adapter on, from the configuration or the caller; () for a LoRA."""
    if given is not None and not given:
        raise InputError("the invocation tokens are empty; leave them out for a plain LoRA")
    if config.invocation and given is not None and tuple(given) != config.invocation:
        raise InputError(
            f"{config.path}: alora_invocation_tokens = {list(config.invocation)} differs from "
            f"the given invocation tokens {list(given)}; leave them out to use the file's"
        )
    if config.invocation_text and not config.invocation and given is None:
        raise UnsupportedAdapterError(
            f"{config.path}: has an invocation_string but no alora_invocation_tokens, and this "
            "version does not tokenise; pass the ids with --invocation-tokens. In this older "
            "format the adapter is on after the string's first token, so leave the first id out"
        )
    if given is not None and not config.invocation and not config.invocation_text:
        plan.warnings.append(
            f"{FILE_NAME} names no invocation; converted as an aLoRA because tokens were given"
        )
    ids = config.invocation or tuple(given or ())
    for number in ids:
        if not 0 <= number < base.n_vocab:
            raise AdapterMismatchError(
                f"{base.path}: has the token ids 0 to {base.n_vocab - 1}, but the invocation "
                f"{list(ids)} contains {number}; was the adapter trained on another base?"
            )
    return ids


def _metadata(
    title: str,
    config: PeftConfig,
    base: BaseModel,
    job: _Job,
    invocation: tuple[int, ...],
    sha256: str,
) -> list[tuple[str, ValueType, Value]]:
    """What stock llama.cpp reads, then our own `alora.*` keys, which it ignores."""
    text, number, real = ValueType.STRING, ValueType.UINT32, ValueType.FLOAT32
    out: list[tuple[str, ValueType, Value]] = [
        ("general.architecture", text, base.architecture),
        ("general.type", text, "adapter"),
        ("general.name", text, title),
        ("general.file_type", number, OUTTYPES[job.outtype][1]),
        ("adapter.type", text, "lora"),
        ("adapter.lora.alpha", real, job.alpha),
    ]
    if invocation:
        out.append(("adapter.alora.invocation_tokens", ValueType.ARRAY, invocation))
    if invocation and config.invocation_text:
        out.append(("alora.invocation_text", text, config.invocation_text))
    # a model's name on the hub; a path on somebody's disk would tell nobody anything
    if config.base_model and re.fullmatch(r"[\w.-]+/[\w.-]+", config.base_model):
        out.append(("alora.source.base_model", text, config.base_model))
    if config.peft_version:
        out.append(("alora.source.peft_version", text, config.peft_version))
    out.append(("alora.source.sha256", text, sha256))
    return out


def _short(target: str) -> str:
    """A target without its layer: "blk.3.attn_q.weight" is an "attn_q"."""
    return re.sub(r"^blk\.\d+\.", "", target).removesuffix(".weight")
