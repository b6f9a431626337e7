"""What calls are given and what they report: options, timings, log-probabilities, cancelling."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, TypedDict, TypeVar

from ._kinds import check_names, checked
from .errors import CancelledError, InputError

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
FlashAttention = Literal["auto", "off", "on"]
FinishReason = Literal["stop", "length", "closed", "cancelled", "error"]
"""Why a reply ended: an end token or a stop string, max_tokens, close(), a CancelToken, or else."""
Progress = Callable[[int, int], None]
"""Called on the caller's own thread with the tokens read so far and all there are to read."""

# ggml_type numbers of what a KV cache can be made of
CACHE_TYPES: Final[dict[str, int]] = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20,
    "bf16": 30,
}  # fmt: skip
FLASH_ATTENTION: Final[dict[str, int]] = {"auto": -1, "off": 0, "on": 1}

_K = TypeVar("_K")
_V = TypeVar("_V")
_Options = TypeVar("_Options", "GenerateOptions", "Invocation", "IntrinsicCall")


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


class FrozenDict(dict[_K, _V]):
    """A mapping in a frozen record: does not change, has a hash, pickles and copies."""

    def __hash__(self) -> int:  # type: ignore[override]  # dict has none
        return _hash(self)

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("this cannot be changed; dataclasses.replace() makes another")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = _refuse
    setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict[_K, _V]], tuple[dict[_K, _V]]]:
        return type(self), (dict(self),)


def _hash(value: object) -> int:
    """Of what JSON can hold, equal for equals."""
    if isinstance(value, Mapping):
        return hash(frozenset((key, _hash(each)) for key, each in value.items()))
    if isinstance(value, (list, tuple)):
        return hash(tuple(map(_hash, value)))
    return hash(value)


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class ContextOptions:
    """Options of a model and its context. Raises InputError for values out of range.

    n_gpu_layers  layers on the GPU (negative: all)
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

    n_gpu_layers: int = 0
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
        check_int(self.n_gpu_layers, "n_gpu_layers", -(2**31))
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

    @property
    def rows(self) -> int:
        """Rows of logits that a call may ask for at a time."""
        return max(64 if self.n_outputs is None else self.n_outputs, self.n_seq_max)


class ContextFields(TypedDict, total=False):
    """ContextOptions' fields as keywords, for type checkers."""

    n_gpu_layers: int
    n_ctx: int | None
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    n_outputs: int | None
    n_threads: int | None
    type_k: CacheType
    type_v: CacheType
    flash_attn: FlashAttention
    max_adapters: int
    n_pooled: int


def context_options(
    options: ContextOptions | None, changes: Mapping[str, Any], what: str
) -> ContextOptions:
    """`options`, or the defaults, with `changes` by their fields' names. Raises InputError."""
    options = options or ContextOptions()
    known = [each.name for each in fields(options)]
    check_names(changes, dict.fromkeys(known, "ContextOptions"), what)
    return replace(options, **changes)


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Options of sampling, with llama-cpp-python's names, meanings and defaults.

    temperature 0 takes the likeliest token. `seed` None draws a new one each time. `logit_bias`
    maps token ids to what is added to their logits (-inf bans one). `grammar` is GBNF text with a
    rule named root. Raises InputError for values out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        check_number(self.temperature, "temperature", 0.0)
        for name in ("top_p", "min_p", "typical_p"):
            check_number(getattr(self, name), name, 0.0, 1.0)
        check_number(self.frequency_penalty, "frequency_penalty")
        check_number(self.presence_penalty, "presence_penalty")
        if check_number(self.repeat_penalty, "repeat_penalty", 0.0) == 0:
            raise InputError("repeat_penalty must be above 0; 1 switches it off")
        check_int(self.top_k, "top_k", -1)
        check_int(self.repeat_last_n, "repeat_last_n", 0, 2**20)
        if self.seed is not None:
            check_int(self.seed, "seed", 0, 2**32 - 1)
        if self.logit_bias is not None:
            for token, bias in self.logit_bias.items():
                check_int(token, "logit_bias: a token", 0)
                if bias != -math.inf:
                    check_number(bias, f"logit_bias of token {token}")
            object.__setattr__(self, "logit_bias", FrozenDict(self.logit_bias))

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the likeliest token is all there is to it."""
        return (
            self.temperature == 0
            and not self.logit_bias
            and self.grammar is None
            and not self._has_penalties
        )

    @property
    def _has_penalties(self) -> bool:
        return self.repeat_last_n > 0 and (
            self.repeat_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0
        )


GREEDY = Sampling(temperature=0.0)


def check_stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """`stop` as a tuple. Raises InputError for an empty stop string, which would stop at once."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    for text in stops:
        if not isinstance(text, str):
            raise InputError(f"stop must be a string or a list of strings, found {text!r}")
        if not text:
            raise InputError("a stop string must not be empty: it would stop at once")
    return stops


