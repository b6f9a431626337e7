"""mlx-lm's adapters.safetensors, read as a LoRA of PEFT's: the same factors, transposed.

A linear layer has lora_a [in, r] and lora_b [r, out], and computes y + scale·(x·a)·b. The experts
of a projection are one module (switch_mlp), with lora_a [experts, r, in], until October 2025
[experts·r, in], and lora_b [experts, out, r]. An embedding has lora_a [vocab, r] and lora_b
[r, dims]. All this is in mlx-lm's tuner/lora.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alora_gguf.convert.peft.weights import DerivedFile, StoredTensor

from alora_gguf.errors import UnsupportedAdapterError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

_SIDES: Final = {".lora_a": "A", ".lora_b": "B"}
_RENAMED: Final = {"h": "transformer.h", "wte": "transformer.wte"}  # GPT-2's, below "model"


class MlxFile(DerivedFile):
    """An adapters.safetensors with the factors of modules, each of `rank`.

    Raises FileFormatError for halves, shapes and ranks that do not go together, and
    UnsupportedAdapterError for tensors that are no LoRA's.
    """

    def __init__(self, path: Path, rank: int) -> None:
        super().__init__(path)
        with self.closed_on_error():
            modules: dict[str, dict[str, StoredTensor]] = {}
            for name, info in self.stored.items():
                side = _SIDES.get(name[-len(".lora_a") :])
                if side is None:
                    raise self._stranger(name)
                modules.setdefault(name[: -len(".lora_a")], {})[side] = info
            if not modules:
                raise self.fail(
                    "holds no LoRA tensors (lora_a, lora_b), as after a whole fine-tuning or none "
                    "at all; train with mlx_lm.lora --fine-tune-type lora"
                )
            for module, sides in modules.items():
                self._add(module, sides, rank)

    def _stranger(self, name: str) -> UnsupportedAdapterError:
        reason = "is a whole weight, not a low-rank change"
        if name.endswith(".m"):
            reason = "belongs to DoRA, whose magnitudes an adapter GGUF cannot hold"
        elif ".lora_" in name:
            reason = "is not one of mlx-lm's lora_a and lora_b tensors"
        return UnsupportedAdapterError(
            f"{self.path}: '{name}' {reason}; train with mlx_lm.lora --fine-tune-type lora, or "
            "merge it into the base with mlx_lm.fuse"
        )

    def _add(self, module: str, sides: Mapping[str, StoredTensor], rank: int) -> None:
        if len(sides) < 2:
            present, missing = ("a", "b") if "A" in sides else ("b", "a")
            raise self.fail(
                f"module '{module}' has a lora_{present} but no lora_{missing}; save the adapter "
                "again"
            )
        a, b = sides["A"].shape, sides["B"].shape
        shapes, makers = self._experts(a, b) if len(b) == 3 else self._linear(a, b)
        if shapes is None:
            raise self.fail(
                f"module '{module}' has lora_a {list(a)} and lora_b {list(b)}, expected [in, r] "
                "and [r, out], or for experts [experts, r, in] and [experts, out, r]; save the "
                "adapter again"
            )
        found = b[-1] if len(b) == 3 else b[0]
        if found != rank:
            raise self.fail(
                f"module '{module}' has the rank {found}, but adapter_config.json "
                f"(lora_parameters.rank) says {rank}; use the configuration that was saved with "
                "these weights"
            )
        own = _peft_module(module)
        for side, shape, make in zip("AB", shapes, makers, strict=True):
            self.derive(f"base_model.model.{own}.lora_{side}.weight", sides[side], shape, make)

    @staticmethod
    def _linear(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[Any, Any]:
        if len(a) != 2 or len(b) != 2 or a[1] != b[0] or not b[0]:
            return None, ()
        return (a[::-1], b[::-1]), (_transposed, _transposed)

    @staticmethod
    def _experts(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[Any, Any]:
        n_experts, n_out, rank = b
        flat = (n_experts * rank, a[-1])
        if a not in (flat, (n_experts, rank, a[-1])) or not n_experts * rank:
            return None, ()
        return (flat, (n_out, rank * n_experts)), (partial(_reshaped, shape=flat), _rank_by_rank)


def _peft_module(module: str) -> str:
    """What transformers calls a module of mlx-lm's: nearly always the same."""
    found = re.fullmatch(r"model\.(h|wte)(\..*)?", module)
    return _RENAMED[found[1]] + (found[2] or "") if found else module


def _transposed(values: Array) -> Array:
    columns: Array = values.T
    return columns


def _reshaped(values: Array, shape: tuple[int, int]) -> Array:
    flat: Array = values.reshape(shape)
    return flat


def _rank_by_rank(values: Array) -> Array:
    """[experts, out, r] as PEFT has several experts' B: [out, r·experts]."""
    n_experts, n_out, rank = values.shape
    packed: Array = values.transpose(1, 2, 0).reshape(n_out, rank * n_experts)
    return packed
