"""export_adapter(): the way back from an adapter GGUF to a PEFT directory, exactly or not at all.

The base's tables say which modules its tensors are; unstack.py takes their factors apart, and what
PEFT's configuration says of them is decided here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alora_gguf._calls import checked
from alora_gguf.errors import AdapterMismatchError, ConvertError, UnsupportedAdapterError
from alora_gguf.files import check_directory, write_whole_directory
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.head import LABELS
from alora_gguf.gguf.header import read_header

from .adapter import WEIGHTS
from .find import open_base
from .peft.config import FILE_NAME, writes_new_experts
from .plan import SCORE
from .source import IO_YAML, README

if TYPE_CHECKING:
    from .base.model import BaseModel
    from .unstack import Factors

_KEPT: Final = (  # what PEFT's files say again, or what a conversion finds anew
    "general.alignment",
    "general.architecture",
    "general.base_model.",
    "general.file_type",
    "general.license",
    "general.name",
    "general.quantization_version",
    "general.type",
    "adapter.",
    "alora.invocation_text",
    "alora.io_yaml",
    "alora.source.",
    "alora.vocab.sha256",
)
_EXPERTS_PEFT: Final = "0.19.0"  # the first that stores experts' factors as they are written here


@dataclass(frozen=True)
class ExportReport:
    """The outcome of export_adapter().

    out       the directory
    kind      "alora" or "lora"
    modules   how many modules, or parameters of modules, have factors
    ranks     the ranks that occur, ascending
    nbytes    the size of the weights' file
    warnings  what the user should know, one sentence each
    """

    out: Path
    name: str
    kind: str
    architecture: str
    modules: int
    ranks: tuple[int, ...]
    nbytes: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return {**vars(self), "out": str(self.out)}


@checked
def export_adapter(adapter: str | Path, base: str | Path, out: str | Path) -> ExportReport:
    """Writes an adapter GGUF as a directory that PEFT loads and convert_adapter() converts to the
    same tensors.

    adapter  the LoRA's or aLoRA's GGUF
    base     the model that it is for, as for convert_adapter()
    out      the directory, which must not exist or be empty; it appears whole or not at all

    Values keep their type; q8_0, which PEFT has not, becomes float32.

    Raises InputError for unusable arguments, AdapterFormatError and FileFormatError for damaged
    files, AdapterMismatchError for another base, UnsupportedAdapterError for what PEFT cannot hold,
    ConvertError for a file system that refuses.
    """
    target = check_directory(Path(out))
    exported = Exported(adapter, open_base(base))
    with write_whole_directory(target, error=ConvertError) as folder:
        nbytes = exported.write(folder)
    return exported.report(target, nbytes)


class Exported:
    """An adapter's file as modules of transformers, to be written as PEFT writes them."""

    def __init__(self, adapter: str | Path, model: BaseModel) -> None:
        """Raises what export_adapter() does of an adapter."""
        from .unstack import unstack  # imports numpy

        self.file = file = AdapterFile.read(adapter)
        if file.architecture != model.architecture:
            raise AdapterMismatchError(
                f"{file.path}: was made for the architecture '{file.architecture}', but "
                f"{model.label} is '{model.architecture}'; give the base it was trained on"
            )
        self.kind = file.kind
        if file.classifier and file.classifier.bias.any():
            raise UnsupportedAdapterError(
                f"{file.path}: its classifier's head has a bias, which the heads of PEFT's "
                "sequence classifiers have not"
            )
        self._found = unstack(file, model)
        self._metadata = read_header(file.data, name=str(file.path)).metadata

    def write(self, folder: Path) -> int:
        """The files of its directory; returns the size of the weights'. Raises OSError."""
        from .peft.writer import write_safetensors

        nbytes = write_safetensors(folder / WEIGHTS, _tensors(self.file, self._found))
        config = _config(self.file, self._found, self._metadata)
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / FILE_NAME).write_text(text, encoding="utf-8")
        if self.file.io_yaml is not None:
            (folder / IO_YAML[0]).write_bytes(self.file.io_yaml.encode())
        licence = self._metadata.get("general.license")
        if isinstance(licence, str):
            front = f"---\nlicense: {json.dumps(licence)}\n---\n"
            (folder / README).write_text(front, encoding="utf-8")
        return nbytes

    def report(self, out: Path, nbytes: int) -> ExportReport:
        """What is said of it in the directory `out`."""
        return ExportReport(
            out=out,
            name=self.file.name,
            kind=self.kind,
            architecture=self.file.architecture,
            modules=len(self._found),
            ranks=tuple(sorted({each.rank for each in self._found})),
            nbytes=nbytes,
            warnings=tuple(_warnings(self.file, self._found, self._metadata)),
        )


