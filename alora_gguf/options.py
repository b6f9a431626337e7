"""What calls are given and what they report: options, timings, log-probabilities, cancelling."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Annotated, Any, Final, Literal, NoReturn, TypedDict, TypeVar, cast

from ._calls import Within, check_kind, check_names, check_text, checked
from .errors import CancelledError, InputError

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
FlashAttention = Literal["auto", "off", "on"]
Attention = Literal["auto", "upstream"]
FinishReason = Literal["stop", "length", "closed", "cancelled", "error"]
"""Why a reply ended: an end token or a stop string, max_tokens, close(), a CancelToken, or else."""
Form = Literal["free", "compact", "json.dumps", "text"]
"""How replies under a schema are written, said in its ABOUT: JSON that is spaced freely, without
spaces, or as json.dumps does it; or bare text, for a schema that lists texts.
"""
ABOUT: Final = "x-alora"
"""The keyword, at the top of a schema, that says what it is about, and the form of replies."""
AdapterLike = str | Mapping[str, float]
"""Who computes, a loaded adapter by its name, or several at once, their names mapped to scales."""
Progress = Callable[[int, int], None]
"""Called on the caller's own thread with the tokens read so far and all there are to read."""

# ggml_type numbers of what a KV cache can be made of
CACHE_TYPES: Final[dict[str, int]] = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20,
    "bf16": 30,
}  # fmt: skip
FLASH_ATTENTION: Final[dict[str, int]] = {"auto": -1, "off": 0, "on": 1}

Count = Annotated[int, Within(1)]
Share = Annotated[float, Within(0, 1)]
Finite = Annotated[float, Within()]
# as far as scales serve anybody; from about 8,000 on good adapters overflow half floats
MAX_SCALE: Final = 1000.0
MAX_LOGPROBS: Final = 1000  # alternatives to a token: more are noise, and take long to be listed
Scale = Annotated[float, Within(-MAX_SCALE, MAX_SCALE)]

_K = TypeVar("_K")
_V = TypeVar("_V")
_Options = TypeVar("_Options", "GenerateOptions", "Invocation", "IntrinsicCall")


def check_int(value: object, name: str, low: int, high: int | None = None) -> int:
    """`value`, which must be an integer in [low, high]."""
    check_kind(value, name, *Within(low, high).test(int))
    return cast(int, value)


def check_number(
    value: object, name: str, low: float | None = None, high: float | None = None
) -> float:
    """`value`, which must be a finite number in [low, high]."""
    check_kind(value, name, *Within(low, high).test(float))
    return float(cast(float, value))


