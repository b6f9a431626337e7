"""Whether an adapter works on a base, here: verify(), and the records it returns."""

from __future__ import annotations

from .measuring import verify
from .records import Verification

__all__ = ["Verification", "verify"]
