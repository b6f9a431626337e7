"""What repositories on a hub hold: adapters, libraries of them, and GGUFs too large to send."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from alora_gguf.convert import Pick
from alora_gguf.convert.hub import fetch
from alora_gguf.convert.hub.reference import parse_reference
from alora_gguf.convert.source import Source

from alora_gguf.gguf.header import GGUFHeader
from tests.support.hub_server import Padded
from tests.support.libraries import MODELS, README

CONFIG = {"peft_type": "LORA", "alora_invocation_tokens": [7, 8]}
LIBRARY = "ibm-granite/granitelib-rag-r1.0"


@dataclass(frozen=True)
class Hub:
    """huggingface_hub's settings, as its environment variables would have made them."""

    cache: Path
    endpoint: str = "http://hub.invalid"
    offline: bool = False
    timeout: float = 5.0

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        settings = {
            "ENDPOINT": self.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": (
                self.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
            ),
            "HF_HUB_CACHE": str(self.cache),
            "HF_HUB_OFFLINE": self.offline,
            "HF_HUB_ETAG_TIMEOUT": self.timeout,
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setattr(f"huggingface_hub.constants.{name}", value)
            yield


def fetch_adapter(reference: str, wanted: Pick, *, hub: Hub) -> Source:
    with hub.used():
        return fetch.fetch_adapter(parse_reference(reference), wanted)


def fetch_base(reference: str, *, hub: Hub) -> GGUFHeader | Path:
    with hub.used():
        return fetch.fetch_base(parse_reference(reference))


def remote_model(reference: str, pattern: str, *, hub: Hub) -> fetch.RemoteModel:
    with hub.used():
        return fetch.RemoteModel(parse_reference(reference), pattern)


def fetch_model(model: fetch.RemoteModel, *, hub: Hub) -> list[Path]:
    with hub.used():
        return model.fetch()


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
