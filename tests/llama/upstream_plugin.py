"""A pytest plugin for llama-cpp-python's own tests: their class is ours if SIDE is "ours", and the
models that they fetch are those in MODELS, "name=path" by line.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

if os.environ["SIDE"] == "ours":
    import alora_gguf  # before llama_cpp

    _ = alora_gguf.Llama

import huggingface_hub
import llama_cpp

if os.environ["SIDE"] == "ours":
    llama_cpp.Llama = llama_cpp.llama.Llama = alora_gguf.Llama  # type: ignore[misc]

MODELS = dict(line.split("=", 1) for line in os.environ["MODELS"].splitlines())


def local(_repo_id: str, filename: str, **_keywords: Any) -> str:
    return next(path for name, path in MODELS.items() if name in filename)


huggingface_hub.hf_hub_download = local

try:
    import scipy.special  # noqa: F401
except ImportError:  # they import it and do not use it
    special: Any = types.ModuleType("scipy.special")
    special.log_softmax = None
    sys.modules |= {"scipy": types.ModuleType("scipy"), "scipy.special": special}
