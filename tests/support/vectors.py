"""Steering vectors for the tests: sound ones as others write them, and ones wrong in one way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from . import tiny_base as tb
from .make_gguf import Array, make_gguf

Type = gguf.GGUFValueType
N = tb.N_EMBD
WORDS = {  # GLP's for our hooks
    "block": "residual_stream_post_layer",
    "attention": "attn_out_pre_residual",
    "ffn": "ffn_out_pre_residual",
}


def rows(k: int = 1, seed: int = 5, n: int = N) -> Array:
    """Some directions [k, n], neither of length 1 nor orthogonal."""
    return np.random.default_rng(seed).normal(size=(k, n)).astype(np.float32)


def plain(path: Path, layers: Sequence[int] = (1,), *, hint: str = "llama", seed: int = 5) -> Path:
    """A control vector as repeng and llama.cpp's generator write it."""
    tensors = {f"direction.{il}": rows(seed=seed + il)[0] for il in layers}
    keys = {"controlvector.model_hint": hint, "controlvector.layer_count": len(layers)}
    return make_gguf(path, keys, tensors, architecture="controlvector")


def glp(
    path: Path,
    tensors: Mapping[str, Array] | None = None,
    keys: Mapping[str, Any] | None = None,
    *,
    mode: str = "project",
    hook: str = "block",
    sha256: bool = True,
) -> Path:
    """As GLP's own tool writes it: unit directions, every key. A key of None is left out."""
    if tensors is None:
        tensors = {f"direction.{il}": unit(rows(seed=5 + il)[0]) for il in (1,)}
    layers = sorted({int(name.split(".")[1]) for name in tensors if name[10:11].isdigit()})
    k = max(1, len(tensors) // max(1, len(layers)))
    every: dict[str, Any] = {
        "controlvector.model_hint": "llama",
        "controlvector.layer_count": len(layers),
        "general.base_model.0.name": "Tiny",
        "glp.spec_version": 1 if k == 1 else 2,
        "glp.generator": "captain-vector 0.4.0",
        "glp.mode": mode,
        "glp.alpha_default": 2.0,
        "glp.rank": k,
        "glp.orthonormal": True,
        "glp.hook_point": WORDS[hook],
        "glp.derived_at": WORDS["block"],
        "glp.method": "dom",
        "glp.contrast": "a-vs-b",
        "glp.structure": "per-layer",
        "glp.base_model": "org/Tiny",
        "glp.base_revision": "a" * 40,
        "glp.layer_ids_zero_based": ",".join(map(str, layers)),
        "glp.created": "2026-09-04",
    }
    if sha256:
        stored = b"".join(tensors[name].tobytes() for name in sorted(tensors))
        every["glp.content_sha256"] = hashlib.sha256(stored).hexdigest()
    every.update(keys or {})
    architecture = every.pop("general.architecture", "controlvector")
    return make_gguf(path, every, tensors, architecture=architecture or "x")


def unit(row: Array) -> Array:
    scaled: Array = (row / np.linalg.norm(row)).astype(np.float32)
    return scaled


def orthonormal(k: int, seed: int = 5) -> Array:
    """Rows as Gram and Schmidt make them of rows(k), one by one."""
    out: list[Array] = []
    for row in rows(k, seed).astype(np.float64):
        left = row - sum(((row @ other) * other for other in out), np.zeros(N))
        out.append(left / np.linalg.norm(left))
    return np.array(out, np.float32)


def basis(k: int = 2, layer: int = 1) -> dict[str, Array]:
    names = [f"direction.{layer}", *(f"direction.{layer}.{j}" for j in range(1, k))]
    return dict(zip(names, orthonormal(k), strict=True))


# Wrong in one way each ----------------------------------------------------------------------------


def _key(name: str, value: Any, kind: Type | None = None) -> Callable[[Path], Path]:
    given = value if kind is None or value is None else (value, kind)
    return lambda path: glp(path, keys={name: given})


def _plain_key(name: str, value: Any) -> Callable[[Path], Path]:
    tensors = {"direction.1": rows()[0]}
    return lambda path: make_gguf(path, {name: value}, tensors, architecture="controlvector")


def _only(tensors: Mapping[str, Array], **keys: Any) -> Callable[[Path], Path]:
    """A plain control vector of those tensors."""
    given = {key.replace("__", "."): value for key, value in keys.items()}
    return lambda path: make_gguf(path, given, tensors, architecture="controlvector")


def _ranked(tensors: Mapping[str, Array], **keys: Any) -> Callable[[Path], Path]:
    given = {f"glp.{key}": value for key, value in keys.items()}
    return lambda path: glp(path, tensors, given, sha256=False)


def _cut(path: Path) -> Path:
    plain(path)
    path.write_bytes(path.read_bytes()[:-64])
    return path


def _raw(data: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return write


def _poisoned(value: float, dtype: Any = np.float32) -> dict[str, Array]:
    row = rows()[0].astype(dtype)
    row[3] = value
    return {"direction.1": row}


D = "direction.1"
_Bad = tuple[Callable[[Path], Path], str, str]
FORMAT, MISMATCH = "AdapterFormatError", "AdapterMismatchError"
# name -> (writer, error, a part of its message)
BAD: dict[str, _Bad] = {
    "truncated": (_cut, FORMAT, "truncated"),
    "empty file": (_raw(b""), FORMAT, "empty"),
    "not a GGUF": (_raw(b"x" * 99), FORMAT, "not a GGUF"),
    "a base": (tb.write_base, FORMAT, "this is not a steering vector's file"),
    "an adapter": (
        tb.write_adapter, FORMAT,
        "general.architecture is 'llama', expected 'controlvector'"),
    "of GLP, but no control vector": (
        _key("general.architecture", "glp"), FORMAT, "is 'glp', expected 'controlvector'"),
    "no tensors": (_only({}), FORMAT, "holds no directions"),
    "another tensor": (
        _only({"blk.1.weight": rows()[0]}), FORMAT, "'blk.1.weight' is not named direction."),
    "a layer with a leading zero": (
        _only({D: rows()[0], "direction.01": rows()[0]}), FORMAT, "'direction.01' is not named"),
    "a layer that is no number": (
        _only({"direction.x": rows()[0]}), FORMAT, "'direction.x' is not named"),
    "a negative layer": (_only({"direction.-1": rows()[0]}), FORMAT, "'direction.-1' is not"),
    "a layer of no model": (_only({"direction.600": rows()[0]}), FORMAT, "that no model has"),
    "a digit that is no digit": (_only({"direction.\u0663": rows()[0]}), FORMAT, "is not named"),
    "I32": (
        _only({D: np.ones(N, np.int32)}), FORMAT, f"'{D}' is I32, expected one of F32, F16"),
    "F64": (_only({D: np.ones(N, np.float64)}), FORMAT, f"'{D}' is F64"),
    "two dimensions": (_only({D: rows(2)}), FORMAT, f"'{D}' has the shape [{N}, 2], expected one"),
    "no numbers": (_only({D: np.ones(0, np.float32)}), FORMAT, "has the shape [0]"),
    "widths differ": (
        _only({D: rows()[0], "direction.2": rows(n=32)[0]}), FORMAT,
        f"'direction.2' has 32 numbers, but others have {N}"),
    "another width": (
        _only({D: rows(n=32)[0]}), MISMATCH, f"have 32 numbers, but {{base}} is {N} wide"),
    "a layer outside": (
        _only({"direction.2": rows()[0]}), MISMATCH,
        "acts on layer 2, but {base} has 2 layers, 0 to 1"),
    "another model_hint": (
        lambda p: plain(p, hint="qwen2"), MISMATCH,
        "was made for 'qwen2' (controlvector.model_hint), but {base} is 'llama'"),
    "model_hint of another type": (
        _plain_key("controlvector.model_hint", 3), FORMAT,
        "controlvector.model_hint is of type uint32, expected a string"),
    "layer 0": (_only({"direction.0": rows()[0]}), FORMAT, "the first layer is 1"),
    "NaN": (_only(_poisoned(np.nan)), FORMAT, f"'{D}' holds NaN or infinite values"),
    "infinite": (_only(_poisoned(np.inf)), FORMAT, f"'{D}' holds NaN or infinite"),
    "infinite in F16": (_only(_poisoned(-np.inf, np.float16)), FORMAT, "holds NaN or infinite"),
    "zeros": (_only({D: np.zeros(N, np.float32)}), FORMAT, f"'{D}' holds only zeros"),
    "negative zeros": (_only({D: -np.zeros(N, np.float32)}), FORMAT, "holds only zeros"),
    # glp
    "glp.mode unknown": (
        _key("glp.mode", "replace"), FORMAT, "glp.mode is 'replace', expected one of add, project"),
    "glp.mode of another type": (
        _key("glp.mode", 1), FORMAT, "glp.mode is of type uint32, expected a string"),
    "glp.mode missing": (_key("glp.mode", None), FORMAT, "glp.mode is missing, but other glp"),
    "glp.hook_point unknown": (
        _key("glp.hook_point", "attn_out"), FORMAT, "glp.hook_point is 'attn_out', expected one"),
    "glp.hook_point missing": (
        _key("glp.hook_point", None), FORMAT, "glp.hook_point is missing, expected one of"),
    "glp.spec_version later": (
        _key("glp.spec_version", 3), FORMAT, "glp.spec_version is 3, expected 1 or 2"),
    "glp.spec_version as text": (
        _key("glp.spec_version", "1"), FORMAT, "is of type string, expected an integer"),
    "glp.structure by steps": (
        _key("glp.structure", "per-execution-step"), FORMAT, "'per-execution-step', expected one"),
    "scale as text": (
        _key("glp.alpha_default", "2"), FORMAT,
        "glp.alpha_default is of type string, expected a float32"),
    "scale a bool": (_key("glp.alpha_default", True), FORMAT, "is of type bool, expected a float"),
    "scale an array": (_key("glp.alpha_default", [2.0]), FORMAT, "an array of 1 float32, expected"),
    "scale NaN": (
        _key("glp.alpha_default", float("nan")), FORMAT,
        "glp.alpha_default is nan, expected a finite number"),
    "scale infinite": (_key("glp.alpha_default", float("inf")), FORMAT, "is inf, expected"),
    "scale beyond float32": (
        _key("glp.alpha_default", 1e300, Type.FLOAT64), FORMAT, "of layer 1 is beyond float32"),
    "glp.rank too large": (
        _key("glp.rank", 2), FORMAT, "glp.rank is 2, but each layer has 1 directions"),
    "glp.rank as text": (_key("glp.rank", "1"), FORMAT, "glp.rank is of type string, expected an"),
    "glp.orthonormal as text": (
        _key("glp.orthonormal", "true"), FORMAT, "is of type string, expected a bool"),
    "orthonormal, but not of length 1": (
        _ranked({D: 2 * unit(rows()[0])}), FORMAT,
        "glp.orthonormal is true, but the directions of layer 1 are not"),
    "orthonormal, but not orthogonal": (
        _ranked({D: unit(rows(2)[0]), "direction.1.1": unit(rows(2)[1])}), FORMAT,
        "glp.orthonormal is true, but the directions of layer 1 are not"),
    "dependent": (
        _ranked({D: rows()[0], "direction.1.1": -3 * rows()[0]}, orthonormal=False), FORMAT,
        "'direction.1.1' is made up of the directions before it"),
    "a gap in the basis": (
        _ranked({D: rows()[0], "direction.1.2": rows(2)[1]}), FORMAT, "'direction.1.1' is missing"),
    "a basis without its first": (
        _ranked({"direction.1.1": rows()[0]}), FORMAT, "'direction.1' is missing"),
    "ranks differ": (
        _ranked({**basis(2, 1), "direction.2": rows()[0]}, rank=None), FORMAT,
        "its layers have 1, 2 directions, expected as many in each"),
    "several to add": (
        lambda p: glp(p, basis(2), mode="add", sha256=False), FORMAT,
        "a layer has 2 directions, expected one where they are added"),
    "several in a plain one": (_only(basis(2)), FORMAT, "a layer has 2 directions, expected one"),
    "several in version 1": (
        _ranked(basis(2), spec_version=1), FORMAT, "glp.spec_version is 1, which knows neither"),
    "glp.dir_scales in version 1": (
        _key("glp.dir_scales", "1.0"), FORMAT, "glp.spec_version is 1, which knows neither"),
    "glp.dir_scales too few": (
        _ranked(basis(2), dir_scales="1.0"), FORMAT, "glp.dir_scales has 1 numbers, expected 2"),
    "glp.dir_scales no numbers": (
        _ranked(basis(2), dir_scales="1.0,b"), FORMAT, "glp.dir_scales is '1.0,b', expected a"),
    "glp.dir_scales NaN": (
        _ranked(basis(2), dir_scales="1.0,nan"), FORMAT, "glp.dir_scales is '1.0,nan', expected"),
    "glp.dir_scales of what overlaps": (
        _ranked(basis(2), dir_scales="1.0,2.0", orthonormal=False), FORMAT,
        "glp.dir_scales is there, but glp.orthonormal is not true"),
    "glp.layer_scales of another layer": (
        _ranked(basis(2), layer_scales="2:0.5"), FORMAT, "glp.layer_scales names layer 2, which"),
    "glp.layer_scales no pairs": (
        _ranked(basis(2), layer_scales="0.5"), FORMAT, "glp.layer_scales is '0.5', expected a"),
    "glp.layer_scales twice": (
        _ranked(basis(2), layer_scales="1:0.5,1:2"), FORMAT, "glp.layer_scales is '1:0.5,1:2'"),
    "layers of an off-by-one exporter": (
        _key("glp.layer_ids_zero_based", "0"), FORMAT,
        "glp.layer_ids_zero_based is '0', but the tensors are of 1"),
    "layers that are none": (
        _key("glp.layer_ids_zero_based", "one"), FORMAT, "is 'one', expected layers with commas"),
    "layers not counted from 0": (
        _key("glp.layer_ids_zero_based", False), FORMAT, "is false, but direction.N acts behind"),
    "layers of another type": (
        _key("glp.layer_ids_zero_based", 7), FORMAT, "is of type uint32, expected a string"),
    "content_sha256 of other directions": (
        _key("glp.content_sha256", "0" * 64), FORMAT, "glp.content_sha256 is '000000"),
    "content_sha256 of another type": (
        _key("glp.content_sha256", 7), FORMAT, "glp.content_sha256 is of type uint32"),
    "invocation of another type": (
        _key("adapter.alora.invocation_tokens", [7], Type.INT32), FORMAT,
        "is an array of 1 int32, expected an array of uint32"),
    "invocation outside the vocabulary": (
        _key("adapter.alora.invocation_tokens", [10**6], Type.UINT32), MISMATCH,
        "invocation token 1000000 is outside the vocabulary of {base}"),
    "invocation of no token": (
        _key("adapter.alora.invocation_tokens", [2**31], Type.UINT32), FORMAT,
        "holds 2147483648, which is not a token id"),
}  # fmt: skip
