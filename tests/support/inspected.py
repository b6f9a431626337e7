"""GGUF files to inspect, made of zeros, and their summaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alora_gguf.gguf.inspection import AdapterSummary, BaseSummary, inspect_gguf

from .gguf_bytes import Tensors, gguf_bytes

ADAPTER: dict[str, Any] = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 16.0,
}


def lora(target: str, n_in: int, n_out: int, rank: int = 8, kind: str = "F16") -> Tensors:
    return {
        f"{target}.weight.lora_a": (kind, (n_in, rank)),
        f"{target}.weight.lora_b": (kind, (rank, n_out)),
    }


def pairs(layers: list[int], target: str, n_in: int, n_out: int, rank: int) -> Tensors:
    """The same target in several layers."""
    out: Tensors = {}
    for layer in layers:
        out |= lora(f"blk.{layer}.{target}", n_in, n_out, rank)
    return out


def write(folder: Path, metadata: dict[str, Any], tensors: Tensors) -> Path:
    path = folder / "file.gguf"
    path.write_bytes(gguf_bytes(metadata, tensors))
    return path


def adapter(
    folder: Path, tensors: Tensors | None = None, changes: dict[str, Any] | None = None
) -> AdapterSummary:
    """The summary of an adapter; a None among `changes` leaves that key out."""
    metadata = {k: v for k, v in {**ADAPTER, **(changes or {})}.items() if v is not None}
    summary = inspect_gguf(write(folder, metadata, tensors or lora("blk.0.attn_q", 32, 32)))
    assert isinstance(summary, AdapterSummary)
    return summary


def base(folder: Path, metadata: dict[str, Any], tensors: Tensors | None = None) -> BaseSummary:
    tensors = {"token_embd.weight": ("F16", (32, 64))} if tensors is None else tensors
    summary = inspect_gguf(write(folder, metadata, tensors))
    assert isinstance(summary, BaseSummary)
    return summary
