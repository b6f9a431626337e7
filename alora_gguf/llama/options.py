"""The keywords of llama_cpp.Llama's constructor and methods: each set once, as a dataclass whose
fields have stock's names, order and defaults. takes() makes a method's signature of one.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from alora_gguf.errors import InputError
from alora_gguf.options import check_int, check_number

if TYPE_CHECKING:
    from llama_cpp import llama_types
    from llama_cpp.llama_grammar import LlamaGrammar
    from llama_cpp.llama_tokenizer import BaseLlamaTokenizer

    from alora_gguf.messages import Document, Message

TokenIds = NDArray[np.intc]
LogitsRow = NDArray[np.float32]
LogitsProcessor = Callable[[TokenIds, LogitsRow], LogitsRow]
"""Called with the tokens read so far and a row of logits [n_vocab]; returns the row to use."""
StoppingCriterion = Callable[[TokenIds, LogitsRow], bool]
"""Called after each token is sampled with the tokens read so far (not that one) and the row of
logits it came from; true ends the reply before it. llama_cpp's StoppingCriteriaList is one.
"""

DEFAULT_SEED: Final = 0xFFFFFFFF
"""llama.cpp's LLAMA_DEFAULT_SEED, by which its samplers draw a seed of their own."""

_P = ParamSpec("_P")
_Options = TypeVar("_Options")
_Self = TypeVar("_Self")
_R = TypeVar("_R")


def takes(
    options: Callable[_P, _Options],
) -> Callable[[Callable[[_Self, _Options], _R]], Callable[Concatenate[_Self, _P], _R]]:
    """Makes a method that takes an `options` object one that takes its fields as arguments.

    An unknown keyword raises a TypeError that names the nearest known one.
    """
    parameters = inspect.signature(options).parameters

    def decorate(
        method: Callable[[_Self, _Options], _R],
    ) -> Callable[Concatenate[_Self, _P], _R]:
        @functools.wraps(method)
        def call(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
            refuse_unknown(f"Llama.{method.__name__}", kwargs, parameters)
            return method(self, options(*args, **kwargs))

        own = inspect.signature(method)
        this = next(iter(own.parameters.values()))
        call.__signature__ = own.replace(  # type: ignore[attr-defined]
            parameters=[this, *parameters.values()]
        )
        return call

    return decorate


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises a TypeError for the first name in `given` that is not in `known`."""
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"{what}() got an unexpected keyword argument '{name}'{hint}")


@dataclass(frozen=True)
class Settings:
    """The constructor's keywords; docs/llama.md says which are honoured and which refused."""

    model_path: str | os.PathLike[str]
    _: KW_ONLY
    n_gpu_layers: int = 0
    split_mode: int = 1
    main_gpu: int = 0
    tensor_split: Sequence[float] | None = None
    vocab_only: bool = False
    use_mmap: bool = True
    use_mlock: bool = False
    kv_overrides: Mapping[str, bool | int | float | str] | None = None
    seed: int = DEFAULT_SEED
    n_ctx: int = 512
    n_batch: int = 512
    n_ubatch: int = 512
    n_threads: int | None = None
    n_threads_batch: int | None = None
    rope_scaling_type: int | None = -1
    pooling_type: int = -1
    attention_type: int = -1
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    yarn_ext_factor: float = -1.0
    yarn_attn_factor: float = 1.0
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_orig_ctx: int = 0
    logits_all: bool = False
    embedding: bool = False
    offload_kqv: bool = True
    flash_attn: bool = False
    op_offload: bool | None = None
    swa_full: bool | None = None
    no_perf: bool = False
    last_n_tokens_size: int = 64
    lora_base: str | None = None
    lora_scale: float = 1.0
    lora_path: str | None = None
    numa: bool | int = False
    chat_format: str | None = None
    chat_handler: Callable[..., Any] | None = None
    draft_model: object | None = None
    tokenizer: BaseLlamaTokenizer | None = None
    type_k: int | None = None
    type_v: int | None = None
    spm_infill: bool = False
    verbose: bool = True
    adapters: Mapping[str, str | os.PathLike[str]] | None = None


@dataclass(frozen=True)
class SampleOptions:
    """What sample() takes: how to choose a token."""

    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    temp: float = 0.80
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    tfs_z: float = 1.0
    mirostat_mode: int = 0
    mirostat_eta: float = 0.1
    mirostat_tau: float = 5.0
    penalize_nl: bool = True
    logits_processor: Sequence[LogitsProcessor] | None = None
    grammar: LlamaGrammar | None = None
    idx: int | None = None

    def __post_init__(self) -> None:
        check_number(self.temp, "temperature")
        check_int(self.top_k, "top_k", -(2**31))
        for name in ("top_p", "min_p", "typical_p", "frequency_penalty", "presence_penalty"):
            check_number(getattr(self, name), name)
        if check_number(self.repeat_penalty, "repeat_penalty", 0.0) == 0:
            raise InputError("repeat_penalty must be above 0; 1 switches it off")
        check_number(self.mirostat_tau, "mirostat_tau")
        check_number(self.mirostat_eta, "mirostat_eta")
        if self.mirostat_mode not in (0, 1, 2):
            raise InputError(f"mirostat_mode must be 0, 1 or 2, got {self.mirostat_mode!r}")
        if self.tfs_z != 1.0:
            _warn("tfs_z has no effect: llama.cpp has no tail-free sampling any more")
        if not self.penalize_nl:
            _warn("penalize_nl has no effect: llama.cpp penalizes line breaks as any other token")


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=6)


