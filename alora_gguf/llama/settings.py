"""The keywords of stock's constructor and methods: which are accepted, which are refused, and how a
method of ours takes stock's beside its own.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

from llama_cpp import Llama as Stock
from llama_cpp import llama_chat_format

from alora_gguf._calls import Within, check_kind, check_texts
from alora_gguf.errors import InputError
from alora_gguf.options import (
    CACHE_TYPES,
    CacheType,
    ContextOptions,
    check_int,
    check_number,
)
from alora_gguf.threads import default_threads

PROMPT_ROWS: Final = 64
"""Rows of logits per batch when a prompt's log-probabilities are asked for without logits_all."""

_FORMER: Final[Mapping[str, tuple[object, ...]]] = {
    "n_parts": (-1,), "f16_kv": (True, False), "device": (), "rpc_servers": (), "n_gqa": (),
    "mul_mat_q": (True,), "low_vram": (False,), "rms_norm_eps": (),
}  # fmt: skip
"""What once were parameters, with the values that libraries still pass for them and that stock
swallows: LangChain and llama_cpp.server do."""

_ADAPTERS: Final = 'use adapters={"name": path} and adapter="name" with each call instead'
_REFUSED: Final[Mapping[str, tuple[tuple[object, ...], str]]] = {
    "lora_base": ((None,), _ADAPTERS),
    "lora_path": ((None,), _ADAPTERS),
    "lora_scale": ((1.0,), "use adapter_scale= with each call instead"),
    "swa_full": (
        (None, True),
        "sequences that share a prefix need the cells that a sliding window drops; leave it out",
    ),
}
"""Keywords that may only have these values, and what to do instead."""

_INTEGERS: Final[Mapping[str, Within]] = {
    "n_ctx": Within(0), "n_batch": Within(1), "n_ubatch": Within(1),
    "n_gpu_layers": Within(-(2**31)), "split_mode": Within(0, 3), "main_gpu": Within(-1),
    "n_threads": Within(-1, 512), "n_threads_batch": Within(-1, 512), "numa": Within(0, 4),
    "rope_scaling_type": Within(-1, 3), "yarn_orig_ctx": Within(0), "pooling_type": Within(-1, 4),
    "last_n_tokens_size": Within(-1), "seed": Within(-1, 2**32 - 1),
}  # fmt: skip
"""Of the others llama.cpp would take some bits, crash over them, or abort."""


