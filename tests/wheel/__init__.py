"""A wheel for others, in an environment where no compiler is: `make test-wheel`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Final

HOME: Final = Path(__file__).parents[2] / "build" / "wheel-env"
COMPILERS: Final = ("cc", "gcc", "c++", "g++", "clang", "clang++", "cmake", "ninja", "make")


def interpreter() -> str:
    """The environment's Python."""
    return str(HOME / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))


def without_compilers(**more: str) -> dict[str, str]:
    """Variables of a process that finds the environment's programs and nothing that compiles, and
    has no settings of this project's or for this processor.
    """
    left = ("ALORA_", "LLAMA_", "GGML_", "CMAKE_", "PYTHON", "CC", "CXX", "OPENBLAS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left)}
    path = str(Path(interpreter()).parent)
    found = [name for name in COMPILERS if shutil.which(name, path=path)]
    assert not found, f"{path}: has {', '.join(found)}"
    return {**kept, "PATH": path, **more}
