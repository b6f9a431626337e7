"""Weights of PEFT's VeRA and AdaLoRA, read as a LoRA's: their diagonals are multiplied in.

VeRA's modules share two factors, of which each takes as many columns and rows as it has inputs and
outputs: diag(vera_lambda_b)·vera_B[:out]·diag(vera_lambda_d)·vera_A[:, :in]. AdaLoRA's have their
own: lora_B·diag(lora_E)·lora_A. (layer.py in PEFT's tuners/vera and tuners/adalora)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alora_gguf.errors import UnsupportedAdapterError

from .fields import INSTEAD
from .weights import DerivedFile, StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]

PREFIX: Final = "base_model.model."


class VeraFile(DerivedFile):
    """VeRA's adapter_model.safetensors; `n_in` gives the inputs of a module by its name."""

    def __init__(self, path: Path, n_in: Callable[[str], int]) -> None:
        super().__init__(path)
        with self.closed_on_error():
            a, b = self._shared("base_model.vera_A"), self._shared("base_model.vera_B")
            if a.shape[0] != b.shape[1]:
                raise self.fail(
                    f"has vera_A {list(a.shape)} and vera_B {list(b.shape)}, expected [r, in] and "
                    "[out, r]; save the adapter again"
                )
            for module, (d, rows) in self._modules(a, b).items():
                columns = n_in(module)
                if columns > a.shape[1] or rows.shape[0] > b.shape[0]:
                    raise self.fail(
                        f"module '{module}' maps {columns} to {rows.shape[0]} values, more than "
                        f"vera_A {list(a.shape)} and vera_B {list(b.shape)} have; is it another "
                        "base than the adapter was trained on?"
                    )
                self.derive(
                    f"{PREFIX}{module}.lora_A.weight",
                    d,
                    (a.shape[0], columns),
                    partial(self._scaled, a, axis=1, count=columns),
                )
                self.derive(
                    f"{PREFIX}{module}.lora_B.weight",
                    rows,
                    (rows.shape[0], b.shape[1]),
                    partial(self._scaled, b, axis=0, count=rows.shape[0]),
                )

    def _shared(self, name: str) -> StoredTensor:
        found = self.stored.get(name)
        if found is None or len(found.shape) != 2:
            raise self.fail(
                f"holds no matrix '{name}', which VeRA's modules share; set save_projection = True "
                "and save the adapter again"
            )
        return found

    def _modules(
        self, a: StoredTensor, b: StoredTensor
    ) -> dict[str, tuple[StoredTensor, StoredTensor]]:
        """Each module's diagonals d [r] and b [out]."""
        halves: dict[str, dict[str, StoredTensor]] = {}
        for name, info in self.stored.items():
            module, _, side = name.rpartition(".vera_lambda_")
            if info in (a, b):
                continue
            if not module.startswith(PREFIX) or side not in ("b", "d"):
                raise stranger(self.path, name)
            halves.setdefault(module.removeprefix(PREFIX), {})[side] = info
        for module, half in halves.items():
            if len(half) < 2 or half["d"].shape != a.shape[:1] or len(half["b"].shape) != 1:
                shapes = {f"vera_lambda_{side}": list(info.shape) for side, info in half.items()}
                raise self.fail(
                    f"module '{module}' has {shapes}, expected vera_lambda_d [{a.shape[0]}] and "
                    "vera_lambda_b [out]; save the adapter again"
                )
        return {module: (half["d"], half["b"]) for module, half in halves.items()}

    def _scaled(self, shared: StoredTensor, diagonal: Array, axis: int, count: int) -> Array:
        """Rows of a shared factor times a diagonal, exactly: each is a product of two float32."""
        values = self._values(shared)
        part = values[:, :count] if axis else values[:count]
        scaled: Array = part.astype("f8") * diagonal.astype("f8")[:, None]
        return scaled


class AdaLoraFile(DerivedFile):
    """AdaLoRA's adapter_model.safetensors; modules that training has left no rank are left out."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self.closed_on_error():
            parts: dict[str, dict[str, StoredTensor]] = {}
            for name, info in self.stored.items():
                module, _, part = name.removesuffix(".weight").rpartition(".lora_")
                if not module.startswith(PREFIX) or part not in ("A", "B", "E"):
                    raise stranger(path, name)
                parts.setdefault(module.removeprefix(PREFIX), {})[part] = info
            for module, factors in parts.items():
                self._add(module, factors)

    def _add(self, module: str, parts: dict[str, StoredTensor]) -> None:
        shapes = [parts[name].shape if name in parts else () for name in "AEB"]
        a, e, b = shapes
        if list(map(len, shapes)) != [2, 2, 2] or e != (a[0], 1) or b[1] != a[0]:
            raise self.fail(
                f"module '{module}' has lora_A {list(a)}, lora_E {list(e)} and lora_B {list(b)}, "
                "expected [r, in], [r, 1] and [out, r]; save the adapter again"
            )
        if a[0]:
            name = f"{PREFIX}{module}.lora_"
            make = partial(self._diagonal, parts["E"])
            self.derive(f"{name}A.weight", parts["A"], a, make)
            self.derive(f"{name}B.weight", parts["B"], b, lambda values: values)

    def _diagonal(self, e: StoredTensor, a: Array) -> Array:
        scaled: Array = a.astype("f8") * self._values(e).astype("f8")
        return scaled


def stranger(path: Path, name: str) -> UnsupportedAdapterError:
    """The error of a tensor that is none of the tuner's factors."""
    return UnsupportedAdapterError(
        f"{path}: '{name}' is none of the tuner's factors, but a weight or bias; {INSTEAD}"
    )
