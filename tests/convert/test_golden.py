"""The bytes of one file, which no change of ours, of numpy's or of gguf's may alter unnoticed.

After a change that is meant: alora-gguf convert golden/adapter --base golden/base.gguf
-o golden/expected.gguf --force, in this folder; and say in the CHANGELOG that files differ.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from alora_gguf.convert import convert_adapter

from alora_gguf.gguf.header import read_header

GOLDEN = Path(__file__).with_name("golden")


def test_the_same_bytes_as_ever(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    report = convert_adapter(GOLDEN / "adapter", GOLDEN / "base.gguf", out)
    expected = GOLDEN / "expected.gguf"
    found, wanted = read_header(out), read_header(expected)
    assert found.metadata == wanted.metadata
    assert found.tensors == wanted.tensors
    assert out.read_bytes() == expected.read_bytes()
    assert report.folded == 10


def test_it_holds_every_key(tmp_path: Path) -> None:
    header = read_header(GOLDEN / "expected.gguf")
    assert list(header.metadata) == [
        "general.architecture",
        "general.type",
        "general.name",
        "general.file_type",
        "general.license",
        "general.base_model.count",
        "general.base_model.0.name",
        "general.base_model.0.organization",
        "general.base_model.0.repo_url",
        "adapter.type",
        "adapter.lora.alpha",
        "adapter.alora.invocation_tokens",
        "alora.invocation_text",
        "alora.vocab.sha256",
        "alora.source.peft_version",
        "alora.source.sha256",
        "alora.io_yaml",
    ]
    assert header.metadata["alora.invocation_text"] == "<|start|>c<|end|>"
    assert header.metadata["alora.io_yaml"] == (GOLDEN / "adapter" / "io.yaml").read_text()


@pytest.mark.parametrize("outtype", ["f32", "bf16", "q8_0"])
def test_the_other_types_are_as_deterministic(tmp_path: Path, outtype: str) -> None:
    outs = [tmp_path / f"{i}.gguf" for i in range(2)]
    for out in outs:
        convert_adapter(GOLDEN / "adapter", GOLDEN / "base.gguf", out, outtype=outtype)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    version = read_header(outs[0]).metadata.get("general.quantization_version")
    assert version == (2 if outtype == "q8_0" else None)
