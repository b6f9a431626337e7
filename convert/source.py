"""Where an adapter comes from: a PEFT directory (a first version; more kinds of source follow)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alora_gguf.errors import FileFormatError, InputError, UnsupportedAdapterError

from .peft_config import FILE_NAME

_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Source:
    """A PEFT adapter's files, and where they came from."""

    directory: Path
    config: Path
    weights: Path
    io_yaml: Path | None
    licence: str | None
    name: str
    stem: str
    repo: str | None = None
    revision: str | None = None
    path: str | None = None


def find_source(
    source: str | Path,
    *,
    intrinsic: str | None = None,
    model: str | None = None,
    technology: str | None = None,
    allow_pickle: bool = False,
) -> Source:
    """The directory, if it holds the two files; else an error that says what it is instead."""
    source = Path(source)
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
    name = source.resolve().name
    return Source(source, source / FILE_NAME, source / _WEIGHTS, None, None, name, name)
