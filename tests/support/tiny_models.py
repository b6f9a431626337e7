"""Seeded tiny models of every family, as transformers directories and as F32 base GGUFs.

They are random, but scaled like trained ones: activations of size one, logits of a few units, so
that an adapter's effect stands far above rounding. Built once into build/test-models and kept.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .tiny_families import (
    ALL_FAMILIES,
    COMMON,
    CONVERTED_FAMILIES,
    FAMILIES,
    FUSED_FAMILIES,
    HIDDEN,
    MORE_FAMILIES,
    N_VOCAB,
)
from .upstream import ROOT, upstream_tree

_BASE, _FUSED = "base.gguf", "fused.gguf"
_GROUPS = (FAMILIES, MORE_FAMILIES, CONVERTED_FAMILIES)


@dataclass(frozen=True)
class TinyModel:
    """A family's model on disk: `directory` as transformers saved it, `gguf` the F32 base."""

    family: str
    directory: Path
    gguf: Path

    @property
    def fused(self) -> TinyModel:
        """The same model of FUSED_FAMILIES with its other GGUF."""
        return replace(self, gguf=self.directory / _FUSED)

    def load(self) -> Any:
        """A fresh torch model, float32 and in eval mode."""
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)  # these sizes gain nothing from more, and waiting threads spin
        model = AutoModelForCausalLM.from_pretrained(
            self.directory, dtype=torch.float32, attn_implementation="eager"
        )
        return model.eval()  # type: ignore[no-untyped-call]


@functools.cache
def tiny_model(family: str) -> TinyModel:
    """The tiny model of a family of ALL_FAMILIES or CONVERTED_FAMILIES.

    Builds it, and what else is missing of the same group: what takes long is to start upstream.
    """
    folder = _cache()
    group = next(group for group in _GROUPS if family in group)
    build(name for name in group if not (folder / name / _BASE).is_file())
    return TinyModel(family, folder / family, folder / family / _BASE)


def build(families: Iterable[str]) -> None:
    """Writes the given families into the cache; two processes may do so at once."""
    names = list(families)
    if not names:
        return
    folder = _cache()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        work = Path(temporary)
        for name in names:
            _make(name).save_pretrained(work / name)
            _write_vocabulary(work / name)
        script = Path(__file__).with_name("write_base.py")
        files = [work / n / _BASE for n in names]
        files += [work / n / _FUSED for n in names if n in FUSED_FAMILIES]
        run = subprocess.run(
            [sys.executable, str(script), str(upstream_tree()), *map(str, files)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if run.returncode:
            raise RuntimeError(f"{script.name} failed:\n{run.stderr}")
        for name in names:
            with contextlib.suppress(OSError):  # another process was faster; its model is the same
                (work / name).replace(folder / name)


def _cache() -> Path:
    """build/test-models/<hash of what decides the models>."""
    here = Path(__file__)
    others = ("tiny_families.py", "write_base.py")
    parts = [here.read_bytes(), *(here.with_name(name).read_bytes() for name in others)]
    parts += [importlib.metadata.version(p).encode() for p in ("transformers", "torch")]
    root = Path(os.environ.get("ALORA_TEST_CACHE", ROOT / "build" / "test-models"))
    return root / hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _make(family: str) -> Any:
    import torch
    import transformers

    spec = {**ALL_FAMILIES, **CONVERTED_FAMILIES}[family]
    config = getattr(transformers, spec.config)(**{**COMMON, **spec.options})
    torch.manual_seed(sum(family.encode()))
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name, parameter)
    return model.eval()


def _fill(name: str, parameter: Any) -> None:
    """Scales a parameter as if trained: unit activations in, unit activations out."""
    import torch

    leaf = name.rsplit(".", 1)[-1]
    if leaf in ("A_log", "D", "dt_bias") or "conv1d" in name:
        return  # the state space's own initialisation is sensible
    # gemma stores a norm's weight less one
    if "norm" in name or ".ln_" in name or leaf in ("scale", "per_expert_scale"):
        parameter.add_(torch.randn_like(parameter) * 0.1)
    elif leaf == "bias":
        parameter.copy_(torch.randn_like(parameter) * 0.1)
    elif "embed_tokens" in name or "word_embeddings." in name or leaf in ("wte", "wpe"):
        parameter.copy_(torch.randn_like(parameter) * HIDDEN**-0.5)
    else:
        # GPT-2 keeps [in, out]
        n_in = parameter.shape[0 if name.startswith("transformer.h.") else -1]
        parameter.copy_(torch.randn_like(parameter) * n_in**-0.5)


def _write_vocabulary(directory: Path) -> None:
    """Upstream's gemma converter reads only the number of tokens from it."""
    vocabulary = ",".join(f'"t{i}":{i}' for i in range(N_VOCAB))
    (directory / "tokenizer.json").write_text(
        '{"model":{"vocab":{' + vocabulary + '}},"added_tokens":[]}'
    )
