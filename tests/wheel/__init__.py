"""A wheel for others, in an environment where no compiler is: `make test-wheel`."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

BUILD: Final = Path(__file__).parents[2] / "build"
HOME: Final = BUILD / "wheel-env"
COMPILERS: Final = ("cc", "gcc", "c++", "g++", "clang", "clang++", "cmake", "ninja", "make")


def processor(wheel: str) -> str:
    """What a wheel's name says that it is for, such as x86_64; empty where it names none."""
    found = re.search(r"(x86_64|amd64|aarch64|arm64)\.whl$", wheel)
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(found[1], found[1]) if found else ""


def is_foreign(wheel: str) -> bool:
    """Whether it is for another processor than this machine's, which is emulated."""
    here = platform.machine().lower()
    return processor(wheel) != {"amd64": "x86_64", "arm64": "aarch64"}.get(here, here)


def interpreter(wheel: str) -> list[str]:
    """What runs the environment's Python."""
    if is_foreign(wheel):
        from .foreign import ROOT, emulator

        return [emulator(), "-L", str(ROOT), str(ROOT / "usr" / "bin" / "python3")]
    return [str(HOME / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))]


def install(wheel: Path) -> None:
    """Makes the environment, anew, with a wheel and what it needs, of which nothing is compiled."""
    if is_foreign(wheel.name):
        from .foreign import install_there

        install_there(wheel)
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", HOME], check=True)
    pip = [*interpreter(wheel.name), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, "--only-binary", ":all:", wheel], env=without_compilers(), check=True)


def without_compilers(**more: str) -> dict[str, str]:
    """Variables of a process that finds the environment's programs and nothing that compiles, and
    has no settings of this project's or for this processor.
    """
    left = ("ALORA_", "LLAMA_", "GGML_", "CMAKE_", "PYTHON", "CC", "CXX", "OPENBLAS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left)}
    path = str(HOME / ("Scripts" if sys.platform == "win32" else "bin"))
    found = [name for name in COMPILERS if shutil.which(name, path=path)]
    assert not found, f"{path}: has {', '.join(found)}"
    return {**kept, "PATH": path, **more}
