"""What a wheel of alora-gguf depends on: a provider of pyproject.toml's [[tool.dynamic-metadata]].

Where ALORA_WHEEL is set a wheel for others is built, which carries llama-cpp-python's Python files:
it depends on what these need, and otherwise on llama-cpp-python.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

OFF = ("", "0", "false", "off", "no", "n", "f")  # as scikit-build-core reads it for its overrides


def dynamic_metadata(
    settings: Mapping[str, Any], project: Mapping[str, Any]
) -> dict[str, list[str]]:
    """What is added to [project], by `settings`: `built` or `vendored`."""
    del project
    vendored = os.environ.get("ALORA_WHEEL", "").strip().lower() not in OFF
    return {"dependencies": list(settings["vendored" if vendored else "built"])}


def dynamic_wheel(settings: Mapping[str, Any]) -> dict[str, bool]:
    """Fields that may differ between the source distribution and a wheel."""
    del settings
    return {"dependencies": True}
