"""Finds the folder of the native libraries. Does not load them.

A wheel has them in `alora_gguf/lib`. An editable install puts them in the same place below
site-packages, while the Python files stay in the repository; scikit-build-core then lists both
folders in the package's `__path__`, so a path made from `__file__` would miss them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .errors import LibraryError

_NAMES = {"darwin": "libllama.dylib", "win32": "llama.dll"}


def library_dir() -> Path:
    """The folder that holds libllama and the ggml libraries it needs.

    Raises LibraryError when there is none: the package was not built, or its build failed.
    """
    name = _NAMES.get(sys.platform, "libllama.so")
    folders = [Path(folder) / "lib" for folder in sys.modules[__package__].__path__]
    for folder in folders:
        if (folder / name).is_file():
            return folder
    looked = "\n".join(f"  {folder}" for folder in folders)
    raise LibraryError(
        f"{name} of alora-gguf was not found. Looked in:\n{looked}\n"
        "Importing from a checkout does not build it: run `make setup` or `pip install .` there, "
        "and reinstall if an earlier installation was interrupted."
    )