def extends(theirs: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a method take the parameters of stock's `theirs`, and then its own keyword-only ones.

    It is called with stock's as a dict, defaults included. An unknown keyword raises a TypeError
    that names the nearest known one.
    """
    signature = inspect.signature(theirs)
    stock = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    names = [p.name for p in stock[1:]]
    defaults = {p.name: p.default for p in stock[1:] if p.default is not p.empty}

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        own = [p for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
        ours = {p.name for p in own}
        known = {*names, *ours}

        @functools.wraps(method)
        def call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            if not known.issuperset(kwargs):
                refuse_unknown(f"Llama.{method.__name__}", kwargs, known)
            extra = {name: kwargs.pop(name) for name in ours & kwargs.keys()}
            options = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
            if (
                len(options) < len(names)
                or len(args) > len(names)
                or kwargs.keys() & names[: len(args)]
            ):
                signature.bind(self, *args, **kwargs)  # says what is wrong
            for name, value in (*zip(names, args, strict=False), *kwargs.items(), *extra.items()):
                check_texts(value, name)
            return method(self, options, **extra)

        call.__signature__ = signature.replace(parameters=[*stock, *own])  # type: ignore[attr-defined]
        return call

    return decorate


def refuse_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises a TypeError for the first name in `given` that is not in `known`."""
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise TypeError(f"{what}() got an unexpected keyword argument '{name}'{hint}")


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's keywords as stock's constructor gets them, without `model_path`: those that
    were left out have our defaults. Raises InputError, and TypeError for unknown names.
    """
    parameters = inspect.signature(Stock.__init__).parameters
    known = [name for name in parameters if name not in ("self", "kwargs")]
    refuse_unknown("Llama.__init__", given, [*known, "adapters", *_FORMER])
    for name, value in given.items():
        check_texts(value, name)
    settings = {name: parameters[name].default for name in known if name != "model_path"}
    settings.update((name, value) for name, value in given.items() if name not in _FORMER)
    for name, usual in _FORMER.items():
        if given.get(name) not in (None, *usual):
            _warn(f"{name}={given[name]!r} has no effect: llama.cpp has no such option any more")
    for name, (allowed, instead) in _REFUSED.items():
        if settings[name] not in allowed:
            raise InputError(f"{name}={settings[name]!r} is not supported: {instead}")
    images = (llama_chat_format.Llava15ChatHandler, llama_chat_format.MTMDChatHandler)
    if isinstance(settings["chat_handler"], images):
        raise InputError(
            f"chat_handler={type(settings['chat_handler']).__name__} is not supported: images are "
            "not; use llama_cpp.Llama for it"
        )
    if settings["draft_model"] is not None:
        _warn("draft_model has no effect: drafts change how fast a text comes, not the text")
        settings["draft_model"] = None
    settings["embedding"] = False  # embed() makes a context of its own
    for name, value in settings.items():
        within, usual = _INTEGERS.get(name), parameters[name].default
        if within is not None and value is not usual:  # which may be None
            number = int(value) if usual is False and value is True else value
            check_kind(number, name, *within.test(int))
        elif name.startswith(("rope_freq", "yarn_")):
            check_number(value, name)
    for i, share in enumerate(settings["tensor_split"] or ()):
        check_number(share, f"tensor_split[{i}]", 0)
    threads = settings["n_threads"] or default_threads()
    settings["n_threads"] = threads
    settings["n_threads_batch"] = settings["n_threads_batch"] or threads
    return settings


def context_options(settings: Mapping[str, Any]) -> ContextOptions:
    """What a Runtime is to know of the context that stock makes of `settings`."""
    n_batch = min(settings["n_batch"], settings["n_ctx"] or settings["n_batch"])
    return ContextOptions(
        n_ctx=settings["n_ctx"] or None,
        n_batch=n_batch,
        n_ubatch=min(n_batch, settings["n_ubatch"]),
        n_outputs=n_batch if settings["logits_all"] else min(n_batch, PROMPT_ROWS),
        type_k=_cache_type(settings["type_k"], "type_k"),
        type_v=_cache_type(settings["type_v"], "type_v"),
        flash_attn="on" if settings["flash_attn"] else "off",
    )


def _cache_type(number: int | None, name: str) -> CacheType:
    names = {value: known for known, value in CACHE_TYPES.items()}
    if number is None:
        return "f16"
    if number not in names:
        known = ", ".join(f"{value} ({name})" for value, name in names.items())
        raise InputError(f"{name} must be one of {known}, got {number!r}")
    return cast(CacheType, names[number])


def check_sampling(options: Mapping[str, Any]) -> None:
    """Raises InputError for what cannot be sampled with, and warns of what has no effect."""
    for name in ("temp", "top_p", "min_p", "typical_p", "frequency_penalty", "presence_penalty"):
        check_number(options[name], "temperature" if name == "temp" else name)
    if check_number(options["repeat_penalty"], "repeat_penalty", 0.0) == 0:
        raise InputError("repeat_penalty must be above 0; 1 switches it off")
    check_int(options["mirostat_mode"], "mirostat_mode", 0, 2)
    if options["tfs_z"] != 1.0:
        _warn("tfs_z has no effect: llama.cpp has no tail-free sampling any more")
    if not options["penalize_nl"]:
        _warn("penalize_nl has no effect: llama.cpp penalizes line breaks as any other token")


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=5)
