"""What can be chosen of a training, and what is chosen otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from alora_gguf._calls import is_text
from alora_gguf.errors import InputError

ATTENTION: Final = "attention"
ALL_LINEAR: Final = "all-linear"


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How an adapter is trained.

    rank, alpha   of the adapter; alpha None is twice the rank
    targets       "attention", the cheapest at run time; "all-linear", the MLP besides; or names of
                  weights as a GGUF has them (attn_q, ffn_up)
    epochs        how often each example is seen, at most
    batch         examples of a step
    rate          the highest learning rate, reached after `warmup` steps; it falls to a tenth
    patience      how many looks at the held-out examples may bring nothing better before training
                  stops early; 0: never
    looks         how often an epoch looks at them
    seed          of initial weights and order: on one thread equal seeds give equal bits
    dtype         what the base computes in: "float32", "bfloat16", or "auto", bfloat16 where the
                  processor multiplies it faster (AMX, AVX-512 BF16)
    threads       None: as torch chooses
    cache_bytes   the most that keys and values of prefixes may take on the disk
    """

    rank: int = 8
    alpha: float | None = None
    targets: str | Sequence[str] = ATTENTION
    epochs: int = 3
    batch: int = 8
    rate: float = 1e-3
    warmup: int = 10
    patience: int = 4
    looks: int = 4
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int | None = None
    cache_bytes: int = 16 << 30

    def __post_init__(self) -> None:
        least = {"rank": 1, "epochs": 1, "batch": 1, "looks": 1, "warmup": 0, "patience": 0}
        for name, low in {**least, "seed": 0, "cache_bytes": 0}.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise InputError(f"{name} is {value!r}, expected an integer of at least {low}")
        for name in ("rate", "alpha"):
            value = getattr(self, name)
            if value is None and name == "alpha":
                continue
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise InputError(f"{name} is {value!r}, expected a number above 0")
        named: Any = [self.targets] if isinstance(self.targets, str) else self.targets
        if not isinstance(named, Sequence) or not named or not all(map(is_text, named)):
            raise InputError(
                f"targets are {self.targets!r:.80}, expected {ATTENTION}, {ALL_LINEAR}, or a list "
                "of names of weights"
            )
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise InputError(f"threads is {self.threads!r}, expected None or at least 1")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise InputError(f"dtype is {self.dtype!r}, expected auto, float32 or bfloat16")

    @property
    def scale(self) -> float:
        """The adapter's alpha."""
        return 2.0 * self.rank if self.alpha is None else float(self.alpha)

    def deciding(self) -> dict[str, object]:
        """What a training has to have in common with one that it goes on with: all but what a
        machine has room for.
        """
        own = self.to_dict()
        return {name: own[name] for name in own if name not in ("threads", "cache_bytes")}

    def to_dict(self) -> dict[str, object]:
        """As JSON can hold it."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        targets = own["targets"]
        return {**own, "targets": targets if isinstance(targets, str) else list(targets)}
