"""How a model's context is set up: sizes, cache types, threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .checks import check_int
from .errors import InputError

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
FlashAttention = Literal["auto", "on", "off"]

# ggml_type numbers of what a KV cache can be made of
CACHE_TYPES: Final[dict[str, int]] = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20,
    "bf16": 30,
}  # fmt: skip
FLASH_ATTENTION: Final[dict[str, int]] = {"auto": -1, "off": 0, "on": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextOptions:
    """Options of a model's context. Raises InputError for values out of range.

    n_ctx         cells of the KV cache, shared by all sequences (None: the model's training length,
                  but at most 4096)
    n_batch       most tokens of one llama_decode call
    n_ubatch      most tokens of one compute graph
    n_seq_max     sequences at a time: every open session is one, every running invocation another
    n_outputs     most rows of logits of one call (at least n_seq_max; None: at least 64)
    n_threads     CPU threads (None: one per physical core)
    type_k/type_v type of the cache's keys and values
    flash_attn    whether attention uses llama.cpp's flash attention
    n_pooled      closed conversations whose cells are kept, while nobody needs their room, for new
                  ones that begin like them (0: none)
    max_adapters  adapters the bank makes room for; more can be loaded, at the price of one reserve
    """

    n_ctx: int | None = None
    n_batch: int = 512
    n_ubatch: int = 512
    n_seq_max: int = 17
    n_outputs: int | None = None
    n_threads: int | None = None
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    flash_attn: FlashAttention = "auto"
    max_adapters: int = 8
    n_pooled: int = 4

    def __post_init__(self) -> None:
        limits = {
            "n_ctx": (1, 2**31 - 1),
            "n_batch": (1, 2**20),
            "n_ubatch": (1, 2**20),
            "n_seq_max": (1, 256),
            "n_outputs": (1, 2**20),
            "n_threads": (1, 512),
            "max_adapters": (1, 1023),
            "n_pooled": (0, 255),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None or name not in ("n_ctx", "n_outputs", "n_threads"):
                check_int(value, name, low, high)
        for name, names in (
            ("type_k", CACHE_TYPES),
            ("type_v", CACHE_TYPES),
            ("flash_attn", FLASH_ATTENTION),
        ):
            if getattr(self, name) not in names:
                raise InputError(
                    f"{name} must be one of {', '.join(names)}, got {getattr(self, name)!r}"
                )

    @property
    def rows(self) -> int:
        """Rows of logits that a call may ask for at a time."""
        return max(64 if self.n_outputs is None else self.n_outputs, self.n_seq_max)


def default_threads() -> int:
    """One thread per physical core this process may use: a second thread per core gains nothing."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))
