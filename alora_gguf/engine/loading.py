"""How a base is loaded and a context opened on it, and what the meaning of the cells depends on.

Models and contexts are llama.cpp's pointers here, which the caller frees.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from alora_gguf._calls import allowed, check_interrupts, pending, uninterrupted
from alora_gguf.errors import AloraError, CancelledError, ModelError
from alora_gguf.gguf.base import BaseFile
from alora_gguf.options import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    CancelToken,
    ContextOptions,
)
from alora_gguf.threads import default_threads, most_threads

from . import native as _native
from .library import LLAMA_CPP_PYTHON
from .native import Native
from .tokens import Vocabulary
from .trial import try_to_load

_WHOLE_CELLS: Final = ("f32", "f16", "bf16")
_CELL_BLOCK: Final = 32  # values in a block of every quantised type of cells
_LEAST_SIZES: Final = {"f32": 4.0, "f16": 2.0, "bf16": 2.0}  # bytes of a cell's value
_LEAST_SIZE: Final = 0.5  # of those that are quantised, at least
Memory = Literal["attention", "recurrent", "hybrid"]


def memory_of(llama: Any, model: int) -> Memory:
    """What a llama_model remembers with."""
    if llama.llama_model_is_recurrent(model):
        return "recurrent"
    return "hybrid" if llama.llama_model_is_hybrid(model) else "attention"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """What the meaning of a cell's bytes depends on, besides the base.

    llama_cpp      release of llama-cpp-python whose llama.cpp wrote them
    memory         what the base remembers with
    type_k/type_v  types of keys and values
    flash_attn     "on", "off" or "auto", as asked for; llama.cpp lays values out by it
    swa_full       whether a sliding window's cache has a cell for every token
    window         tokens of the sliding window, 0 without one
    rotated        whether llama.cpp rotates keys and values before it quantizes them
    rope_context   n_ctx, for a base that chooses its RoPE factors by it, else 0
    """

    llama_cpp: str
    memory: Memory
    type_k: str
    type_v: str
    flash_attn: str
    swa_full: bool
    window: int
    rotated: bool
    rope_context: int

    @classmethod
    def of(
        cls,
        options: ContextOptions,
        base: BaseFile,
        *,
        n_ctx: int,
        memory: Memory,
        window: int,
        swa_full: bool = True,
    ) -> CacheLayout:
        """That of a context with `n_ctx` cells; `window` is llama_model_n_swa()."""
        quantized = {options.type_k, options.type_v} - set(_WHOLE_CELLS)
        return cls(
            llama_cpp=LLAMA_CPP_PYTHON,
            memory=memory,
            type_k=options.type_k,
            type_v=options.type_v,
            flash_attn=options.flash_attn,
            swa_full=swa_full,
            window=window,
            # llama.cpp reads the variable with atoi()
            rotated=bool(quantized) and _atoi(os.environ.get("LLAMA_ATTN_ROT_DISABLE", "")) == 0,
            rope_context=n_ctx if any("rope_factors_long" in name for name in base.tensors) else 0,
        )


def _atoi(text: str) -> int:
    match = re.match(r"\s*[+-]?\d+", text)
    return int(match[0]) if match else 0


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Fields of llama.cpp's parameters that no option names, and values for them as ctypes takes
    them. Those that options name stay theirs.

    model    fields of llama_model_params
    context  fields of llama_context_params
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)


def _with_fields(params: Any, fields: Mapping[str, Any]) -> Any:
    for name, value in fields.items():
        setattr(params, name, value)
    return params


def load_weights(
    native: Native,
    path: Path,
    n_gpu_layers: int,
    *,
    rpc: Sequence[str] = (),
    tuning: Tuning,
    cancel: CancelToken | None = None,
    progress: Callable[[float], None] | None = None,
) -> int:
    """A llama_model, to be freed by the caller, layers of which may be at `rpc`'s servers.
    `progress` is called with the loaded fraction, 0 to 1. Raises ModelError, RpcError,
    CancelledError, and what `progress` raises.
    """
    llama = native.llama
    failed: list[BaseException] = []
    interrupted = False

    def on_progress(fraction: float, _user_data: object) -> bool:
        """llama.cpp's callback, on this thread; returning false ends the loading."""
        nonlocal interrupted
        try:
            if progress is not None:
                with allowed:
                    progress(fraction)
        except BaseException as error:
            failed.append(error)
        interrupted = interrupted or pending()
        return not (failed or interrupted or (cancel is not None and cancel.cancelled))

    params = _with_fields(llama.llama_model_default_params(), tuning.model)
    params.n_gpu_layers = n_gpu_layers
    devices = native.rpc_devices(rpc) if rpc else None
    if devices is not None:
        params.devices = ctypes.addressof(devices)
    callback = llama.llama_progress_callback(on_progress)
    params.progress_callback = callback
    while True:
        model = llama.llama_model_load_from_file(os.fsencode(path), params)
        if model or failed or not interrupted:
            break
        check_interrupts()
        interrupted = False  # the program's handler raised nothing: it is loaded all the same
    if failed:
        if model:
            llama.llama_model_free(model)
        raise failed.pop()  # or this frame and the error would refer to one another
    if not model and cancel is not None and cancel.cancelled:
        raise CancelledError(f"{path}: loading was cancelled")
    if not model:
        native.rpc_check(rpc, str(path))
        raise ModelError(f"{path}: llama.cpp cannot load this model{native.log.tail()}")
    return int(model)


