"""Opens the base that an adapter is converted for: a GGUF, a Hugging Face directory, or a hub's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alora_gguf.errors import FileFormatError, InputError
from alora_gguf.gguf.header import GGUFHeader, read_header
from alora_gguf.gguf.split import parts_of

from .base_model import BaseModel
from .gguf_base import GGUFBase
from .hub_reference import is_reference
from .peft_config import FILE_NAME

_CONFIG: Final = "config.json"
_SHOWN: Final = 6  # of the files in a message


def open_base(base: str | Path) -> BaseModel:
    """The base model, of which no weights are read.

    base  a GGUF, of which only the header is read; a directory with config.json; or
          "hf://owner/repo[/path][@revision]", where the path may be that of a GGUF

    Raises InputError where there is no base, FileFormatError for files that are not sound,
    ConvertError for what is no whole model and for a hub that fails, and UnsupportedAdapterError
    for families that are not supported.
    """
    if is_reference(base):
        from .hub import fetch_base

        fetched = fetch_base(base)
        if isinstance(fetched, GGUFHeader):
            return GGUFBase(fetched)
        return _open_directory(fetched, str(base))
    path = Path(base)
    try:
        is_directory, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if is_directory:
        return _open_directory(path, str(path))
    if not exists:
        raise InputError(
            f"{path}: there is no such file or directory; expected the base model: a GGUF, a "
            "directory with config.json, or hf://owner/repo"
        )
    if path.suffix in (".json", ".safetensors", ".bin", ".pt", ".pth"):
        raise InputError(
            f"{path}: is one of a model's files, expected the base as a GGUF, or the directory "
            f"that holds its {_CONFIG}"
        )
    return GGUFBase(_read_parts(path))


def _read_parts(path: Path) -> GGUFHeader:
    """A GGUF's header, and of a split model's first part one with the tensors of all parts."""
    header = read_header(path)
    names = parts_of(path.name)
    if header.metadata.get("split.count") == len(names) and path.name == names[0]:
        for name in names[1:]:
            if (part := path.with_name(name)).exists():
                header.tensors.update(read_header(part).tensors)
    return header


def _open_directory(directory: Path, label: str) -> BaseModel:
    if (directory / _CONFIG).is_file():
        from .hf_base import HFBase

        return HFBase(directory, label)
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise FileFormatError(f"{label}: cannot be read: {error.strerror or error}") from error
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        shown = ", ".join(ggufs[:_SHOWN]) + ", ..." * (len(ggufs) > _SHOWN)
        raise InputError(f"{label}: is a directory, expected one GGUF; name one in it: {shown}")
    if FILE_NAME in names:
        raise InputError(
            f"{label}: is a PEFT adapter ({FILE_NAME}), expected the base model that it was "
            "trained on"
        )
    raise InputError(
        f"{label}: holds neither a {_CONFIG} nor a GGUF, expected the base model the adapter was "
        "trained on; give its GGUF or its model directory"
    )
