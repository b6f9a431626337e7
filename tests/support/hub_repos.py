"""What repositories on a hub hold: adapters, libraries of them, and GGUFs too large to send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from alora_gguf.convert.hub import fetch
from alora_gguf.convert.hub.client import Hub
from alora_gguf.convert.hub.reference import parse_reference
from alora_gguf.convert.library import Wanted
from alora_gguf.convert.source import Source

from alora_gguf.gguf.header import GGUFHeader
from tests.support.hub_server import Padded
from tests.support.libraries import MODELS, README

CONFIG = {"peft_type": "LORA", "alora_invocation_tokens": [7, 8]}
LIBRARY = "ibm-granite/granitelib-rag-r1.0"


def fetch_adapter(reference: str, wanted: Wanted, *, hub: Hub) -> Source:
    return fetch.fetch_adapter(parse_reference(reference), wanted, hub=hub)


def fetch_base(reference: str, *, hub: Hub) -> GGUFHeader | Path:
    return fetch.fetch_base(parse_reference(reference), hub=hub)


def adapter_files(path: str = "", **changes: Any) -> dict[str, Any]:
    """An adapter's files at `path`; a change of None leaves a file out."""
    files = {
        "adapter_config.json": CONFIG,
        "adapter_model.safetensors": f"weights of {path}".encode(),
        "io.yaml": "model: ~\n",
        **{name.replace("__", "."): content for name, content in changes.items()},
    }
    prefix = f"{path}/" if path else ""
    return {prefix + name: content for name, content in files.items() if content is not None}


def library_files() -> dict[str, Any]:
    files: dict[str, Any] = {"README.md": README, "other.bin": b"x" * 100}
    for intrinsic in ("answerability", "citations"):
        for model in MODELS:
            for technology in ("alora", "lora"):
                files |= adapter_files(f"{intrinsic}/{model}/{technology}")
    return files


def write_gguf(path: Path, *, tokens: int, data_bytes: int = 1 << 32) -> Padded:
    """A base of zeros whose header is there and whose 4 GiB of data are not."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([f"token {i}" for i in range(tokens)])
    for i in range(4):
        shape = (data_bytes // 16 // 1024, 1024)
        writer.add_tensor_info(
            f"blk.{i}.attn_q.weight", shape, np.dtype(np.float32), data_bytes // 4
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    head = path.read_bytes()
    head += bytes(-len(head) % 32)
    return Padded(head, len(head) + data_bytes)
