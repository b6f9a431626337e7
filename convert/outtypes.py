"""The types a tensor can be written in. No numbers are handled here, so numpy is not imported."""

from __future__ import annotations

from typing import Final

# output type -> (ggml's type number, llama.cpp's general.file_type)
OUTTYPES: Final = {"f32": (0, 0), "f16": (1, 1), "bf16": (30, 32), "q8_0": (8, 7)}
Q8_0_BLOCK: Final = 32  # values that share a scale


def stored_type(outtype: str, row: int) -> str:
    """The output type of a tensor with rows of `row` values: f16 where q8_0's blocks do not fit."""
    return "f16" if outtype == "q8_0" and row % Q8_0_BLOCK else outtype
