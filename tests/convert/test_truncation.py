"""Files that end too early, at every 4 KiB: refused by name, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alora_gguf.convert import convert_adapter

from alora_gguf.errors import FileFormatError
from tests.support.peft_files import BLOCK, LAYERS, MODULES, Case, sound_case, write_base

PAGE = 4096
BIG_RANK = 64

Convert = Callable[[], None]


@pytest.fixture
def big(tmp_path: Path) -> Case:
    """Weights of more than 100 KiB, and a base whose header has as much."""
    case = sound_case(tmp_path)
    write_base(case.base, changes={"filler": list(range(25_000))})
    case.config["r"] = BIG_RANK
    for layer in range(LAYERS):
        for module, tensor in MODULES.items():
            case.add(f"model.layers.{layer}.{module}", *BLOCK[tensor], rank=BIG_RANK)
    case.write()
    return case


@contextmanager
def cut(path: Path, length: int) -> Iterator[None]:
    """Shortens a file for the length of a block."""
    data = path.read_bytes()
    path.write_bytes(data[:length])
    yield
    path.write_bytes(data)


def refused_at_every_page(case: Case, path: Path, convert: Convert, words: str) -> None:
    size = path.stat().st_size
    assert size > 100 * 1024
    for length in [*range(0, size, PAGE), size - 1]:
        with cut(path, length), pytest.raises(FileFormatError) as caught:
            convert()
        message = str(caught.value)
        assert message.startswith(f"{path}: "), length
        assert ("is empty" if length == 0 else words) in message, (length, message)
        assert "again" in message, (length, message)  # the way out
        assert sorted(p.name for p in case.folder.iterdir()) == ["adapter", "base.gguf"], length
    convert()
    assert case.out.exists()


def test_weights(big: Case) -> None:
    def convert() -> None:
        convert_adapter(big.source, big.base, big.out)

    refused_at_every_page(big, big.source / "adapter_model.safetensors", convert, "truncated")


def test_base(big: Case) -> None:
    def convert() -> None:
        convert_adapter(big.source, big.base, big.out)

    refused_at_every_page(big, big.base, convert, "truncated")


def test_configuration_at_every_byte(case: Case) -> None:
    case.write()
    path = case.source / "adapter_config.json"
    for length in range(path.stat().st_size):
        with cut(path, length), pytest.raises(FileFormatError, match="is not JSON") as caught:
            convert_adapter(case.source, case.base, case.out)
        assert str(caught.value).startswith(f"{path}: ")
        assert not case.out.exists()
