"""The demo model that comes with the package: where its files are and how its adapters are asked.

A small chat model and five adapters for it, trained by examples/demo_model, and the conversation
that `alora-gguf demo` plays. Loads none of the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alora_gguf.errors import AdapterError, InputError, ModelError

from .script import DOCUMENTS as DOCUMENTS  # what `alora-gguf demo` and `chat` play with
from .script import N_SHOWN as N_SHOWN
from .script import OF_THE_ANSWER as OF_THE_ANSWER
from .script import TURNS as TURNS
from .script import Turn as Turn

__all__ = [
    "INTRINSICS",
    "adapter_path",
    "adapter_paths",
    "base_path",
    "invocation_of",
    "io_yaml_path",
]

INTRINSICS: Final = ("answerability", "uncertainty", "query_rewrite", "hallucination", "jailbreak")
"""The names of the demo model's intrinsics."""

_FOLDER: Final = Path(__file__).parent
_WAY_OUT: Final = (
    "it comes with alora-gguf: install the package again, or check out alora_gguf/demo again"
)


def base_path() -> Path:
    """The base model's GGUF. Raises ModelError if the installation has lost it."""
    path = _FOLDER / "base.gguf"
    if not path.is_file():
        raise ModelError(f"{path}: the demo's base is missing; {_WAY_OUT}")
    return path


def adapter_path(name: str) -> Path:
    """The aLoRA GGUF of one of INTRINSICS.

    Raises InputError for another name, AdapterError if the installation has lost it.
    """
    return _found(_FOLDER / f"{_known(name)}.gguf", name)


def adapter_paths() -> dict[str, Path]:
    """All of them by name, as Model(adapters=...) takes them."""
    return {name: adapter_path(name) for name in INTRINSICS}


def io_yaml_path(name: str) -> Path:
    """The input and output contract of one of INTRINSICS; raises as adapter_path() does."""
    return _found(_FOLDER / "intrinsics" / _known(name) / "io.yaml", name)


def invocation_of(name: str) -> str:
    """The text that switches an intrinsic on, after a conversation's last whole turn: the beginning
    of a turn of a role of its name. Raises InputError for a name that is not in INTRINSICS.
    """
    return f"<|start_of_role|>{_known(name)}<|end_of_role|>"


def _known(name: str) -> str:
    if name not in INTRINSICS:
        raise InputError(f"the demo has no intrinsic {name!r}, only {', '.join(INTRINSICS)}")
    return name


def _found(path: Path, name: str) -> Path:
    if not path.is_file():
        raise AdapterError(f"{path}: a file of the demo's '{name}' is missing; {_WAY_OUT}")
    return path
