"""In how many batches a text is read does not matter beyond rounding, with every kind of adapter.

Attention over few rows adds in another order than over many, so the last bits of F32 differ, as do
upstream's own for one row and from 64 on. A quantised base rounds what goes into its products to 8
bits, where a last bit may move a step: there, two ways to read a text are no farther from each
other than from the same weights in F32.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.engine.llama_context import Logits
from tests.backends import ON_DEVICE

from .checks import error
from .sides import ALORA, LORA, Sides, read, words

pytestmark = pytest.mark.parity

QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q5_1")
N = 48  # tokens: fewer than upstream's attention has a way of its own for
TOKENS = [*words(30, 50), 5, 5, 6, *words(N - 33, 51)]
CUTS: list[list[int]] = [
    *([n] for n in (1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 33, 40, N - 5, N - 4, N - 3, N - 2, N - 1)),
    [1, 2, 3],
    [20, 40],
    list(range(1, N)),
]


def as_type(base: Path, name: str, path: Path) -> Path:
    """A base with all its matrices in a type, by llama.cpp."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    options.pure = True
    done = llama_cpp.llama_model_quantize(
        str(base).encode(), str(path).encode(), ctypes.byref(options)
    )
    assert done == 0
    return path


def in_f32(base: Path, path: Path) -> Path:
    """A base whose matrices hold in F32 what those of another one do."""
    import gguf

    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value: Any = field.contents()
        writer.add_key_value(field.name, value, kind, inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def opened(
    base: Path, files: dict[str, Path], cells: str, attention: Literal["auto", "upstream"] = "auto"
) -> ag.Model:
    return ag.Model(
        base,
        adapters=files,
        n_ctx=256,
        n_threads=1,
        n_gpu_layers=-1 if ON_DEVICE else 0,
        type_k=cells,
        type_v=cells,
        flash_attn="on",
        attention=attention,
    )


def rms(values: Logits) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def farthest(model: ag.Model, name: str | None) -> float:
    """How far any way to read the text is from one batch, relative to the largest logit."""
    whole = read(model, TOKENS, name)
    return max(error(read(model, TOKENS, name, cuts=cuts), whole) for cuts in CUTS)


# a cell of F16 is rounded to 5e-4 of its value; at most 8e-7 and 5e-5 were measured
@pytest.mark.parametrize(("cells", "bound"), [("f32", 1e-5), ("f16", 5e-4)])
def test_f32(llama: Sides, cells: str, bound: float) -> None:
    with opened(llama.tiny.gguf, llama.files, cells, "upstream") as model:
        upstreams = 2 * farthest(model, None)
        # before its activation an aLoRA's tokens are the base's
        assert farthest(model, ALORA) <= bound + upstreams
    with opened(llama.tiny.gguf, llama.files, cells) as model:
        for name in (None, LORA, ALORA):
            assert farthest(model, name) <= bound + upstreams * ON_DEVICE


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised(llama: Sides, kind: str, tmp_path: Path) -> None:
    base = as_type(llama.tiny.gguf, kind, tmp_path / "base.gguf")
    exact = in_f32(base, tmp_path / "exact.gguf")
    for name in (ALORA, LORA):
        with opened(exact, llama.files, "f16") as model:
            reference = read(model, TOKENS, name)
        with opened(base, llama.files, "f16") as model:
            whole = read(model, TOKENS, name)
            others = [read(model, TOKENS, name, cuts=cuts) for cuts in CUTS]
        assert max(rms(other - whole) for other in others) <= rms(whole - reference)