def check_load(base: BaseFile, options: ContextOptions, cancel: CancelToken | None = None) -> None:
    """To be called before a base is loaded with these options: what llama.cpp would end the process
    over is an error. Raises ModelError, CancelledError.
    """
    _check_cache(base, options)
    _check_memory(base, options)
    n_bytes = sum(each.stat().st_size for each in base.parts)
    # what is on other machines because it is too large for this one is not computed here to try it
    large = bool(options.servers) and n_bytes > machine_memory() / 2
    try_to_load(base.parts, vocab_only=large, cancel=cancel)


def _check_cache(base: BaseFile, options: ContextOptions) -> None:
    """Raises ModelError for cells that llama.cpp cannot keep: with flash attention off it checks
    nothing, and aborts or computes NaN where blocks do not fill a head.
    """
    types = {"type_k": options.type_k, "type_v": options.type_v}
    for (name, kind), sizes in zip(types.items(), base.head_sizes, strict=True):
        odd = min((size for size in sizes if size % _CELL_BLOCK), default=0)
        if kind not in _WHOLE_CELLS and odd:
            raise ModelError(
                f"{base.path}: {name}={kind!r} stores blocks of {_CELL_BLOCK} values, which do not "
                f"divide the {odd} of a head; use one of {', '.join(_WHOLE_CELLS)}"
            )
    if options.type_v not in _WHOLE_CELLS and options.flash_attn == "off":
        raise ModelError(
            f"{base.path}: type_v={options.type_v!r} needs flash attention; leave flash_attn out, "
            f"or use one of {', '.join(_WHOLE_CELLS)}"
        )


def _check_memory(base: BaseFile, options: ContextOptions) -> None:
    """Raises ModelError for cells that this machine's memory cannot hold, which llama.cpp finds out
    after half a minute, or never: it would be killed. Only what is sure to be too much is refused.
    """
    wanted = options.n_ctx or 0
    values = {
        part: sum(
            math.prod(info.shape[1:])
            for name, info in base.tensors.items()
            if name.endswith(f".attn_{part}.weight")
        )
        for part in ("k", "v")
    }
    sizes = {"k": options.type_k, "v": options.type_v}
    each = sum(n * _LEAST_SIZES.get(sizes[part], _LEAST_SIZE) for part, n in values.items())
    there = machine_memory()
    if options.offloaded or not there or wanted * each <= there:
        return
    raise ModelError(
        f"{base.path}: a KV cache of {wanted} cells takes {wanted * each / 1e9:,.1f} GB, and this "
        f"machine has {there / 1e9:,.1f} GB of memory; use a smaller n_ctx"
    )


