"""What the bytes of a cell depend on besides the base."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Literal

from alora_gguf.gguf.base import BaseFile
from alora_gguf.options import ContextOptions

from .library import LLAMA_CPP_PYTHON

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


def _atoi(text: str) -> int:
    match = re.match(r"\s*[+-]?\d+", text)
    return int(match[0]) if match else 0
