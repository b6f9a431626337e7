"""Finds the folder of the native libraries. Does not load them.

A wheel has them in `alora_gguf/lib`. An editable install puts them in the same place below
site-packages, while the Python files stay in the repository; scikit-build-core then lists both
folders in the package's `__path__`, so a path made from `__file__` would miss them.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # whoever imports the package imports this
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Final

LLAMA_CPP_PYTHON: Final = "0.3.36"
"""The release of llama-cpp-python whose structs the native library has."""

_NAMES = {"darwin": "libllama.dylib", "win32": "llama.dll"}


def library_dir() -> Path:
    """The folder that holds libllama and the ggml libraries it needs.

    Raises LibraryError when there is none: the package was not built, or its build failed.
    """
    from pathlib import Path

    from alora_gguf.errors import LibraryError

    folder = _find()
    if folder is not None:
        return Path(folder)
    looked = "\n".join(f"  {folder}" for folder in _folders())
    raise LibraryError(
        f"{_name()} of alora-gguf was not found. Looked in:\n{looked}\n"
        "Importing from a checkout does not build it: run `make setup` or `pip install .` there, "
        "and reinstall if an earlier installation was interrupted."
    )


def announce() -> None:
    """Says by LLAMA_CPP_LIB_PATH where a later `import llama_cpp` finds a library: installed as our
    dependency it has none of its own. Nothing is loaded, and nothing is said over what somebody
    else has set, or to another release of llama_cpp, whose structs would differ. A wheel's own copy
    of llama_cpp comes behind whatever else is imported from.
    """
    vendored = vendored_binding()
    if vendored is not None and vendored not in sys.path:
        sys.path.append(vendored)
    if "llama_cpp" in sys.modules or "LLAMA_CPP_LIB_PATH" in os.environ:
        return
    folder = os.environ.get("ALORA_LIB_DIR") or _find()
    if folder is not None and _is_our_release():
        os.environ["LLAMA_CPP_LIB_PATH"] = folder


def vendored_binding() -> str | None:
    """The folder of llama-cpp-python's Python files, where a wheel brought them; else None."""
    folders = (f"{each}{os.sep}_vendor" for each in sys.modules["alora_gguf"].__path__)
    return next((each for each in folders if _exists(each)), None)


def other_release() -> str | None:
    """The release of the llama_cpp that would be imported, if that is another one than ours."""
    from pathlib import Path

    vendored = vendored_binding()
    for place in (each or "." for each in sys.path):
        if _exists(f"{place}/llama_cpp"):
            found = Path(place).glob("llama_cpp_python-*.dist-info")
            named = [each.name.removesuffix(".dist-info").partition("-")[2] for each in found]
            ours = place == vendored or LLAMA_CPP_PYTHON in named
            return None if ours else next(iter(named), None)
    return None


def _is_our_release() -> bool:
    """Whether the llama_cpp that would be imported is the one that we are built for."""
    vendored = vendored_binding()
    for place in (each or "." for each in sys.path):
        if _exists(f"{place}/llama_cpp"):
            installed = f"{place}/llama_cpp_python-{LLAMA_CPP_PYTHON}.dist-info"
            return place == vendored or _exists(installed)
    return False


def _find() -> str | None:
    return next((each for each in _folders() if _exists(f"{each}/{_name()}")), None)


def _folders() -> list[str]:
    return [f"{folder}{os.sep}lib" for folder in sys.modules["alora_gguf"].__path__]


def _exists(path: str) -> bool:
    return os.access(path, os.F_OK)  # pathlib would take longer to load than all of this


def _name() -> str:
    return _NAMES.get(sys.platform, "libllama.so")
