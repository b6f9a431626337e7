"""What a file says of typed decisions: temperatures that calibrate its answers, and the template
that writes its questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .header import GGUFHeader

TEMPLATE: Final = "tokenizer.chat_template.systemone"
KEY: Final = "{}.decision.temperature.{}"
KINDS: Final = ("noul", "choice", "score")
MAX: Final = 1000.0  # beyond it any answer is even


def decision_temperatures(header: GGUFHeader) -> dict[str, float]:
    """`<architecture>.decision.temperature.<type>[.<bucket>]`, by what follows `temperature.`; not
    those that are no temperature.
    """
    prefix = KEY.format(header.metadata.get("general.architecture"), "")
    found = {}
    for key, value in header.metadata.items():
        if not key.startswith(prefix) or not isinstance(value, (int, float)):
            continue
        if not isinstance(value, bool) and 0 < value <= MAX:  # neither NaN nor infinity
            found[key.removeprefix(prefix)] = float(value)
    return found


def overridden(temperatures: Mapping[str, float], given: Mapping[str, float]) -> dict[str, float]:
    """Those of a file, but for kinds that are `given`, in whatever buckets the file has them."""
    return {k: v for k, v in temperatures.items() if k.partition(".")[0] not in given} | {**given}


def temperature_of(temperatures: Mapping[str, float], kind: str, n: int) -> float | None:
    """The temperature of a question of a kind with `n` options; None if a file has none. Files
    have buckets by two conventions, or one temperature for all.
    """
    few = "2" if n <= 2 else "3_5" if n <= 5 else "6_10" if n <= 10 else "11"
    size = "small" if n <= 8 else "mid" if n <= 26 else "large"
    for name in (f"{kind}.{few}", f"{kind}.{size}", kind):
        if name in temperatures:
            return temperatures[name]
    return None
