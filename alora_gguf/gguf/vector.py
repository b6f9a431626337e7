"""Steering vectors in files: all of them that others use, and which kind an adapter's file is. They
are written by vector_writer.py.
"""

from __future__ import annotations

import os

from alora_gguf._calls import checked
from alora_gguf.errors import FileFormatError, MissingFileError

from .adapter import AdapterFile
from .directions import Directions
from .glp import HOOKS, OPERATIONS, Hook, Operation, is_vector
from .header import read_header
from .vector_file import VectorFile, VectorOrigin

__all__ = [
    "HOOKS",
    "OPERATIONS",
    "Directions",
    "Hook",
    "Operation",
    "VectorFile",
    "VectorOrigin",
    "is_vector",
    "read_adapter",
]


@checked
def read_adapter(path: str | os.PathLike[str]) -> AdapterFile | VectorFile:
    """Reads a LoRA, an activated LoRA or a steering vector, whichever the file is. Raises
    AdapterFormatError, and MissingFileError.
    """
    try:
        vector = is_vector(read_header(path))
    except (FileFormatError, MissingFileError):
        vector = False  # what is wrong with it is told in the words for adapters
    return VectorFile.read(path) if vector else AdapterFile.read(path)