def _config(
    file: AdapterFile, found: Sequence[Factors], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """PEFT's adapter_config.json."""
    ranks = Counter(each.rank for each in found)
    rank = max(ranks, key=lambda r: (ranks[r], r))
    # what PEFT multiplies with is alpha/rank, for most with the file's own alpha
    alpha = file.alpha or float(rank)
    version = metadata.get("alora.source.peft_version")
    modules, parameters = (
        sorted({each.target for each in found if each.parameter == kind}) for kind in (False, True)
    )
    if parameters and not writes_new_experts(version):
        version = _EXPERTS_PEFT
    names = [metadata.get(f"general.base_model.0.{key}") for key in ("organization", "name")]
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if file.classifier else "CAUSAL_LM",
        "modules_to_save": ["classifier", "score"] if file.classifier else None,
        "base_model_name_or_path": "/".join(str(name) for name in names if name) or None,
        "inference_mode": True,
        "bias": "none",
        "r": rank,
        "lora_alpha": _number(alpha),
        "lora_dropout": 0.0,
        "rank_pattern": {each.name: each.rank for each in found if each.rank != rank},
        "alpha_pattern": {
            each.name: _number(each.scale * each.rank)
            for each in found
            if abs(each.scale * each.rank / alpha - 1) > 1e-12
        },
        "target_modules": modules,
        "target_parameters": parameters or None,
        "alora_invocation_tokens": list(file.invocation) or None,
        "peft_version": version,
    }
    return {key: value for key, value in config.items() if value is not None}


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _tensors(file: AdapterFile, found: Sequence[Factors]) -> dict[str, tuple[str, Any]]:
    """The file's tensors by name, each with safetensors' type and its values' bits."""
    out: dict[str, tuple[str, Any]] = {}
    if file.classifier:
        out[SCORE] = "F32", file.classifier.weight
    for each in found:
        for side, kind, values in zip("AB", each.kinds, (each.a, each.b), strict=True):
            suffix = f"lora_embedding_{side}" if each.embedding else f"lora_{side}.weight"
            out[f"base_model.model.{each.module}.{suffix}"] = kind, values
    return out


def _warnings(
    file: AdapterFile, found: Sequence[Factors], metadata: Mapping[str, Any]
) -> Iterator[str]:
    kept = (*_KEPT, LABELS.format(file.architecture))
    lost = [key for key in metadata if not key.startswith(kept)]
    if lost:
        yield f"PEFT's files have no place for {', '.join(sorted(lost))}; left out"
    if file.labels:
        yield (
            f"PEFT's files do not say what labels are ({', '.join(file.labels)}); give them again "
            "to convert it (--labels)"
        )
    if file.invocation and any(each.parameter for each in found):
        yield (
            "PEFT refuses an aLoRA on experts' parameters, which this one has; it can be "
            "converted again, but PEFT will not load it"
        )
    if any(info.type_name == "Q8_0" for pair in file.pairs for info in (pair.a, pair.b)):
        yield "PEFT has no q8_0: its values are written as float32"
