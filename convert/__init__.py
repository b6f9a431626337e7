"""From a PEFT adapter directory to an adapter GGUF: exactly, or refused by name.

Needs the adapter and the base GGUF; neither torch nor transformers nor the native library.
"""

from __future__ import annotations

from .conversion import ConversionReport, convert_adapter
from .library import Pick

__all__ = ["ConversionReport", "Pick", "convert_adapter"]
