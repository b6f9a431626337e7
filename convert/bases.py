"""Opens the base that an adapter is converted for."""

from __future__ import annotations

from pathlib import Path

from alora_gguf.gguf_header import read_header

from .base_model import BaseModel
from .gguf_base import GGUFBase


def open_base(base: str | Path) -> BaseModel:
    """The base in a GGUF file, of which only the header is read.

    Raises FileFormatError, ConvertError or UnsupportedAdapterError, as GGUFBase does.
    """
    return GGUFBase(read_header(Path(base)))
