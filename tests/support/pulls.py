"""What is pulled in tests: adapters that convert, in both layouts, and small bases to load."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from alora_gguf.gguf.header import read_header
from tests.support import tiny_base
from tests.support.peft_files import Case

IO_YAML = "model: ~\nresponse_format: ~\ntransformations: ~\n"
TRAINED_ON = "ibm-granite/granite-4.1-3b"


def peft_files(folder: Path, *, alora: bool = True, seed: int = 0) -> dict[str, bytes]:
    """The files of a PEFT adapter for tiny_base, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    case = Case(folder, folder / "unused")
    case.config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "peft_version": "0.21.2",
        "base_model_name_or_path": TRAINED_ON,
    }
    if alora:
        # a control token, which no text beside it can merge with
        case.config["alora_invocation_tokens"] = [tiny_base.ASSISTANT]
    for layer in range(tiny_base.N_LAYER):
        case.add(f"model.layers.{layer}.self_attn.q_proj", 64, 64, seed=seed)
    case.write()
    return {path.name: path.read_bytes() for path in case.source.iterdir()}


def library(folder: Path, *, intrinsic_first: bool = True) -> dict[str, Any]:
    """A library of two intrinsics for two models, in either of IBM's layouts:
    <intrinsic>/<model>/<technology> or <intrinsic>/<technology>/<model>.
    """
    files: dict[str, Any] = {"README.md": "---\nlicense: apache-2.0\n---\n"}
    for seed, intrinsic in enumerate(("answerability", "citations")):
        for model in ("granite-4.1-3b", "granite-4.1-8b"):
            for technology in ("alora", "lora"):
                parts = (model, technology) if intrinsic_first else (technology, model)
                path = "/".join((intrinsic, *parts))
                made = peft_files(folder / path, alora=technology == "alora", seed=seed)
                files |= {f"{path}/{name}": content for name, content in made.items()}
                files[f"{path}/io.yaml"] = IO_YAML
    return files


def split_gguf(base: Path, stem: str, n_parts: int) -> dict[str, bytes]:
    """The parts of a model as llama.cpp's own tool would write them, by name."""
    header = read_header(base)
    names = list(header.tensors)
    parts = {}
    for number in range(n_parts):
        own = names[number::n_parts]
        entries = [bytes(entry) for entry in header.entries.values()] if number == 0 else []
        entries += [
            _entry("split.no", 2, struct.pack("<H", number)),
            _entry("split.count", 2, struct.pack("<H", n_parts)),
            _entry("split.tensors.count", 5, struct.pack("<i", len(names))),
        ]
        table, data = b"", b""
        for name in own:
            tensor = header.tensors[name]
            dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
            table += _string(name) + dims + struct.pack("<IQ", tensor.type, len(data))
            data += bytes(header.tensor_data(name))
            data += bytes(-len(data) % 32)
        head = b"GGUF" + struct.pack("<IQQ", 3, len(own), len(entries)) + b"".join(entries) + table
        head += bytes(-len(head) % 32)
        parts[f"{stem}-{number + 1:05}-of-{n_parts:05}.gguf"] = head + data
    return parts


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value


def without(files: dict[str, Any], ending: str) -> dict[str, Any]:
    """The files of other names."""
    return {name: content for name, content in files.items() if not name.endswith(ending)}
