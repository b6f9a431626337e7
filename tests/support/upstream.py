"""Finds the unpatched upstream tree, whose converters are the tests' peers."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def upstream_tree() -> Path:
    """The pristine llama.cpp tree; fetched on first use. ALORA_UPSTREAM_TREE overrides it."""
    override = os.environ.get("ALORA_UPSTREAM_TREE")
    if override:
        return Path(override)
    # where CMake puts it, so that a build and the tests share one download
    dest = ROOT / "build" / "upstream"
    script = ROOT / "native" / "fetch_upstream.py"
    run = subprocess.run(
        [sys.executable, str(script), "--no-patch", "--dest", str(dest)],
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise RuntimeError(f"{script.name} failed:\n{run.stderr or run.stdout}")
    tree = Path(run.stdout.strip().splitlines()[-1])
    if not (tree / "conversion").is_dir():
        raise RuntimeError(f"{tree} holds no `conversion` package")
    return tree


@functools.cache
def upstream_gguf(module: str) -> Any:
    """A module of the tree's own `gguf`, which knows more architectures than the installed one:
    "constants" or "tensor_mapping".
    """
    package = types.ModuleType("upstream_gguf")
    package.__path__ = [str(upstream_tree() / "gguf-py" / "gguf")]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"{package.__name__}.{module}")


def sdist(folder: Path) -> Path:
    """The pinned source distribution of llama-cpp-python, checked; fetched into `folder` unless
    ALORA_UPSTREAM_SDIST names it.
    """
    code = (
        "import sys; from pathlib import Path; import fetch_upstream as f\n"
        "pin = f.read_pin(f.NATIVE / 'upstream.txt')\n"
        "given = sys.argv[2] and Path(sys.argv[2])\n"
        "file = given or f.download(pin, Path(sys.argv[1]))\n"
        "f.verify(pin, file); print(file)"
    )
    given = os.environ.get("ALORA_UPSTREAM_SDIST", "")
    run = subprocess.run(
        [sys.executable, "-c", code, str(folder), given],
        env={**os.environ, "PYTHONPATH": str(ROOT / "native")},
        capture_output=True,
        text=True,
    )
    if run.returncode:
        raise RuntimeError(f"fetch_upstream failed:\n{run.stderr or run.stdout}")
    return Path(run.stdout.strip().splitlines()[-1])
