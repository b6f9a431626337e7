"""What calls are given and what they report: options, timings, log-probabilities, cancelling."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .errors import CancelledError, InputError

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
FlashAttention = Literal["auto", "on", "off"]
Progress = Callable[[int, int], None]
"""Called on the caller's own thread with the tokens read so far and all there are to read."""

# ggml_type numbers of what a KV cache can be made of
CACHE_TYPES: Final[dict[str, int]] = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20,
    "bf16": 30,
}  # fmt: skip
FLASH_ATTENTION: Final[dict[str, int]] = {"auto": -1, "off": 0, "on": 1}


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


@dataclass(frozen=True, slots=True)
class Timings:
    """Counts in tokens, times in seconds.

    `reused` tokens were in the cache already, `evaluated` ones of the prompt were read by this
    call, `generated` ones were sampled, drafted before or not. `first_token` runs from the call to
    the first sampled token (None if nothing was sampled), `total` to the end. `reuse_note` says in
    words why not more was reused, or is "".
    """

    reused: int = 0
    evaluated: int = 0
    generated: int = 0
    first_token: float | None = None
    total: float = 0.0
    reuse_note: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        """Sampled tokens per second after the first; None if there was no second one."""
        if self.first_token is None or self.generated < 2 or self.total <= self.first_token:
            return None
        return (self.generated - 1) / (self.total - self.first_token)


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token that could have been chosen, and the natural logarithm of its probability."""

    token: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was chosen.

    `text` is what it adds to the reply's text: the texts of all tokens, one after the other, are
    the reply, letter by letter (a character split over several tokens belongs to the last of them).
    `logprob` is the natural logarithm of its probability, and `top` holds the likeliest tokens in
    descending order, the chosen one among them if it is one of these; both after the mask of a
    grammar or schema, before temperature and the like.
    """

    token: int
    text: str
    logprob: float
    top: tuple[TopLogprob, ...] = ()


class CancelToken:
    """Pass one to a call as `cancel=`; cancel() from any thread or signal handler then ends it.

    The call raises CancelledError and leaves the conversation as it was before it; a reply that is
    being generated ends where it is, with finish_reason "cancelled". On the CPU even a batch that
    is being computed stops, unless it serves another call too: then it is finished first. A token
    stays cancelled; take a new one for the next call.
    """

    def __init__(self) -> None:
        self._cancelled = False
        self._watchers: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """Ends the calls that were given this token. A second call does nothing."""
        self._cancelled = True
        for watcher in tuple(self._watchers):
            watcher()

    @property
    def cancelled(self) -> bool:
        """Whether cancel() was called."""
        return self._cancelled

    def check(self) -> None:
        """Raises CancelledError if cancel() was called."""
        if self._cancelled:
            raise CancelledError("the call was cancelled")

    def watch(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher` at cancel(), until unwatch(). Not part of the public API."""
        self._watchers.append(watcher)
        if self._cancelled:
            watcher()

    def unwatch(self, watcher: Callable[[], None]) -> None:
        """Ends watch(). Not part of the public API."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)