@checked
@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How text is generated: the one group of options of replies, invocations and intrinsics.

    Every call that takes one takes its fields, and those of Sampling, as keywords as well:
    `chat.say("Hi", max_tokens=64, temperature=0)`. A keyword wins over the record.

    max_tokens  the most tokens to sample
    sampling    how the next token is chosen
    stop        one or several texts that end it; they are not part of the reply
    schema      a JSON Schema that the text is to match
    logprobs    keeps the tokens' log-probabilities, and those of so many alternatives each
    adapter     what computes it, by name; None is the base. In a chat an activated LoRA's
                invocation takes the place of what begins the assistant's turn, unless it is in the
                last turn already; a plain LoRA reads the whole conversation
    scale       multiplies the adapter's own alpha/rank

    What is not given depends on the use:

                generate, say, reply    Invocation            IntrinsicCall
    max_tokens  1024                    16                    its contract's, else 512
    sampling    Sampling()              the likeliest tokens  its contract's, else the likeliest
    stop        nothing                 nothing               its contract's, else nothing
    schema      any text                any text              its contract's alone
    logprobs    none                    none                  what its contract needs
    """

    max_tokens: int = 1024
    sampling: Sampling = Sampling()
    stop: str | Sequence[str] = ()
    schema: Mapping[str, Any] | None = None
    logprobs: int | None = None
    adapter: str | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_int(self.max_tokens, "max_tokens", 1)
        if self.logprobs is not None:
            check_int(self.logprobs, "logprobs", 0, 1000)
        check_number(self.scale, "scale")
        object.__setattr__(self, "stop", check_stops(self.stop))
        if self.schema is not None:
            object.__setattr__(self, "schema", FrozenDict(self.schema))


@checked
@dataclass(frozen=True, kw_only=True)
class Invocation(GenerateOptions):
    """What to ask an adapter (None: the base model) after a conversation, and how it answers.

    `suffix` (text or token ids) is put behind the conversation; or `prompt` (token ids) takes the
    place of both, and shares the cells of what it has in common with the conversation. The
    adapter's invocation is appended to that if it lacks it, unless `append_invocation` is false:
    then it must occur.

    With a JSON `schema` the beginning of the answer is drafted and checked instead of sampled token
    by token, and where it admits only a few answers, all of them are scored at once; the answer is
    the one that sampling would give.
    """

    adapter: str | None = field(kw_only=False)
    suffix: str | Sequence[int] | None = field(default=None, kw_only=False)
    max_tokens: int = 16
    sampling: Sampling = GREEDY
    prompt: Sequence[int] | None = None
    append_invocation: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("suffix", "prompt"):
            tokens = getattr(self, name)
            if tokens is not None and not isinstance(tokens, (str, tuple)):
                object.__setattr__(self, name, tuple(tokens))


@checked
@dataclass(frozen=True)
class IntrinsicCall:
    """An intrinsic to ask: the name of its adapter, and `arguments` for its contract's instruction.

    It is asked about the first `upto` messages (None: all), so that what judges a question can be
    asked when it was answered. `max_tokens`, `sampling`, `stop` and `scale` are GenerateOptions';
    the first three are the contract's unless given, what the answer looks like always is.
    """

    name: str
    arguments: Mapping[str, str] = field(default_factory=FrozenDict)
    _: KW_ONLY
    upto: int | None = None
    max_tokens: int | None = None
    sampling: Sampling | None = None
    stop: str | Sequence[str] | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            check_int(self.max_tokens, "max_tokens", 1)
        if self.upto is not None:
            check_int(self.upto, "upto", 0)
        check_number(self.scale, "scale")
        object.__setattr__(self, "arguments", FrozenDict(self.arguments))
        if self.stop is not None:
            object.__setattr__(self, "stop", check_stops(self.stop))


class SamplingFields(TypedDict, total=False):
    """Sampling's fields as keywords, for type checkers."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: int
    seed: int | None
    logit_bias: Mapping[int, float] | None
    grammar: str | None


