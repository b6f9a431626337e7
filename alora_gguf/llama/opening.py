"""From the constructor's keywords to an open Model: what is honoured, and what is refused."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from alora_gguf.engine import native as _native
from alora_gguf.engine.loading import Tuning
from alora_gguf.errors import FileFormatError, InputError
from alora_gguf.gguf.header import read_header
from alora_gguf.model import Model
from alora_gguf.options import CACHE_TYPES, CacheType, ContextOptions, check_int, check_number

from .options import Settings

_ADAPTERS: Final = 'use adapters={"name": path} and adapter="name" with each call instead'
_REFUSED: Final[dict[str, tuple[object, str]]] = {
    "vocab_only": (False, "open the whole model, or use llama_cpp.Llama for its vocabulary alone"),
    "lora_base": (None, _ADAPTERS),
    "lora_path": (None, _ADAPTERS),
    "lora_scale": (1.0, "use adapter_scale= with each call instead"),
    "draft_model": (None, "leave it out: drafts change how fast a text comes, not the text"),
}
"""Keywords that may only have their default, and what to do instead."""

PROMPT_ROWS: Final = 64
"""Rows of logits per batch when a prompt's log-probabilities are asked for without logits_all."""

_KV_OVERRIDE_TEXT: Final = 128  # bytes of a text in llama_model_kv_override


def open_model(settings: Settings) -> Model:
    """Opens the base. Raises InputError for what is refused, and as Model() does."""
    _refuse(settings)
    native = _native.load()
    if not Path(settings.model_path).exists():
        raise InputError(f"Model path does not exist: {settings.model_path}")
    numa = int(settings.numa)  # True is llama.cpp's GGML_NUMA_STRATEGY_DISTRIBUTE, 1
    if numa:
        native.llama.llama_numa_init(numa)
    model = Model(
        settings.model_path,
        adapters=settings.adapters,
        n_gpu_layers=settings.n_gpu_layers,
        options=_context_options(settings),
        verbose=settings.verbose,
        _tuning=Tuning(
            model=_model_fields(settings, native.llama), context=_context_fields(settings)
        ),
    )
    if settings.n_threads_batch is not None:
        threads = settings.n_threads or native.llama.llama_n_threads(model._runtime.engine.ctx)
        native.llama.llama_set_n_threads(
            model._runtime.engine.ctx, threads, settings.n_threads_batch
        )
    return model


def _refuse(settings: Settings) -> None:
    for name, (default, instead) in _REFUSED.items():
        value = getattr(settings, name)
        if value != default:
            raise InputError(f"{name}={value!r} is not supported: {instead}")
    if settings.swa_full is False:
        raise InputError(
            "swa_full=False is not supported: sequences that share a prefix need the cells that a "
            "sliding window drops; leave it out"
        )


def _context_options(settings: Settings) -> ContextOptions:
    check_int(settings.n_ctx, "n_ctx", 0)
    if settings.n_threads_batch is not None:
        check_int(settings.n_threads_batch, "n_threads_batch", 1, 512)
    n_ctx = settings.n_ctx or _trained_length(Path(settings.model_path))
    n_batch = min(n_ctx, check_int(settings.n_batch, "n_batch", 1))
    return ContextOptions(
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_ubatch=min(n_batch, check_int(settings.n_ubatch, "n_ubatch", 1)),
        n_outputs=n_batch if settings.logits_all else min(n_batch, PROMPT_ROWS),
        n_threads=settings.n_threads or None,
        type_k=_cache_type(settings.type_k, "type_k"),
        type_v=_cache_type(settings.type_v, "type_v"),
        flash_attn="on" if settings.flash_attn else "off",
    )


def _cache_type(number: int | None, name: str) -> CacheType:
    if number is None:
        return "f16"
    for known, value in CACHE_TYPES.items():
        if value == number:
            return known  # type: ignore[return-value]
    known_numbers = ", ".join(f"{value} ({known})" for known, value in CACHE_TYPES.items())
    raise InputError(f"{name} must be one of {known_numbers}, got {number!r}")


