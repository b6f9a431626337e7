"""Damaged, foreign and contradictory saved sessions are refused; failed saves change nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.engine.provenance import BASE, Provenance
from alora_gguf.saved import container as saved_format
from alora_gguf.saved.session_file import SavedAdapter, SavedSession, read_saved, write_saved
from tests.support.files import EXACT, Files
from tests.support.saving import collect, path_of

PROLOGUE = struct.Struct("<8sIIQQQQ")
HASH = "ab" * 32


@pytest.fixture(scope="module")
def saved(files: Files) -> SavedSession:
    with files.model() as model, model.session() as session:
        session.append("so it is")
        session.append("so it is <certainty>", adapter="sure")
        return collect(session, options=EXACT, notes={"messages": ["hello"]})


@pytest.fixture
def path(saved: SavedSession, tmp_path: Path) -> Path:
    write_saved(path_of(tmp_path), saved)
    return path_of(tmp_path)


def refused(path: Path, *said: str) -> str:
    with pytest.raises(ag.SavedSessionError) as caught:
        read_saved(path)
    message = str(caught.value)
    for text in (str(path), *said):
        assert text in message
    return message


# Damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_refused(path: Path, mask: int) -> None:
    data = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for at in range(len(data)):
            file.seek(at)
            file.write(bytes([data[at] ^ mask]))
            refused(path)
            file.seek(at)
            file.write(data[at : at + 1])
    read_saved(path)


def test_every_truncation_is_refused(path: Path) -> None:
    data = path.read_bytes()
    _, _, n_header, n_tokens, n_logits, _, _ = PROLOGUE.unpack_from(data)
    ends = [0, 8, 12, PROLOGUE.size, PROLOGUE.size + n_header]
    ends += [ends[-1] + 4 * n_tokens, ends[-1] + 4 * (n_tokens + n_logits), len(data) - 32]
    lengths = {n for end in ends for n in range(end - 3, end + 4) if 0 <= n < len(data)}
    lengths |= {len(data) - 1, *range(0, len(data), 997)}
    for n in sorted(lengths, reverse=True):
        os.truncate(path, n)
        said = refused(path, "bytes, expected" if n else "the file is empty")
        assert n == 0 or f"is truncated: {n} bytes" in said


@pytest.mark.parametrize("extra", [b"\0", b"x" * 5000], ids=len)
def test_what_follows_the_end_is_refused(path: Path, extra: bytes) -> None:
    data = path.read_bytes()
    path.write_bytes(data + extra)
    refused(path, f"{len(extra)} bytes follow the end", f"expected {len(data)} bytes in all")


def test_swapped_sections_are_refused(path: Path, saved: SavedSession) -> None:
    data = bytearray(path.read_bytes())
    fields = list(PROLOGUE.unpack_from(data))
    fields[3], fields[4] = fields[4], fields[3]  # the sum stays
    data[: PROLOGUE.size] = PROLOGUE.pack(*fields)
    path.write_bytes(data)
    refused(path, "is damaged: its checksum is ", "copy it again")


@pytest.mark.parametrize("version", [2, 77, 2**32 - 1])
def test_a_newer_version_is_called_one(path: Path, version: int) -> None:
    # whatever else changes in it: checksum, lengths, size
    path.write_bytes(b"ALORASES" + struct.pack("<I", version) + os.urandom(100))
    refused(path, f"has version {version} of the format, this alora-gguf reads 1", "upgrade")
    path.write_bytes(b"ALORASES" + struct.pack("<I", version))
    refused(path, f"has version {version}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty, expected a saved session"),
        (b"GGUF\3\0\0\0" + bytes(100), "is not a saved session: it starts with b'GGUF"),
        (b"ALOR", "is truncated: 4 bytes, expected at least 80"),
        (b"ALORASES\0\0\0\0" + bytes(100), "has version 0 of the format"),
    ],
    ids=["empty", "gguf", "four bytes", "version 0"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path_of(tmp_path).write_bytes(content)
    refused(path_of(tmp_path), said)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none", "there is no such file, expected a saved session")
    refused(tmp_path, "is a directory, expected a saved session")
    with pytest.raises(ag.SavedSessionError, match="cannot be read"):
        read_saved(str(tmp_path / "a\0b"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", "is a pipe or a device")


@pytest.mark.parametrize("fits", [False, True], ids=["alone", "with a total that fits"])
@pytest.mark.parametrize("value", [2**31, 2**32 - 1, 2**40, 2**60])
@pytest.mark.parametrize("field", [2, 3, 4, 5])
def test_bogus_lengths_allocate_nothing(path: Path, field: int, value: int, fits: bool) -> None:
    data = bytearray(path.read_bytes())
    _, version, *lengths, total = PROLOGUE.unpack_from(data)
    lengths[field - 2] = min(value, 2**32 - 1) if field == 2 else value
    if fits:
        total = PROLOGUE.size + 32 + sum(a * b for a, b in zip((1, 4, 4, 1), lengths, strict=True))
    data[: PROLOGUE.size] = PROLOGUE.pack(b"ALORASES", version, *lengths, total)
    path.write_bytes(data)
    tracemalloc.start()
    try:
        refused(path, "is truncated" if fits else "do not add up to")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# A header that contradicts itself, under a checksum that is right ---------------------------------


def forge(path: Path, change: Callable[[dict[str, Any]], object] | bytes) -> None:
    """Replaces the header; lengths and checksum are made to fit."""
    data = path.read_bytes()
    fields = list(PROLOGUE.unpack_from(data))
    rest = data[PROLOGUE.size + fields[2] : -32]
    if isinstance(change, bytes):
        raw = change
    else:
        header = json.loads(data[PROLOGUE.size : PROLOGUE.size + fields[2]])
        change(header)
        raw = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    fields[2], fields[6] = len(raw), PROLOGUE.size + len(raw) + len(rest) + 32
    body = PROLOGUE.pack(*fields) + raw + rest
    path.write_bytes(body + hashlib.sha256(body).digest())


def put(*where: Any, value: Any) -> Callable[[dict[str, Any]], object]:
    """Puts a value in a place of the header."""

    def change(header: Any) -> None:
        for key in where[:-1]:
            header = header[key]
        header[where[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("n_cached", value=-1), "'n_cached' has -1"),
        (put("n_cached", value=10**6), "'n_cached' has 1000000"),
        (put("n_cached", value=True), "'n_cached' has True"),
        (put("n_cached", value=3), "spans[1]"),
        (put("spans", value=[]), "'spans' does not say who"),
        (put("spans", 0, 0, value=1), "spans[0]"),
        (put("spans", 1, 0, value=0), "spans[1]"),
        (put("spans", 1, 0, value=10**4), "spans[1]"),
        (put("spans", 1, 0, value=2.0), "spans[1]"),
        (put("spans", 1, 2, value=0.0), "has the scale 0.0"),
        (put("spans", 1, 2, value=0.1), "has the scale 0.1"),
        (put("spans", 1, 2, value=1), "has the scale 1"),
        (put("spans", 1, 2, value=1e39), "has the scale 1e+39"),
        (put("spans", 1, 1, value="x"), "where a hash is expected"),
        (put("spans", 1, 1, value=HASH), "'adapters' are not those that 'spans' name"),
        (put("spans", 1, value=[3, None, 1.0]), "repeats the span before it"),
        (put("spans", 1, value=[3]), "expected a list"),
        (put("spans", value={}), "expected a list"),
        (put("adapters", value=[]), "'adapters' are not those that 'spans' name"),
        (put("adapters", 0, "name", value=""), "has the name ''"),
        (put("adapters", 0, "name", value=7), "has the name 7"),
        (lambda h: h["adapters"].append(h["adapters"][0]), "names one twice"),
        (put("base", "digest", value="12"), "where a hash is expected"),
        (put("base", "size", value=-5), "'base' has -5"),
        (put("base", "file", value=None), "where a string is expected"),
        (lambda h: h["base"].pop("file"), "'base' is "),
        (put("cache", "memory", value="none"), "'cache.memory' is 'none'"),
        (put("cache", "memory", value="recurrent"), "recurrent states, of position"),
        (put("cache", "window", value=-1), "'cache.window'"),
        (put("cache", "swa_full", value=1), "'cache.swa_full' is 1"),
        (put("cache", "type_k", value=1), "'cache.type_k'"),
        (put("notes", value=[]), "'notes' is []"),
        (put("more", value=1), "'header' is "),
        (b"[]", "its header is not what this format writes"),
        (b"{", "its header cannot be read"),
        (b"\xff", "its header cannot be read"),
        (b"[" * 100_000, "its header cannot be read"),
        (b'{"notes":NaN}', "its header cannot be read"),
        (b'{"a":1,"a":1}', "its header is not what this format writes"),
        (b'{"a": 1}', "its header is not what this format writes"),
        (b'{"a":' + b"9" * 5000 + b"}", "its header cannot be read"),
    ],
    ids=str,
)
def test_a_forged_header_is_refused(path: Path, change: Any, said: str) -> None:
    forge(path, change)
    refused(path, said)


def test_sections_that_contradict_each_other_are_not_written(
    saved: SavedSession, tmp_path: Path
) -> None:
    n = saved.n_cached
    for changed in (
        replace(saved, n_cached=n + 1),
        replace(saved, n_cached=n - 1, logits=b""),  # as many tokens, fewer cells
        replace(saved, state=b""),
        replace(saved, state=saved.state[:50]),
        replace(saved, state=b"\0" * len(saved.state)),
        replace(saved, n_cached=0),
        replace(saved, tokens=(*saved.tokens, 7)),  # logits, but a token without a cell
        replace(saved, tokens=(-1, *saved.tokens[1:])),
        replace(saved, logits=b"\xff" * len(saved.logits)),  # NaN
        replace(saved, spans=((0, Provenance(HASH, 1.0)),)),
        replace(saved, spans=((1, BASE),)),
        replace(saved, adapters=(*saved.adapters, SavedAdapter(HASH, "more"))),
    ):
        with pytest.raises(ag.SavedSessionError, match=str(tmp_path)):
            write_saved(path_of(tmp_path), changed)
    with pytest.raises(ag.InputError, match="tokens cannot be saved"):
        write_saved(path_of(tmp_path), replace(saved, tokens=(2**40,)))
    assert list(tmp_path.iterdir()) == []


def test_positions_of_the_cells_are_checked(saved: SavedSession, tmp_path: Path) -> None:
    for word, value in ((2, 2), (3, 5), (4, 1), (4, 2**31), (5, 0), (4 + 3 * saved.n_cached, 2)):
        state = bytearray(saved.state)
        struct.pack_into("<I", state, 4 * word, value)
        with pytest.raises(ag.SavedSessionError, match="its cells are not those of its tokens"):
            write_saved(path_of(tmp_path), replace(saved, state=bytes(state)))


def test_cells_of_another_llama_cpp_are_not_looked_at(saved: SavedSession, tmp_path: Path) -> None:
    other = replace(saved, cache=replace(saved.cache, llama_cpp="9"), state=b"otherwise")
    write_saved(path_of(tmp_path), other)
    assert read_saved(path_of(tmp_path)) == other


# Saves that fail ----------------------------------------------------------------------------------


class Failing:
    """os.fdopen whose file fails at its n-th write."""

    def __init__(self, n: int, error: BaseException, real: Any) -> None:
        self.left, self.error, self.real = n, error, real

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        file = self.real(*args, **kwargs)
        outer = self

        class File:
            def write(self, data: bytes) -> int:
                outer.left -= 1
                if outer.left < 0:
                    file.write(data[: len(data) // 2])
                    raise outer.error
                return int(file.write(data))

            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def __enter__(self) -> File:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

        return File()


@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()], ids=repr
)
def test_a_write_that_fails_leaves_the_old_file(
    path: Path, saved: SavedSession, monkeypatch: pytest.MonkeyPatch, n: int, error: BaseException
) -> None:
    before = path.read_bytes()
    monkeypatch.setattr(os, "fdopen", Failing(n, error, os.fdopen))
    expected = ag.SavedSessionError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_saved(path, replace(saved, notes={"new": 1}))
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"{path}: the session cannot be saved: {os.strerror(errno.ENOSPC)}; nothing there was "
            "changed"
        )
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_step_that_fails_leaves_the_old_file(
    path: Path, saved: SavedSession, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    before = path.read_bytes()
    owner: Any = {"fsync": os, "replace": Path}[step]
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(ag.SavedSessionError, match="cannot be saved: "):
        write_saved(path, replace(saved, notes={"new": 1}))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_short_writes_are_continued(
    saved: SavedSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_format, "_CHUNK", 1000)
    write_saved(path_of(tmp_path), saved)
    assert read_saved(path_of(tmp_path)) == saved


def test_where_nothing_can_be_written(saved: SavedSession, tmp_path: Path) -> None:
    for target, said in (
        (tmp_path / "none" / "x", "its directory does not exist; create it first"),
        (tmp_path, "is a directory, expected the name of a file to write"),
        (tmp_path / "a\0b", "cannot be saved"),
        (tmp_path / ("n" * 300), "cannot be saved: "),
    ):
        with pytest.raises(ag.SavedSessionError) as caught:
            write_saved(target, saved)
        assert str(target) in str(caught.value)
        assert said in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_directory_that_cannot_be_written(
    saved: SavedSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(0o500)
    if os.geteuid() == 0:  # root may write everywhere

        def denied(*_: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(tempfile, "mkstemp", denied)
    with pytest.raises(ag.SavedSessionError) as caught:
        write_saved(folder / "x", saved)
    assert str(caught.value) == (
        f"{folder / 'x'}: the session cannot be saved: Permission denied; nothing there was changed"
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a device that is always full")
def test_a_full_disk(saved: SavedSession) -> None:
    with pytest.raises(ag.SavedSessionError, match="/dev/full: is a pipe or a device"):
        write_saved("/dev/full", saved)
