"""Whether an adapter works on a base, here: verify(), and the records it returns."""

from __future__ import annotations

from .measuring import verify
from .probe import random_text
from .records import AdapterFacts, BaseFacts, LayerChange, PeftComparison, Verification

__all__ = [
    "AdapterFacts",
    "BaseFacts",
    "LayerChange",
    "PeftComparison",
    "Verification",
    "random_text",
    "verify",
]
