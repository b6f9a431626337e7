"""What a base may be given as, and what every other file and directory is answered with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alora_gguf.convert.base.gguf import GGUFBase
from alora_gguf.convert.base.hf import HFBase
from alora_gguf.convert.find import open_base

from alora_gguf.errors import (
    AloraError,
    ConvertError,
    FileFormatError,
    InputError,
    MissingFileError,
)
from alora_gguf.gguf.header import read_header
from tests.support.peft_files import LLAMA_CONFIG, write_base
from tests.support.pulls import split_gguf


def test_a_gguf(tmp_path: Path) -> None:
    base = open_base(str(write_base(tmp_path / "base.gguf")))
    assert isinstance(base, GGUFBase)
    assert base.label == str(tmp_path / "base.gguf")


def test_a_split_gguf_is_read_whole(tmp_path: Path) -> None:
    whole = open_base(write_base(tmp_path / "base.gguf"))
    assert isinstance(whole, GGUFBase)
    paths = []
    for name, content in split_gguf(tmp_path / "base.gguf", "m", 3).items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    base = open_base(paths[0])
    assert isinstance(base, GGUFBase)
    shapes = {name: tensor.shape for name, tensor in base.header.tensors.items()}
    assert shapes == {name: tensor.shape for name, tensor in whole.header.tensors.items()}
    message = "is one of 3 parts of a split model; give the first, with the others beside it under"
    with pytest.raises(ConvertError, match=rf"00002-of-00003\.gguf: {message}"):
        open_base(paths[1])
    paths[2].unlink()
    with pytest.raises(ConvertError, match=rf"00001-of-00003\.gguf: {message}"):
        open_base(paths[0])


def test_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_CONFIG))
    write_base(tmp_path / "base.gguf")  # the configuration counts
    base = open_base(tmp_path)
    assert isinstance(base, HFBase)
    assert base.label == str(tmp_path)


def test_a_reference_to_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alora_gguf.convert.hub import fetch

    (tmp_path / "config.json").write_text(json.dumps(LLAMA_CONFIG))
    header = read_header(write_base(tmp_path / "base.gguf"))
    answers = {"hf://org/model": tmp_path, "hf://org/model/base.gguf": header}
    monkeypatch.setattr(fetch, "fetch_base", lambda reference: answers[reference.text])
    base = open_base("hf://org/model")
    assert isinstance(base, HFBase)
    assert base.label == "hf://org/model"
    assert isinstance(open_base("hf://org/model/base.gguf"), GGUFBase)


@pytest.mark.parametrize(
    ("files", "name", "error", "message"),
    [
        (
            [],
            "none.gguf",
            MissingFileError,
            "there is no such file or directory; expected the base mod",
        ),
        ([], "a\0b", FileFormatError, "cannot be read: embedded null byte"),
        (
            [],
            "",
            InputError,
            r"has no config\.json; expected .* It holds nothing",
        ),
        (["adapter_config.json"], "", InputError, "is an adapter, not a base; expected a model"),
        (
            ["b.gguf", "a.gguf"],
            "",
            InputError,
            r"holds GGUF files and no config\.json; name one of them: a\.gguf, b\.gguf",
        ),
        ([f"{i}.gguf" for i in range(9)], "", InputError, r"0\.gguf, .*, 8\.gguf"),
        (["model.safetensors"], "model.safetensors", InputError, "is one of a model's files"),
        (["config.json"], "config.json", InputError, "or the directory that holds its config.json"),
        (["pytorch_model.bin"], "pytorch_model.bin", InputError, "expected the base as a GGUF"),
        (["x.gguf"], "x.gguf", FileFormatError, "is not a GGUF file"),
    ],
)
def test_everything_else(
    files: list[str], name: str, error: type[AloraError], message: str, tmp_path: Path
) -> None:
    for file in files:
        (tmp_path / file).write_bytes(b"\x93\x94")
    with pytest.raises(error, match=message) as caught:
        open_base(f"{tmp_path}/{name}" if name else tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!doctype html>", "an HTML page"),
        (b"\x10\0\0\0\0\0\0\0{...............", "a safetensors file"),
    ],
)
def test_something_else_under_a_ggufs_name(start: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(start)
    with pytest.raises(FileFormatError, match=f"is not a GGUF file: {message}"):
        open_base(tmp_path / "model.gguf")


def test_a_directory_that_may_not_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may list everything
    with pytest.raises(FileFormatError, match="cannot be read: Permission denied"):
        open_base(tmp_path)
