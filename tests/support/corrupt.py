"""Adapters and bases that are wrong in one way each, written by hand where a writer would refuse.

`python -m tests.support.corrupt BASE [ADAPTER]` opens BASE with ADAPTER, decodes with it and prints
the error that came of it. So a crash is an exit status and not the end of the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from . import tiny_base as tb
from .make_gguf import Array, adapter_keys, make_gguf

Type = gguf.GGUFValueType
Q = "blk.0.attn_q.weight"


def pair(
    target: str = Q, a: tuple[int, ...] = (4, 64), b: tuple[int, ...] = (64, 4), value: float = 0.1
) -> dict[str, Array]:
    """Both halves of a target, shapes in numpy order: A [r, n_in], B [n_out, r]."""
    return {
        f"{target}.lora_a": np.full(a, value, np.float32),
        f"{target}.lora_b": np.full(b, value, np.float32),
    }


def adapter(
    path: Path,
    tensors: Mapping[str, Array] | None = None,
    keys: Mapping[str, tuple[Any, Type]] | None = None,
    *,
    arch: str = "llama",
    array: tuple[Type, list[Any]] | None = None,
) -> Path:
    """An adapter of `tensors`; `keys` replace or add metadata, a None value leaves one out."""
    entries: dict[str, Any] = adapter_keys(8.0)
    entries.update({k: None if pair[0] is None else pair for k, pair in (keys or {}).items()})
    if array is not None:
        kind, values = array
        entries["adapter.alora.invocation_tokens"] = (values, kind)
    chosen: dict[str, Any] = {}
    for name, data in (pair() if tensors is None else tensors).items():
        raw = gguf.GGMLQuantizationType.I32 if data.dtype == np.int32 else None
        chosen[name] = (data, raw)
    return make_gguf(path, entries, chosen, architecture=arch)


def key(name: str, value: Any, kind: Type) -> Callable[[Path], Path]:
    return lambda path: adapter(path, keys={name: (value, kind)})


def only(tensors: Mapping[str, Array]) -> Callable[[Path], Path]:
    return lambda path: adapter(path, tensors)


def halves(a: Any = np.float32, b: Any = np.float32, **shapes: Any) -> Callable[[Path], Path]:
    tensors = pair(**shapes)
    types = {"a": a, "b": b}
    return only({name: data.astype(types[name[-1]]) for name, data in tensors.items()})


def without(suffix: str) -> Callable[[Path], Path]:
    return only({n: d for n, d in pair().items() if not n.endswith(suffix)})


def array(kind: Type, values: list[Any]) -> Callable[[Path], Path]:
    return lambda path: adapter(path, array=(kind, values))


def truncated(path: Path) -> Path:
    adapter(path)
    path.write_bytes(path.read_bytes()[:-64])
    return path


def norm(path: Path) -> Path:
    return adapter(path, {"blk.0.attn_norm.weight": np.ones(64, np.float32)})


def _poison(half: str, value: float = np.nan, dtype: Any = np.float32) -> dict[str, Array]:
    tensors = {name: data.astype(dtype) for name, data in pair().items()}
    tensors[f"{Q}.lora_{half}"][1, 2] = value
    return tensors


def raw(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


EMBD, OUT = "token_embd.weight", "output.weight"
DOWN = "blk.0.ffn_down_exps.weight"
V = tb.N_VOCAB

# name -> (writer, base, error, a part of its message)
ADAPTERS: dict[str, tuple[Callable[[Path], Path], str, str, str]] = {
    "truncated": (truncated, "base", "AdapterFormatError", "truncated"),
    "empty file": (lambda p: raw(p, b""), "base", "AdapterFormatError", "empty"),
    "not a GGUF": (lambda p: raw(p, b"x" * 99), "base", "AdapterFormatError", "not a GGUF"),
    "a base model": (tb.write_base, "base", "AdapterFormatError", "not an adapter"),
    "wrong architecture": (
        lambda p: adapter(p, arch="qwen2"), "base", "AdapterMismatchError", "'qwen2'"),
    "architecture of another type": (
        key("general.architecture", 3, Type.UINT32), "base", "AdapterFormatError",
        "general.architecture is of type uint32, expected a string"),
    "no architecture": (
        key("general.architecture", None, Type.STRING), "base", "AdapterFormatError", "missing"),
    "general.type of another type": (
        key("general.type", 1, Type.UINT32), "base", "AdapterFormatError",
        "general.type is of type uint32, expected a string"),
    "adapter.type of another type": (
        key("adapter.type", 1.0, Type.FLOAT32), "base", "AdapterFormatError",
        "adapter.type is of type float32, expected a string"),
    "adapter.type unknown": (
        key("adapter.type", "ia3", Type.STRING), "base", "AdapterFormatError", "'ia3'"),
    "alpha of another type": (
        key("adapter.lora.alpha", 16, Type.UINT32), "base", "AdapterFormatError",
        "adapter.lora.alpha is of type uint32, expected a float32"),
    "alpha as text": (
        key("adapter.lora.alpha", "16", Type.STRING), "base", "AdapterFormatError",
        "adapter.lora.alpha is of type string, expected a float32"),
    "alpha NaN": (
        key("adapter.lora.alpha", float("nan"), Type.FLOAT32), "base", "AdapterFormatError",
        "adapter.lora.alpha is nan"),
    "alpha infinite": (
        key("adapter.lora.alpha", float("inf"), Type.FLOAT32), "base", "AdapterFormatError",
        "adapter.lora.alpha is inf"),
    "A missing": (without("a"), "base", "AdapterFormatError", f"'{Q}.lora_a' is missing"),
    "B missing": (without("b"), "base", "AdapterFormatError", f"'{Q}.lora_b' is missing"),
    "A is I32": (halves(a=np.int32), "base", "AdapterFormatError", "is I32, expected one of F32"),
    "B is I32": (halves(b=np.int32), "base", "AdapterFormatError", "is I32, expected one of F32"),
    "A is F64": (halves(a=np.float64), "base", "AdapterFormatError", "is F64"),
    "B is F64": (halves(b=np.float64), "base", "AdapterFormatError", "is F64"),
    "wrong n_in": (
        only(pair(a=(4, 32))), "base", "AdapterMismatchError", "wants A [64, 4] and B [4, 64]"),
    "wrong n_out": (only(pair(b=(96, 4))), "base", "AdapterMismatchError", "B [4, 96]"),
    "A transposed": (only(pair(a=(64, 4))), "base", "AdapterFormatError", "has rank 64"),
    "ranks differ": (only(pair(b=(64, 8))), "base", "AdapterFormatError", "has rank 4"),
    "rank 0": (only(pair(a=(0, 64), b=(64, 0))), "base", "AdapterFormatError", "shape"),
    "3-D A and B on a matrix": (
        only(pair(a=(2, 4, 64), b=(2, 64, 4))), "base", "AdapterMismatchError", "A [64, 4, 2]"),
    "3-D A alone": (only(pair(a=(2, 4, 64))), "base", "AdapterFormatError", "differ in their"),
    "1-D A and B": (only(pair(a=(64,), b=(64,))), "base", "AdapterFormatError", "2 dimensions"),
    "2-D A and B on experts": (
        only(pair(DOWN, (4, 128), (64, 4))), "experts", "AdapterMismatchError",
        "wants A [128, 4, 4] and B [4, 64, 4]"),
    "too few experts": (
        only(pair(DOWN, (2, 4, 128), (2, 64, 4))), "experts", "AdapterMismatchError",
        "A [128, 4, 2]"),
    "too many experts": (
        only(pair(DOWN, (8, 4, 128), (8, 64, 4))), "experts", "AdapterMismatchError",
        "A [128, 4, 8]"),
    "experts of A and B differ": (
        only(pair(DOWN, (4, 4, 128), (2, 64, 4))), "experts", "AdapterFormatError", "differ in"),
    "no such weight": (
        only(pair("blk.7.attn_q.weight")), "base", "AdapterMismatchError",
        "has no tensor 'blk.7.attn_q.weight'"),
    "output of a tied base": (
        only(pair(OUT, (4, 64), (V, 4))), "tied", "AdapterMismatchError", "ties its output"),
    "embedding ranks differ": (
        only(pair(EMBD, (V, 4), (64, 8))), "base", "AdapterFormatError", "has rank 4"),
    "embedding not flipped": (
        only(pair(EMBD, (4, 64), (V, 4))), "base", "AdapterFormatError", "has rank 64"),
    "embedding of another vocabulary": (
        only(pair(EMBD, (99, 4), (64, 4))), "base", "AdapterMismatchError", f"A [4, {V}]"),
    "NaN in A": (
        lambda p: adapter(p, _poison("a")), "base", "AdapterFormatError", "NaN or infinite"),
    "infinity in B": (
        lambda p: adapter(p, _poison("b", np.inf)), "base", "AdapterFormatError",
        f"'{Q}.lora_b' holds NaN or infinite"),
    "NaN in F16": (
        lambda p: adapter(p, _poison("b", np.nan, np.float16)), "base", "AdapterFormatError",
        "NaN or infinite"),
    "no weights": (only({}), "base", "AdapterFormatError", "holds no weights"),
    "norms only": (norm, "base", "AdapterFormatError", "trained norm"),
    "unknown suffix": (
        only({f"{Q}.lora_c": np.ones((4, 64), np.float32)}), "base", "AdapterFormatError",
        "ends in neither"),
    "invocation outside the vocabulary": (
        array(Type.UINT32, [1, V]), "base", "AdapterMismatchError", f"invocation token {V}"),
    "invocation beyond int32": (
        array(Type.UINT32, [2**31]), "base", "AdapterFormatError", "not a token id"),
    "invocation of int32": (
        array(Type.INT32, [1, 2]), "base", "AdapterFormatError", "an array of 2 int32"),
    "invocation is a number": (
        key("adapter.alora.invocation_tokens", 5, Type.UINT32), "base", "AdapterFormatError",
        "is of type uint32, expected an array of uint32"),
    "invocation is text": (
        key("adapter.alora.invocation_tokens", "<x>", Type.STRING), "base", "AdapterFormatError",
        "is of type string, expected an array of uint32"),
}  # fmt: skip


def empty_invocation(path: Path) -> Path:
    """An array of no elements, which GGUFWriter cannot write: one of two, cut out by hand."""
    adapter(path, array=(Type.UINT32, [0x5EEDED, 0x5EEDED]))
    data = path.read_bytes()
    marker = (2).to_bytes(8, "little") + (0x5EEDED).to_bytes(4, "little") * 2
    at = data.index(marker)
    name = f"{Q}.lora_b".encode()
    # the tensor table ends after the last tensor's dimensions (u32, 2 u64), type and offset
    end = data.rindex(name) + len(name) + 4 + 2 * 8 + 4 + 8
    header = data[:at] + bytes(8) + data[at + len(marker) : end]
    path.write_bytes(header + bytes(-len(header) % 32) + data[end + -end % 32 :])
    return path


ADAPTERS["empty invocation"] = (
    empty_invocation, "base", "AdapterFormatError", "invocation_tokens is empty"
)  # fmt: skip


def main(base: str, adapter_path: str | None) -> int:
    """Opens, decodes with the adapter, prints `ErrorName: message`; returns 3 for our errors."""
    import alora_gguf as ag

    try:
        with ag.Model(base, n_ctx=256, n_threads=1) as model:
            session = model.session()
            name = None
            if adapter_path is not None:
                model.load_adapter("x", adapter_path)
                name = "x"
            session.append(list(range(20)))
            verdict = session.invoke(ag.Invocation(name, [1, 2, 3], max_tokens=4))
            print("decoded", verdict.tokens)
    except ag.AloraError as error:
        print(f"{type(error).__name__}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
