"""Builds libraries for the tests with CMake."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
from pathlib import Path

from alora_gguf.files import locked


def cmake_build(source: Path, folder: Path, target: str, **settings: object) -> None:
    """Configures `source` in `folder` and builds one target of it, one process after another: all
    those of a test run come here at the same time.
    """
    cmake, ninja = build_tool("cmake"), build_tool("ninja")
    if cmake is None:
        raise RuntimeError("CMake was not found: pip install -r requirements-build.txt")
    configure: list[str | Path] = [cmake, "-S", source, "-B", folder]
    configure += [f"-D{name}={value}" for name, value in settings.items()]
    configure += ["-DCMAKE_BUILD_TYPE=Release"]
    if ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    build = [cmake, "--build", folder, "--target", target, "--parallel", str(os.cpu_count() or 1)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.lock")):
        _run(configure)
        _run(build)


def build_tool(name: str) -> str | None:
    """A build tool: from its PyPI package when installed, else from PATH."""
    try:
        folder = importlib.import_module(name)
    except ImportError:
        return shutil.which(name)
    constant = {"cmake": "CMAKE_BIN_DIR", "ninja": "BIN_DIR"}[name]
    return shutil.which(name, path=str(getattr(folder, constant)))


def _run(command: list[str | Path]) -> None:
    """Runs a command; its whole output is in the error when it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        words = " ".join(str(word) for word in command)
        raise RuntimeError(f"{words}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
