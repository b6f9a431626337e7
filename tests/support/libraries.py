"""Adapters as find_source() sees them, alone, in libraries and in the hub's cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
README = "---\nlicense: apache-2.0\n---\n# An adapter\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
MODELS = ("granite-3.3-2b-instruct", "granite-3.3-8b-instruct")


def write_adapter(
    directory: Path,
    *,
    alora: bool = True,
    io_yaml: str | None = "model: ~\n",
    readme: str | None = None,
    base: str = "ibm-granite/granite-3.3-2b-instruct",
) -> Path:
    """What find_source() looks at; it does not read the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"peft_type": "LORA", "base_model_name_or_path": base}
    if alora:
        config["alora_invocation_tokens"] = [7, 8]
    (directory / "adapter_config.json").write_text(json.dumps(config))
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    if io_yaml is not None:
        (directory / "io.yaml").write_text(io_yaml)
    if readme is not None:
        (directory / "README.md").write_text(readme)
    return directory


def write_library(root: Path) -> Path:
    """Both layouts at once: two intrinsics in the newer one, one in the older."""
    for model in MODELS:
        for technology in ("alora", "lora"):
            alora = technology == "alora"
            for intrinsic in ("answerability", "query_rewrite"):
                write_adapter(root / intrinsic / model / technology, alora=alora)
            write_adapter(root / "uncertainty" / technology / model, alora=alora)
    (root / "README.md").write_text(README)
    return root


def write_cache(folder: Path, files: dict[str, bytes | Path], commit: str = COMMIT) -> Path:
    """A snapshot as huggingface_hub keeps it; a path among the files is linked to as it is."""
    blobs = folder / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    snapshot = folder / "snapshots" / commit
    for i, (name, content) in enumerate(files.items()):
        blob = blobs / f"{commit[:8]}{i:032x}"
        blob.write_bytes(content) if isinstance(content, bytes) else blob.symlink_to(content)
        file = snapshot / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.symlink_to(os.path.relpath(blob, file.parent))
    return snapshot


def adapter_files(path: str = "") -> dict[str, bytes | Path]:
    prefix = f"{path}/" if path else ""
    return {
        f"{prefix}adapter_config.json": b'{"alora_invocation_tokens": [1]}',
        f"{prefix}adapter_model.safetensors": b"weights",
        f"{prefix}io.yaml": b"model: ~\n",
    }