def check_adapter(adapter: object, name: str = "adapter") -> AdapterLike | None:
    """What computes, by name, or names mapped to scales, which are frozen. Raises InputError."""
    if adapter is None or isinstance(adapter, str):
        return adapter
    if not isinstance(adapter, Mapping):
        raise InputError(
            f"{name} must be a name, or names mapped to scales, or None, got {adapter!r:.80}"
        )
    if not adapter:
        raise InputError(f"{name} is an empty mapping: name adapters with their scales, or None")
    for each, scale in adapter.items():
        if not isinstance(each, str):
            raise InputError(f"{name} maps {each!r:.80} to a scale, expected an adapter's name")
        check_number(scale, f"{name}[{each!r:.80}], a scale,", -MAX_SCALE, MAX_SCALE)
    return FrozenDict({each: float(scale) for each, scale in adapter.items()})


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

    n_gpu_layers  layers on devices: this machine's GPUs and those that `rpc` names (negative: all;
                  None: all if there are such servers, none without)
    rpc           servers of llama.cpp's RPC, "host:port" each: layers that are on their devices,
                  first of all others, are computed there, and have their cells there
    n_ctx         cells of the KV cache, shared by all sequences, rounded up to a multiple of 256
                  (None: the model's training length, but at most 4096)
    n_batch       most tokens of one llama_decode call
    n_ubatch      most tokens of one compute graph
    n_seq_max     sequences at a time: every open session is one, every running invocation another
    n_outputs     most rows of logits of one call (at least n_seq_max; None: at least 64)
    n_threads     CPU threads (None: one per physical core; on Linux fewer while other programs
                  compute, so that each has a processor of its own, or with attention="upstream"
                  while they did so when the model was opened)
    type_k/type_v type of the cache's keys and values
    flash_attn    whether attention uses llama.cpp's flash attention
    attention     what computes flash attention on the CPU: "auto" whichever is faster, our node or
                  llama.cpp's; with "upstream" the base's tokens have llama.cpp's, and so its bits
    n_pooled      closed conversations whose cells are kept, while nobody needs their room, for new
                  ones that begin like them (0: none)
    max_adapters  adapters that a device's memory is given room for; more can be loaded, at the
                  price of one reserve. On the CPU each has memory of its own, as much as its file
    """

    n_gpu_layers: Annotated[int, Within()] | None = None
    rpc: Sequence[str] = ()
    n_ctx: Annotated[int, Within(1, 2**28)] | None = None  # llama.cpp's are u32, rounded up
    n_batch: Annotated[int, Within(1, 2**20)] = 512
    n_ubatch: Annotated[int, Within(1, 2**20)] = 512
    n_seq_max: Annotated[int, Within(1, 256)] = 17
    n_outputs: Annotated[int, Within(1, 2**20)] | None = None
    n_threads: Annotated[int, Within(1, 512)] | None = None
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    flash_attn: FlashAttention = "auto"
    attention: Attention = "auto"
    max_adapters: Annotated[int, Within(1, 1023)] = 8
    n_pooled: Annotated[int, Within(0, 255)] = 4

    def __post_init__(self) -> None:
        for endpoint in self.rpc:
            check_kind(endpoint, "rpc: a server", lambda value: isinstance(value, str), "a string")
            host, _, port = endpoint.partition(":")
            known = bool(host) and endpoint.isprintable() and not host.isspace()
            if not (known and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 2**16):
                raise InputError(
                    f"rpc must be servers as 'host:port', such as '10.0.0.2:50052', got "
                    f"{endpoint!r:.80}"
                )
        object.__setattr__(self, "rpc", tuple(dict.fromkeys(self.rpc)))

    @property
    def offloaded(self) -> int:
        """Layers that go to devices; negative: all."""
        if self.n_gpu_layers is None:
            return -1 if self.rpc else 0
        return self.n_gpu_layers

    @property
    def servers(self) -> Sequence[str]:
        """Those of `rpc` that layers may be on."""
        return self.rpc if self.offloaded else ()

    @property
    def rows(self) -> int:
        """Rows of logits that a call may ask for at a time."""
        return max(64 if self.n_outputs is None else self.n_outputs, self.n_seq_max)


class ContextFields(TypedDict, total=False):
    """ContextOptions' fields as keywords, for type checkers."""

    n_gpu_layers: int | None
    rpc: Sequence[str]
    n_ctx: int | None
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    n_outputs: int | None
    n_threads: int | None
    type_k: CacheType
    type_v: CacheType
    flash_attn: FlashAttention
    attention: Attention
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

    temperature: Annotated[float, Within(0)] = 0.8
    top_k: Annotated[int, Within(-1)] = 40
    top_p: Share = 0.95
    min_p: Share = 0.05
    typical_p: Share = 1.0
    repeat_penalty: Annotated[float, Within(0)] = 1.0
    frequency_penalty: Finite = 0.0
    presence_penalty: Finite = 0.0
    repeat_last_n: Annotated[int, Within(0, 2**20)] = 64
    seed: Annotated[int, Within(0, 2**32 - 1)] | None = None
    logit_bias: Mapping[int, float] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        if self.repeat_penalty == 0:
            raise InputError("repeat_penalty must be above 0; 1 switches it off")
        if self.grammar is not None:
            check_grammar(self.grammar)
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


MAX_GRAMMAR: Final = 2**20  # bytes: llama.cpp parses a grammar in one go, uninterrupted
MAX_GRAMMAR_DEPTH: Final = 200  # parentheses: it recurses into each, and a thread's stack is small
MAX_GRAMMAR_RULES: Final = 10_000  # it follows rules' first symbols recursively
_GRAMMAR_TEXT: Final = re.compile(
    r"""\\.|"(?:\\.|[^"\\])*"?|\[(?:\\.|[^\]\\])*\]?|\#[^\n]*|([()])|(::=)""", re.DOTALL
)


def check_grammar(text: str) -> None:
    """Raises InputError for GBNF that is empty, or too much for llama.cpp's recursive parser."""
    if not text.strip():
        raise InputError("the grammar is empty, expected a rule named root; None follows none")
    size = len(check_text(text, "the grammar"))
    if size > MAX_GRAMMAR:
        raise InputError(f"the grammar has {size} bytes, expected at most {MAX_GRAMMAR}")
    depth = deepest = rules = 0
    for found in _GRAMMAR_TEXT.finditer(text):  # not what is in strings, classes and comments
        depth += {"(": 1, ")": -1}.get(found[1], 0)
        deepest, rules = max(deepest, depth), rules + (found[2] is not None)
    if deepest > MAX_GRAMMAR_DEPTH:
        raise InputError(
            f"the grammar's parentheses are {deepest} deep, expected at most {MAX_GRAMMAR_DEPTH}"
        )
    if rules > MAX_GRAMMAR_RULES:
        raise InputError(f"the grammar has {rules} rules, expected at most {MAX_GRAMMAR_RULES}")


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
    schema      a JSON Schema that the text is to match, in the form that its `x-alora` asks for
    logprobs    keeps the tokens' log-probabilities, and those of so many alternatives each; beyond
                20 only of those that are likelier than 1e-9
    adapter     what computes it, by name; None is the base. Several at once are names mapped to
                scales, whose changes of a token are summed. In a chat an activated LoRA's
                invocation takes the place of what begins the assistant's turn, unless it is
                in the last turn already; a plain LoRA reads the whole conversation; a vector acts
                on the reply
    scale       multiplies the adapter's own alpha/rank, the vector, or all scales of a mapping

    What is not given depends on the use:

                generate, say, reply    Invocation            IntrinsicCall
    max_tokens  1024                    16                    its contract's, else 512
    sampling    Sampling()              the likeliest tokens  its contract's, else the likeliest
    stop        nothing                 nothing               its contract's, else nothing
    schema      any text                any text              its contract's alone
    logprobs    none                    none                  what its contract needs
    """

    max_tokens: Count = 1024
    sampling: Sampling = Sampling()
    stop: str | Sequence[str] = ()
    schema: Mapping[str, Any] | None = None
    logprobs: Annotated[int, Within(0, MAX_LOGPROBS)] | None = None
    adapter: AdapterLike | None = None
    scale: Scale = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", check_adapter(self.adapter))
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
    then it must occur. `begun` (token ids) is how the answer begins, as if it had been sampled.
    `drafts` (token ids) are ways to begin it that are read along with the prompt, in place of those
    that a schema suggests; with `logprobs` the verdict's `further` has what can come after them.

    With a JSON `schema` the beginning of the answer is drafted and checked instead of sampled token
    by token, and where it admits only a few answers, all of them are scored at once; the answer is
    the one that sampling would give. Where the schema's form of replies (docs/intrinsics.md) leaves
    no choice, nothing is sampled, nor counted in max_tokens at the answer's beginning.
    """

    adapter: AdapterLike | None = field(kw_only=False)
    suffix: str | Sequence[int] | None = field(default=None, kw_only=False)
    max_tokens: Count = 16
    sampling: Sampling = GREEDY
    prompt: Sequence[int] | None = None
    append_invocation: bool = True
    begun: Sequence[int] = ()
    drafts: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for path in self.drafts:
            if not isinstance(path, (list, tuple)):
                raise InputError(f"drafts must be lists of token ids, found {path!r:.40}")
        object.__setattr__(self, "drafts", tuple(map(tuple, self.drafts)))
        for name in ("suffix", "prompt", "begun"):
            tokens = getattr(self, name)
            if tokens is not None and not isinstance(tokens, (str, tuple)):
                object.__setattr__(self, name, tuple(tokens))


@checked
@dataclass(frozen=True)
class IntrinsicCall:
    """An intrinsic to ask: the name of its adapter, and `arguments` for its contract's instruction.

    It is asked about the first `upto` messages; None: what by its contract judges a question, about
    those up to the user's last one, also where that was answered, and others about all. `alias`
    tells it from other calls of the same intrinsic. `max_tokens`, `sampling`, `stop` and `scale`
    are GenerateOptions'; the first three are the contract's unless given, what the answer looks
    like always is.
    """

    name: str
    arguments: Mapping[str, str] = field(default_factory=FrozenDict)
    _: KW_ONLY
    upto: Annotated[int, Within(0)] | None = None
    alias: str | None = None
    max_tokens: Count | None = None
    sampling: Sampling | None = None
    stop: str | Sequence[str] | None = None
    scale: Scale = 1.0

    @property
    def label(self) -> str:
        """What to call it: its alias, or else the intrinsic's name."""
        return self.name if self.alias is None else self.alias

    def __post_init__(self) -> None:
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
    adapter: AdapterLike | None
    scale: float


class CallFields(SamplingFields, total=False):
    """The fields of IntrinsicCall and Sampling that Chat.invoke() takes as keywords."""

    max_tokens: int
    sampling: Sampling
    stop: str | Sequence[str]
    scale: float
    upto: int | None
    alias: str | None


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

    def then(self, later: Timings) -> Timings:
        """This reading and a later one that goes on from it, as one: what the first one read is
        what the later one reused.
        """
        begun = later.first_token
        return replace(
            later,
            reused=max(0, later.reused - self.evaluated),
            evaluated=self.evaluated + later.evaluated,
            first_token=None if begun is None else self.total + begun,
            total=self.total + later.total,
            reuse_note=self.reuse_note or later.reuse_note,
        )

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
