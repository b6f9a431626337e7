"""From an adapter directory of PEFT's or mlx-lm's to an adapter GGUF: exactly, or refused by name.

Needs the adapter and the base GGUF; neither torch nor transformers nor the native library.
"""

from __future__ import annotations

from .conversion import convert_adapter
from .export import ExportReport, export_adapter
from .find import find_source
from .hub.fetch import Offer, RemoteModel, offers
from .hub.reference import HubReference, is_reference, parse_reference
from .index import ExportIndexReport, export_index
from .library import Pick
from .report import ConversionReport
from .source import Source

__all__ = [
    "ConversionReport",
    "ExportIndexReport",
    "ExportReport",
    "HubReference",
    "Offer",
    "Pick",
    "RemoteModel",
    "Source",
    "convert_adapter",
    "export_adapter",
    "export_index",
    "find_source",
    "is_reference",
    "offers",
    "parse_reference",
]
