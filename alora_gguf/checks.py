"""Checks of arguments that several modules need; each raises InputError with the name."""

from __future__ import annotations

import math

from .errors import InputError


def check_int(value: object, name: str, low: int, high: int = 2**31 - 1) -> int:
    """`value`, which must be an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        wanted = f"in [{low}, {high}]" if high < 2**31 - 1 else f"of at least {low}"
        raise InputError(f"{name} must be an integer {wanted}, got {value!r}")
    return value


def check_number(value: object, name: str, low: float = -3.4e38, high: float = 3.4e38) -> float:
    """`value`, which must be a finite number in [low, high]; float32 ends at 3.4e38."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not isinstance(value, (int, float)) or not number or not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, got {value!r}")
    if not low <= value <= high:
        raise InputError(f"{name} must be in [{low:g}, {high:g}], got {value!r}")
    return float(value)
