"""What tells one base from another."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf.gguf.base import BaseFile, BaseFingerprint
from alora_gguf.gguf.header import GGUFHeader, read_header
from tests.support import tiny_base
from tests.support.gguf_bytes import tensor_array
from tests.support.make_gguf import make_gguf


def of(path: Path) -> BaseFingerprint:
    return BaseFingerprint.of(BaseFile.read(path))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny_base.write_base(tmp_path / "base.gguf")


def test_a_copy_elsewhere_is_the_same(base: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    copy = tmp_path / "sub" / "other-name.gguf"
    copy.write_bytes(base.read_bytes())
    assert of(copy) == of(base)
    assert hash(of(copy)) == hash(of(base))
    assert (of(base).architecture, of(base).size) == ("llama", base.stat().st_size)
    assert str(of(base)).startswith(f"base.gguf (llama, {base.stat().st_size} bytes, ")


def test_other_weights_metadata_and_types_differ(base: Path, tmp_path: Path) -> None:
    others = [
        tiny_base.write_base(tmp_path / "seed.gguf", seed=2),
        tiny_base.write_base(tmp_path / "tied.gguf", tied=True),
        tiny_base.write_base(tmp_path / "text.gguf", text=False),
    ]
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(base.read_bytes().replace(b"tiny", b"tony", 1))
    prints = [of(path) for path in (base, renamed, *others)]
    assert len(set(prints)) == len(prints)


def test_first_middle_and_last_bytes_of_every_tensor_count(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    tensors = {f"{name}.weight": np.zeros((64, 1024), np.float32) for name in ("a", "b")}
    make_gguf(path, {"llama.vocab_size": 8}, tensors)
    before = of(path)
    for info in read_header(path).tensors.values():
        half = info.nbytes // 2
        for at in (0, 16_383, half - 8000, half, half + 8000, info.nbytes - 1):
            with path.open("r+b") as file:
                file.seek(info.offset + at)
                file.write(b"\1")
            assert of(path) != before, (info.name, at)
            with path.open("r+b") as file:
                file.seek(info.offset + at)
                file.write(b"\0")
    assert of(path) == before
    with path.open("r+b") as file:  # what it is documented not to see
        file.seek(read_header(path).tensors["a.weight"].offset + 40_000)
        file.write(b"\1")
    assert of(path) == before


def test_every_part_counts(base: Path, tmp_path: Path) -> None:
    header = read_header(base)
    paths = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    names, uint16 = sorted(header.tensors), gguf.GGUFValueType.UINT16
    for i, path in enumerate(paths):
        keys = {"split.no": (i, uint16), "split.count": (2, uint16)}
        make_gguf(path, keys, {name: tensor_array(header, name) for name in names[i::2]})
    assert BaseFile.read(paths[0]).parts == tuple(paths)
    before = of(paths[0])
    assert before.size == sum(path.stat().st_size for path in paths)
    data = bytearray(paths[1].read_bytes())
    data[-1] ^= 1
    paths[1].write_bytes(data)
    assert of(paths[0]) != before


def test_a_file_that_is_gone_or_cut(base: Path) -> None:
    read = BaseFile.read(base)
    os.truncate(base, base.stat().st_size - 100)
    with pytest.raises(ag.ModelError, match="was changed or replaced since the model was opened"):
        BaseFingerprint.of(read)
    base.unlink()
    with pytest.raises(ag.ModelError, match="it was there when the model was opened"):
        BaseFingerprint.of(read)


@pytest.mark.parametrize("how", ["another file", "written over", "another time"])
def test_a_file_that_was_replaced_vouches_for_nothing(base: Path, tmp_path: Path, how: str) -> None:
    read, before = BaseFile.read(base), base.stat()
    if how == "another file":
        other = tmp_path / "other.gguf"
        other.write_bytes(base.read_bytes())
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(base)
    elif how == "written over":
        base.write_bytes(base.read_bytes()[::-1])
    os.utime(base, ns=(before.st_atime_ns, before.st_mtime_ns + (how != "another file")))
    with pytest.raises(ag.ModelError, match="was changed or replaced since the model was opened"):
        BaseFingerprint.of(read)


def test_a_model_reads_its_header_once_and_is_known_when_it_is_saved(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers: list[object] = []
    hashed: list[object] = []
    known = BaseFingerprint.of

    def reading(path: Path) -> GGUFHeader:
        headers.append(path)
        return read_header(path)

    def hashing(file: BaseFile) -> BaseFingerprint:
        hashed.append(file)
        return known(file)

    monkeypatch.setattr("alora_gguf.gguf.base.read_header", reading)
    monkeypatch.setattr(BaseFingerprint, "of", hashing)
    with ag.Model(base, n_ctx=64, n_threads=1) as model, model.session() as session:
        session.append([1, 2, 3])
        assert (len(headers), len(hashed)) == (1, 0)
        for name in "ab":
            session.save(tmp_path / name)
        assert (len(headers), len(hashed)) == (1, 1)
    with ag.Model(base, n_ctx=64, n_threads=1) as model, model.session() as session:
        session.append([1, 2, 3])
        os.utime(base, ns=(1, 1))
        with pytest.raises(ag.ModelError, match="open the model again"):
            session.save(tmp_path / "c")
