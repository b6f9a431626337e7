"""`Llama`: llama_cpp.Llama with adapters.

Importing this loads the native library, so that llama_cpp is bound to it.
"""

from __future__ import annotations

from alora_gguf.engine import native as _native

_native.load()

from .llama import Llama  # noqa: E402 (llama_cpp must find our library, see above)
from .stock import LlamaState  # noqa: E402

__all__ = ["Llama", "LlamaState"]