@dataclass(frozen=True)
class GenerateOptions:
    """What generate() takes."""

    tokens: Sequence[int]
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    temp: float = 0.80
    repeat_penalty: float = 1.0
    reset: bool = True
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    tfs_z: float = 1.0
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    penalize_nl: bool = True
    logits_processor: Sequence[LogitsProcessor] | None = None
    stopping_criteria: StoppingCriterion | None = None
    grammar: LlamaGrammar | None = None
    _: KW_ONLY
    adapter: str | None = None
    adapter_scale: float = 1.0


@dataclass(frozen=True)
class CompletionOptions:
    """What create_completion() and a call of the object take."""

    prompt: str | Sequence[int]
    suffix: str | None = None
    max_tokens: int | None = 16
    temperature: float = 0.8
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    logprobs: int | None = None
    echo: bool = False
    stop: str | Sequence[str] | None = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    top_k: int = 40
    stream: bool = False
    seed: int | None = None
    tfs_z: float = 1.0
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    model: str | None = None
    stopping_criteria: StoppingCriterion | None = None
    logits_processor: Sequence[LogitsProcessor] | None = None
    grammar: LlamaGrammar | None = None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None = None
    _: KW_ONLY
    adapter: str | None = None
    adapter_scale: float = 1.0
    intrinsic: str | None = None
    intrinsic_arguments: Mapping[str, str] | None = None

    @property
    def stops(self) -> list[str]:
        """`stop` as a list."""
        if isinstance(self.stop, str):
            return [self.stop]
        return list(self.stop or ())


@dataclass(frozen=True)
class ChatOptions:
    """What create_chat_completion() takes."""

    messages: Sequence[llama_types.ChatCompletionRequestMessage | Message]
    functions: list[llama_types.ChatCompletionFunction] | None = None
    function_call: llama_types.ChatCompletionRequestFunctionCall | None = None
    tools: list[llama_types.ChatCompletionTool] | None = None
    tool_choice: llama_types.ChatCompletionToolChoiceOption | None = None
    temperature: float = 0.2
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    typical_p: float = 1.0
    stream: bool = False
    stop: str | Sequence[str] | None = ()
    seed: int | None = None
    response_format: Mapping[str, object] | None = None
    max_tokens: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    tfs_z: float = 1.0
    mirostat_mode: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    model: str | None = None
    logits_processor: Sequence[LogitsProcessor] | None = None
    grammar: LlamaGrammar | None = None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    _: KW_ONLY
    adapter: str | None = None
    adapter_scale: float = 1.0
    documents: Sequence[Document | str | Mapping[str, object]] | None = None
    chat_template_kwargs: Mapping[str, object] | None = None
    intrinsic: str | None = None
    intrinsic_arguments: Mapping[str, str] | None = None


def sampling_of(options: GenerateOptions | CompletionOptions, **changes: object) -> SampleOptions:
    """The part of `options` that says how to choose a token; `changes` replace some of it."""
    names = set(SampleOptions.__dataclass_fields__) - {"idx"} - set(changes)
    picked = {name: getattr(options, name) for name in names if hasattr(options, name)}
    if isinstance(options, CompletionOptions):
        picked["temp"] = options.temperature
    return SampleOptions(**picked, **changes)  # type: ignore[arg-type]