def machine_memory() -> int:
    """This machine's memory, in bytes; 0 where it cannot be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows, or a system that does not know
        return 0


def open_context(
    native: Native, path: Path, model: int, options: ContextOptions, tuning: Tuning
) -> int:
    """A llama_context on `model`, to be freed by the caller before it. Raises ModelError,
    RpcError.
    """
    llama = native.llama
    params = context_params(llama, model, options, tuning)
    ctx = llama.llama_init_from_model(model, params)
    if not ctx:
        native.rpc_check(options.servers, str(path))
        raise ModelError(
            f"{path}: no context of {params.n_ctx} cells (keys {options.type_k}, values "
            f"{options.type_v}) could be made{native.log.tail()}; a smaller n_ctx or other cache "
            "types may help"
        )
    return int(ctx)


def context_params(llama: Any, model: int, options: ContextOptions, tuning: Tuning) -> Any:
    """llama_context_params of a context on `model`."""
    params = _with_fields(llama.llama_context_default_params(), tuning.context)
    trained = llama.llama_model_n_ctx_train(model)
    params.n_ctx = options.n_ctx or min(trained or 4096, 4096)
    params.n_batch = min(options.n_batch, params.n_ctx)
    params.n_ubatch = min(options.n_ubatch, params.n_batch)
    params.n_seq_max = options.n_seq_max
    # rows of logits are what makes the worst-case compute buffer large: n_batch of them would
    # take 260 MB for a vocabulary of 128k; llama.cpp wants one per sequence at least
    params.n_outputs_max = max(min(options.rows, params.n_batch), options.n_seq_max)
    # "upstream" promises bits, which there depend on how many threads compute
    usual = default_threads if options.attention == "upstream" else most_threads
    params.n_threads = params.n_threads_batch = options.n_threads or usual()
    params.type_k, params.type_v = CACHE_TYPES[options.type_k], CACHE_TYPES[options.type_v]
    params.flash_attn_type = FLASH_ATTENTION[options.flash_attn]
    params.kv_unified = True  # forks share cells only in a unified cache
    params.swa_full = True  # and a fork in the middle needs cells that a sliding window drops
    params.no_perf = True
    return params


@uninterrupted
class BareVocabulary:
    """A base's vocabulary, without its weights; `vocab` is usable until close(). `rewinds` says
    whether the model's memory can be cut at any token.
    """

    def __init__(self, path: Path, name: str) -> None:
        """Raises ModelError for a file that llama.cpp cannot load."""
        try_to_load([path], vocab_only=True)
        native = _native.load()
        with native.log.capture():
            model = load_weights(native, path, 0, tuning=Tuning(model={"vocab_only": True}))
        self.vocab = Vocabulary(native, model, name)
        self._finalizer = weakref.finalize(self, _free, native.llama, self.vocab, model)
        self.rewinds = memory_of(native.llama, model) == "attention"

    def close(self) -> None:
        """Frees it; idempotent."""
        self.vocab.close()
        self._finalizer()


def _free(llama: Any, vocab: Vocabulary, model: int) -> None:
    vocab.forget()  # somebody may still hold it
    llama.llama_model_free(model)


_PROBE: Final = "".join(map(chr, range(1, 128))) + " naïve 漢字 😊\u200b the end"


def load_here(path: str, vocab_only: bool) -> None:
    """What the process of try_to_load() does."""
    with contextlib.suppress(ImportError):  # on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no file of what it had in memory
    native = _native.load()
    llama = native.llama
    no_devices = (ctypes.c_void_p * 1)()
    fields = {"vocab_only": vocab_only, "use_extra_bufts": False}  # repacking takes memory
    tuning = Tuning(model={**fields, "devices": ctypes.addressof(no_devices)})
    print("loading", flush=True)  # noqa: T201 (to the process that waits)
    with native.log.capture(), contextlib.suppress(AloraError):  # which awaits the other, too
        model = load_weights(native, Path(path), 0, tuning=tuning)
        if not vocab_only and not llama.llama_model_has_encoder(model):
            ctx = open_context(native, Path(path), model, ContextOptions(n_ctx=64), Tuning())
            tokens = (llama.llama_token * 2)(0, 1)
            llama.llama_decode(ctx, llama.llama_batch_get_one(tokens, 2))
            llama.llama_synchronize(ctx)
        vocab = Vocabulary(native, model, path)
        vocab.detokenize(vocab.tokenize(_PROBE, add_special=True, parse_special=True), special=True)
