"""Adapter GGUFs as a converter with one mistake would write them, to show that tests see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alora_gguf.gguf.header import read_header
from tests.support.gguf_bytes import tensor_array

Tensors = dict[str, NDArray[np.float32]]
_HEADS, _QUERIES = 4, 128  # of the tiny models with one tensor for queries, keys and values


def _turned(tensors: Tensors, split: tuple[int, ...]) -> Tensors:
    out: Tensors = {}
    for name, b in tensors.items():
        if name.endswith(("attn_q.weight.lora_b", "attn_qkv.weight.lora_b")):
            queries = b if ".attn_q." in name else b[:_QUERIES]
            turned = queries.reshape(*split, b.shape[1]).swapaxes(1, 2).reshape(queries.shape)
            out[name] = np.concatenate([turned, b[len(queries) :]])
    return out


def heads_turned(tensors: Tensors) -> Tensors:
    """Query heads reordered for llama.cpp's rotary embedding where they must not be."""
    return _turned(tensors, (_HEADS, 2, -1))


def heads_turned_back(tensors: Tensors) -> Tensors:
    """Query heads left in transformers' order where they must be reordered."""
    return _turned(tensors, (_HEADS, -1, 2))


def gate_is_up(tensors: Tensors) -> Tensors:
    """The gate's rows for the up projection and the reverse, in one tensor or in two."""
    out: Tensors = {}
    for name, values in tensors.items():
        gate = name.replace("ffn_up", "ffn_gate")
        if ".ffn_up" in name and gate in tensors:
            out |= {name: tensors[gate], gate: values}
        elif name.endswith(".ffn_up.weight.lora_b"):
            out[name] = np.concatenate(np.split(values, 2)[::-1])
    return out


def experts_reversed(tensors: Tensors) -> Tensors:
    """B of another expert."""
    return {n: b[::-1] for n, b in tensors.items() if b.ndim == 3 and n.endswith("lora_b")}


def b_expert_by_expert(tensors: Tensors) -> Tensors:
    """B's columns read expert by expert, where PEFT keeps them rank by rank."""
    out: Tensors = {}
    for name, b in tensors.items():
        if b.ndim == 3 and name.endswith("lora_b"):
            n_experts, n_out, rank = b.shape
            as_saved = b.transpose(1, 2, 0)
            out[name] = as_saved.reshape(n_out, n_experts, rank).transpose(1, 0, 2)
    return out


def a_rank_by_rank(tensors: Tensors) -> Tensors:
    """A's rows read rank by rank, where PEFT keeps them expert by expert."""
    out: Tensors = {}
    for name, a in tensors.items():
        if a.ndim == 3 and name.endswith("lora_a"):
            n_experts, rank, n_in = a.shape
            out[name] = a.reshape(rank, n_experts, n_in).transpose(1, 0, 2)
    return out


def values_by_key(tensors: Tensors) -> Tensors:
    """Value heads of a delta net left in transformers' order."""
    keys, width = 2, 16  # of the tiny models
    out: Tensors = {}
    for name, values in tensors.items():
        if name.endswith("attn_gate.weight.lora_b"):
            heads = values.reshape(-1, keys, width, values.shape[1])
            out[name] = heads.swapaxes(0, 1).reshape(values.shape)
        elif name.endswith("ssm_out.weight.lora_a") and values.shape[1] % (keys * width) == 0:
            heads = values.reshape(len(values), -1, keys, width)
            out[name] = heads.swapaxes(1, 2).reshape(values.shape)
    return out


MISTAKES: tuple[Callable[[Tensors], Tensors], ...] = (
    heads_turned,
    heads_turned_back,
    gate_is_up,
    experts_reversed,
    b_expert_by_expert,
    a_rank_by_rank,
    values_by_key,
)


def write_mistakes(right: Path, folder: Path) -> dict[str, Path]:
    """Copies of an F32 adapter GGUF with each mistake that concerns its tensors, by its name."""
    header = read_header(right)
    tensors: Tensors = {
        name: np.asarray(tensor_array(header, name), np.float32) for name in header.tensors
    }
    files = {}
    for mistake in MISTAKES:
        changed = mistake(tensors)
        data = bytearray(right.read_bytes())
        for name, values in changed.items():
            info = header.tensors[name]
            assert values.shape == tensors[name].shape
            data[info.offset : info.offset + info.nbytes] = values.astype("<f4").tobytes()
        if changed:
            files[mistake.__name__] = folder / f"{mistake.__name__}.gguf"
            files[mistake.__name__].write_bytes(data)
    return files