class GenerateFields(SamplingFields, total=False):
    """GenerateOptions' and Sampling's fields as keywords, for type checkers."""

    max_tokens: int
    sampling: Sampling
    stop: str | Sequence[str]
    schema: Mapping[str, Any] | None
    logprobs: int | None
    adapter: str | None
    scale: float


class CallFields(SamplingFields, total=False):
    """The fields of IntrinsicCall and Sampling that Chat.invoke() takes as keywords."""

    max_tokens: int
    sampling: Sampling
    stop: str | Sequence[str]
    scale: float
    upto: int | None


def changed(
    options: _Options,
    changes: Mapping[str, Any],
    what: str,
    sampling: Callable[[_Options], Sampling] = lambda options: options.sampling or Sampling(),
) -> _Options:
    """`options` with `changes`, by names of its fields or of Sampling's; those change what
    `sampling` finds. Raises InputError for any other name, which `what` does not have.
    """
    if not changes:
        return options
    own = [each.name for each in fields(options) if each.kw_only]
    chosen = [each.name for each in fields(Sampling)]
    known = dict.fromkeys(own, type(options).__name__) | dict.fromkeys(chosen, "Sampling")
    check_names(changes, known, what)
    options = replace(options, **{name: changes[name] for name in changes if name in own})
    sampled = {name: changes[name] for name in changes if name in chosen}
    return replace(options, sampling=replace(sampling(options), **sampled)) if sampled else options


def reply_options(
    options: GenerateOptions | None, changes: Mapping[str, Any], what: str
) -> GenerateOptions:
    """`options`, or the defaults, with `changes`. Raises InputError."""
    options = options or GenerateOptions()
    if type(options) is not GenerateOptions:
        raise InputError(f"{what}: an Invocation is for Session.invoke(); pass GenerateOptions")
    return changed(options, changes, what)


def default_threads() -> int:
    """One thread per physical core this process may use: a second thread per core gains nothing.
    A container's quota of CPU time counts too: more threads than it pays for only wait.
    """
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
    quota = _cpu_quota()
    return max(1, min(len(cores), math.ceil(quota) if quota else len(cores)))


def _cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that this process's cgroups allow it; None if they do not say."""
    found = []
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for _, controllers, path in (group.split(":", 2) for group in groups if group.count(":") > 1):
        mount = root / "sys/fs/cgroup"
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = (mount / "cpu" if controllers else mount) / path.strip("/")
        while group.is_relative_to(mount):  # a limit of any parent's holds too
            found += [_quota_of(group / "cpu.max"), _quota_of(group / "cpu.cfs_quota_us")]
            group = group.parent
    return min((quota for quota in found if quota), default=None)


def _quota_of(file: Path) -> float | None:
    """What cpu.max ("QUOTA PERIOD") or version 1's cpu.cfs_quota_us says; None for no limit."""
    try:
        words = file.read_text().split()
        if len(words) == 1:
            words += file.with_name("cpu.cfs_period_us").read_text().split()
        quota, period = int(words[0]), int(words[1])
    except (OSError, ValueError, IndexError):  # not there, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None


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
        """Ends the calls that were given this token. Idempotent."""
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

    def _watch(self, watcher: Callable[[], None]) -> None:
        """Calls `watcher` at cancel(), until _unwatch()."""
        self._watchers.append(watcher)
        if self._cancelled:
            watcher()

    def _unwatch(self, watcher: Callable[[], None]) -> None:
        """Ends _watch()."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)