def _trained_length(path: Path) -> int:
    """The context length a model was trained with, which n_ctx=0 stands for."""
    try:
        header = read_header(path)
        length = header.metadata.get(f"{header.architecture}.context_length")
    except FileFormatError:
        length = None  # Model() says what is wrong with the file
    return length if isinstance(length, int) and length > 0 else 512


def _context_fields(settings: Settings) -> dict[str, Any]:
    """Fields of llama_context_params; a 0 or a negative number is the model's own value."""
    fields: dict[str, Any] = {
        "rope_scaling_type": -1
        if settings.rope_scaling_type is None
        else check_int(settings.rope_scaling_type, "rope_scaling_type", -1, 16),
        "pooling_type": check_int(settings.pooling_type, "pooling_type", -1, 16),
        "attention_type": check_int(settings.attention_type, "attention_type", -1, 16),
        "yarn_orig_ctx": check_int(settings.yarn_orig_ctx, "yarn_orig_ctx", 0),
        "offload_kqv": bool(settings.offload_kqv),
    }
    for name in (
        "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor",
        "yarn_beta_fast", "yarn_beta_slow",
    ):  # fmt: skip
        fields[name] = check_number(getattr(settings, name), name)
    if settings.op_offload is not None:
        fields["op_offload"] = bool(settings.op_offload)
    return fields


def _model_fields(settings: Settings, llama: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "split_mode": check_int(settings.split_mode, "split_mode", 0, 16),
        "main_gpu": check_int(settings.main_gpu, "main_gpu", 0),
        "load_mode": {
            (True, True): llama.LLAMA_LOAD_MODE_MMAP_MLOCK,
            (True, False): llama.LLAMA_LOAD_MODE_MMAP,
            (False, True): llama.LLAMA_LOAD_MODE_MLOCK,
            (False, False): llama.LLAMA_LOAD_MODE_NONE,
        }[bool(settings.use_mmap), bool(settings.use_mlock)],
    }
    if settings.tensor_split is not None:
        most = int(llama.llama_max_devices())
        split = [check_number(part, "tensor_split", 0.0) for part in settings.tensor_split]
        if len(split) > most:
            raise InputError(f"tensor_split has {len(split)} parts, at most {most} are possible")
        fields["tensor_split"] = (ctypes.c_float * most)(*split)
    if settings.kv_overrides is not None:
        fields["kv_overrides"] = _kv_overrides(settings.kv_overrides, llama)
    return fields


def _kv_overrides(overrides: Mapping[str, object], llama: Any) -> Any:
    """An array of llama_model_kv_override; the last, with an empty key, ends it."""
    array = (llama.llama_model_kv_override * (len(overrides) + 1))()
    for entry, (key, value) in zip(array, overrides.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, bool):
            entry.tag, entry.value.val_bool = llama.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        elif isinstance(value, int):
            entry.tag, entry.value.val_i64 = llama.LLAMA_KV_OVERRIDE_TYPE_INT, value
        elif isinstance(value, float):
            entry.tag, entry.value.val_f64 = llama.LLAMA_KV_OVERRIDE_TYPE_FLOAT, value
        elif isinstance(value, str) and len(value.encode()) < _KV_OVERRIDE_TEXT:
            entry.tag, entry.value.val_str = llama.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
        else:
            raise InputError(
                f"kv_overrides: {key!r} is {value!r}, expected a bool, int, float, or a text of "
                f"less than {_KV_OVERRIDE_TEXT} bytes"
            )
    return array


def settings_of_cells(settings: Settings) -> str:
    """What a cell's content depends on besides the base, the adapter and the layout."""
    names = (
        "kv_overrides", "rope_scaling_type", "attention_type", "rope_freq_base", "rope_freq_scale",
        "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx",
    )  # fmt: skip
    return repr([(name, getattr(settings, name)) for name in names])
