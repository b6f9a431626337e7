"""What the bytes of a cell depend on besides the base, and whether two contexts agree on it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from typing import Literal

from ..engine.native import LLAMA_CPP_PYTHON
from ..gguf.base import BaseFile
from ..errors import SavedSessionError
from ..options import ContextOptions

Memory = Literal["attention", "recurrent", "hybrid"]


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
        quantized = {options.type_k, options.type_v} - {"f32", "f16", "bf16"}
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


def check_layout(old: CacheLayout, cache: CacheLayout, *, where: str) -> None:
    """Raises SavedSessionError, whose message begins with `where`, unless cells saved with the
    layout `old` mean the same with `cache`. How values lie (flash_attn) only the cells tell.
    """
    if old.llama_cpp != cache.llama_cpp:
        raise SavedSessionError(
            f"{where}: its cells are those of llama-cpp-python {old.llama_cpp}, but this is "
            f"{cache.llama_cpp}, which may lay them out otherwise; read the conversation again"
        )
    fixes = {
        "type_k": f"open the model with type_k={old.type_k!r}",
        "type_v": f"open the model with type_v={old.type_v!r}",
        "rope_context": f"open the model with n_ctx={old.rope_context}",
        "rotated": "set LLAMA_ATTN_ROT_DISABLE as it was then",
    }
    for name in (f.name for f in fields(CacheLayout) if f.name != "flash_attn"):
        found, expected = getattr(old, name), getattr(cache, name)
        if found != expected:
            raise SavedSessionError(
                f"{where}: was saved with {name} {found!r}, but this model has {expected!r}; "
                f"{fixes.get(name, 'open the model as it was then')}, or read the conversation "
                "again"
            )


def _atoi(text: str) -> int:
    match = re.match(r"\s*[+-]?\d+", text)
    return int(match[0]) if match else 0
