"""Classifiers' heads as Granite Switch has them: random ones, in directories and converted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from alora_gguf.convert import ConversionReport, convert_adapter
from numpy.typing import NDArray
from safetensors.numpy import save_file

from alora_gguf import demo

LABELS = ("safe", "unsafe", "neutral")
N_EMBD = 256  # of the demo's base
STUB = "name: safety\nmodel: ~\n"  # all that Granite Switch wants of a slot's io.yaml


def write_head(
    folder: Path, *, n_labels: int = 3, n_embd: int = N_EMBD, seed: int = 1, io_yaml: str = STUB
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Writes a head's directory; returns weight and bias."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(n_labels, n_embd), scale=0.1).astype(np.float32)
    bias = rng.normal(size=n_labels).astype(np.float32)
    folder.mkdir(exist_ok=True)
    save_file({"weight": weight, "bias": bias}, folder / "classifier_head.safetensors")
    (folder / "io.yaml").write_text(io_yaml, encoding="utf-8")
    return weight, bias


def convert_head(folder: Path, out: Path, **how: object) -> ConversionReport:
    """The head of a directory for the demo's base."""
    given: dict[str, object] = {"base": demo.base_path(), "labels": LABELS, **how}
    return convert_adapter(folder, out=out, **given)  # type: ignore[arg-type]
