"""An adapter's two files, whoever trained it: what they are called, and how they are read.

adapter_config.json says by its content who wrote it; all other kinds are read as a LoRA of PEFT's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from alora_gguf.files import read_json

from .base.locate import Locator
from .base.model import BaseModel
from .mlx.config import MLX_WEIGHTS, is_mlx, read_mlx_config
from .mlx.weights import MlxFile
from .peft.config import PeftConfig, read_config
from .peft.diagonal import AdaLoraFile, VeraFile
from .peft.weights import SafetensorsFile

WEIGHTS: Final = "adapter_model.safetensors"


def weights_name(config: Path) -> str:
    """The name of the file of weights beside an adapter_config.json. Raises FileFormatError."""
    return MLX_WEIGHTS if is_mlx(read_json(config)) else WEIGHTS


def read_adapter_config(path: Path) -> PeftConfig:
    """What of an adapter_config.json decides the numbers. Raises FileFormatError and
    UnsupportedAdapterError.
    """
    return read_mlx_config(path) if is_mlx(read_json(path)) else read_config(path)


def open_weights(config: PeftConfig, path: Path, base: Callable[[], BaseModel]) -> SafetensorsFile:
    """The factors of the adapter with that configuration, by PEFT's names; to be closed. `base` is
    asked where factors are shared by modules of several widths.

    Raises FileFormatError and UnsupportedAdapterError, and what opening the base does.
    """
    if path.name == MLX_WEIGHTS:
        return MlxFile(path, config.rank)
    if config.tuner == "ADALORA":
        return AdaLoraFile(path)
    if config.tuner == "VERA":
        return VeraFile(path, lambda module: Locator(base(), str(path)).n_in(module))
    return SafetensorsFile(path)
