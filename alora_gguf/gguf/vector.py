"""Steering vectors in files: all of them that others use, and which kind an adapter's file is. They
are written by vector_writer.py.
"""

from __future__ import annotations

import os

from alora_gguf._calls import checked
from alora_gguf.errors import FileFormatError, MissingFileError

from .adapter import AdapterFile
from .classifier import ClassifierFile, is_classifier
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
def read_adapter(path: str | os.PathLike[str]) -> AdapterFile | VectorFile | ClassifierFile:
    """Reads a LoRA, an activated LoRA, a steering vector or a classifier's head, whichever the file
    is. Raises AdapterFormatError, and MissingFileError.
    """
    try:
        header = read_header(path)
    except (FileFormatError, MissingFileError):
        return AdapterFile.read(path)  # what is wrong with it is told in the words for adapters
    if is_vector(header):
        return VectorFile.read(path)
    return ClassifierFile.read(path) if is_classifier(header) else AdapterFile.read(path)
