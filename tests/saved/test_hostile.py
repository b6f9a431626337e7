"""Damaged, foreign and contradictory saved sessions are refused; failed saves change nothing."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import struct
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

import alora_gguf as ag
from alora_gguf import files
from alora_gguf.engine.tokens import BASE, Provenance
from alora_gguf.saved import container
from alora_gguf.saved.container import FORMAT
from alora_gguf.saved.session_file import SavedAdapter, SavedSession, read_saved, write_saved
from tests.support import inside
from tests.support.files import (
    EXACT,
    Files,
    write_files,
    write_hybrid_files,
    write_window_files,
)
from tests.support.saving import collect, path_of

HASH = "ab" * 32
_TWO = Provenance.of_parts([(HASH, 1.0), ("cd" * 32, 0.5)])
TWO = [_TWO.identity, 1.0, [list(part) for part in _TWO.parts]]  # several that computed together
TENSORS = ("tokens", "logits", "state")


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


def split(data: bytes) -> tuple[bytes, bytes]:
    """The head and the tensors of a file."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[:end], data[end:]


def change_head(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    head, rest = split(path.read_bytes())
    table = json.loads(head[8:])
    change(table)
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)


def another_safetensors() -> bytes:
    text = json.dumps({
        "__metadata__": {"format": "pt", "session": "", "sha256": ""},
        **{n: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in TENSORS},
    }).encode()  # fmt: skip
    return struct.pack("<Q", len(text)) + text


def refused(path: Path, *said: str) -> str:
    with pytest.raises(ag.SavedSessionError) as caught:
        read_saved(path)
    message = str(caught.value)
    for text in (str(path), *said):
        assert text in message
    return message


# Damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_flipped_bytes_are_refused(path: Path, mask: int) -> None:
    data = path.read_bytes()
    head = len(split(data)[0])
    places = {0, 7, 8, head - 9, head - 1, head, len(data) - 1}
    places |= {*range(0, head, head // 32), *range(head, len(data), (len(data) - head) // 32)}
    with path.open("r+b", buffering=0) as file:
        for at in sorted(places):
            file.seek(at)
            file.write(bytes([data[at] ^ mask]))
            refused(path)
            file.seek(at)
            file.write(data[at : at + 1])
    read_saved(path)


def test_every_truncation_is_refused(path: Path, saved: SavedSession) -> None:
    data = path.read_bytes()
    head = len(split(data)[0])
    ends = [0, 8, head, head + 4 * len(saved.tokens), len(data) - len(saved.state), len(data)]
    lengths = {n for end in ends for n in range(end - 3, end + 4) if 0 <= n < len(data)}
    lengths |= set(range(0, len(data), len(data) // 64))
    for n in sorted(lengths, reverse=True):
        os.truncate(path, n)
        said = refused(path, "bytes, expected" if n else "the file is empty")
        assert n == 0 or f"is truncated: {n} bytes" in said


@pytest.mark.parametrize("extra", [b"\0", b"x" * 5000], ids=len)
def test_what_follows_the_end_is_refused(path: Path, extra: bytes) -> None:
    data = path.read_bytes()
    path.write_bytes(data + extra)
    refused(path, f"{len(extra)} bytes follow the end", f"expected {len(data)} bytes in all")


def test_the_file_is_safetensors(path: Path, saved: SavedSession) -> None:
    with safetensors.safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == {"tokens", "logits", "state"}
        assert file.metadata()["format"] == "alora-gguf saved session 2"
        assert file.get_tensor("tokens").tolist() == list(saved.tokens)
        assert file.get_tensor("logits").tobytes() == saved.logits
        assert file.get_tensor("state").tobytes() == saved.state


def test_swapped_sections_are_refused(path: Path, saved: SavedSession) -> None:
    n_tokens, n_logits = len(saved.tokens), len(saved.logits) // 4

    def swap(table: dict[str, Any]) -> None:
        table["tokens"] |= {"shape": [n_logits], "data_offsets": [0, 4 * n_logits]}
        total = 4 * (n_tokens + n_logits)
        table["logits"] |= {"shape": [n_tokens], "data_offsets": [4 * n_logits, total]}

    change_head(path, swap)
    refused(path, "is damaged: its checksum is ", "copy it again")


@pytest.mark.parametrize("version", ["1", "3", "77"])
def test_another_version_is_called_one(path: Path, version: str) -> None:
    change_head(path, lambda t: t["__metadata__"].update(format=f"{FORMAT[:-1]}{version}"))
    refused(path, f"has version {version} of the format, this alora-gguf reads 2", "upgrade")


def test_the_first_version_is_refused_in_a_sentence(path: Path) -> None:
    path.write_bytes(b"ALORASES" + struct.pack("<I", 1) + os.urandom(100))
    refused(path, "was saved by an older alora-gguf, in version 1", "read the conversation again")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty, expected a saved session"),
        (b"GGUF\3\0\0\0" + b"x" * 100, "is not a saved session, or its head is damaged: a GGUF"),
        (b"ALOR", "is truncated: 4 bytes, expected at least 8"),
        (b"\2" + bytes(7) + b"{}", "or its head is damaged: a safetensors file; check the path"),
        (b"\2" + bytes(7) + b"[]", "is not a saved session, or its head is damaged: it starts"),
        (another_safetensors(), "its format is 'pt', expected 'alora-gguf saved session 2'"),
    ],
    ids=["empty", "gguf", "four bytes", "no table", "no object", "other safetensors"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path_of(tmp_path).write_bytes(content)
    refused(path_of(tmp_path), said)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ag.MissingFileError, match="there is no such file, expected a saved session"
    ):
        read_saved(tmp_path / "none")
    refused(tmp_path, "is a directory, expected a saved session")
    with pytest.raises(ag.SavedSessionError, match="cannot be read"):
        read_saved(str(tmp_path / "a\0b"))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", "is a pipe or a device")


@pytest.mark.parametrize("value", [2**31, 2**40, 2**60, -1, 1.0])
@pytest.mark.parametrize("name", ["tokens", "logits", "state"])
def test_bogus_lengths_allocate_nothing(path: Path, name: str, value: float) -> None:
    def change(table: dict[str, Any]) -> None:
        at = 0
        for each in ("tokens", "logits", "state"):
            n = value if each == name else table[each]["shape"][0]
            end = at + n * (1 if each == "state" else 4)
            table[each] |= {"shape": [n], "data_offsets": [at, end]}
            at = end

    change_head(path, change)
    tracemalloc.start()
    try:
        refused(path, "is truncated" if value > 1 else "its head is not what this format writes")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("n", [10**8, 10**8 + 1, 2**60])
def test_a_bogus_length_of_the_head_allocates_nothing(path: Path, n: int) -> None:
    path.write_bytes(struct.pack("<Q", n) + path.read_bytes()[8:])
    tracemalloc.start()
    try:
        refused(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# A header that contradicts itself, under a checksum that is right ---------------------------------


def forge(path: Path, change: Callable[[dict[str, Any]], object] | str) -> None:
    """Replaces the header; lengths and checksum are made to fit."""
    header, parts = container.read_parts(path)
    if isinstance(change, str):
        session = change
    else:
        change(header)
        session = json.dumps(header, sort_keys=True, separators=(",", ":"))
    tensors = list(parts.values())
    checksum = container._checksum(session, tensors)
    head = container._head(FORMAT, session, list(map(len, tensors)), checksum)
    path.write_bytes(head + b"".join(tensors))


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
        (put("n_cached", value=-1), "'header.n_cached' has -1"),
        (put("n_cached", value=10**6), "'header.n_cached' has 1000000"),
        (put("n_cached", value=True), "'header.n_cached' has True"),
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
        (put("spans", 1, 1, value="x"), "expected a hash"),
        (put("spans", 1, 1, value=HASH), "'adapters' are not those that 'spans' name"),
        (put("spans", 1, value=[3, None, 1.0]), "repeats the span before it"),
        (put("spans", 1, value=[3]), "expected a list"),
        (put("spans", value={}), "expected a list"),
        (put("spans", 1, value=[3, HASH, 1.0, []]), "is not what its parts come to"),
        (put("spans", 1, value=[3, HASH, 1.0, {}]), "expected a list"),
        (put("spans", 1, value=[3, HASH, 1.0, [7]]), "expected a hash and a scale"),
        (put("spans", 1, value=[3, HASH, 1.0, [["x", 1.0]]]), "expected a hash and a scale"),
        (put("spans", 1, value=[3, HASH, 1.0, [[HASH, 1]]]), "expected a hash and a scale"),
        (put("spans", 1, value=[3, HASH, 1.0, [[HASH, 1e39]]]), "expected a hash and a scale"),
        (put("spans", 1, value=[3, HASH, 1.0, [[HASH, 3e38]] * 2]), "is not what its parts"),
        (put("spans", 1, value=[3, HASH, 1.0, [[HASH, 1.0]]]), "is not what its parts come to"),
        (put("spans", 1, value=[3, *TWO]), "'adapters' are not those that 'spans' name"),
        (put("spans", 1, value=[3, HASH, 1.0, TWO[2]]), "is not what its parts come to"),
        (put("spans", 1, value=[3, *TWO, 1]), "expected a list"),
        (put("adapters", value=[]), "'adapters' are not those that 'spans' name"),
        (put("adapters", 0, "name", value=""), "'adapters[0].name' has ''"),
        (put("adapters", 0, "name", value="\ud800"), r"'adapters[0].name' has '\ud800'"),
        (put("base", "file", value="a\ud800"), r"'base.file' has 'a\ud800'"),
        (put("adapters", 0, "name", value=7), "'adapters[0].name' has 7"),
        (lambda h: h["adapters"].append(h["adapters"][0]), "each once"),
        (put("base", "digest", value="12"), "expected a hash"),
        (put("base", "size", value=-5), "'base.size' has -5"),
        (put("base", "file", value=None), "expected a string"),
        (lambda h: h["base"].pop("file"), "'base' is "),
        (put("cache", "memory", value="none"), "'cache.memory' has 'none'"),
        (put("cache", "window", value=-1), "'cache.window'"),
        (put("cache", "swa_full", value=1), "'cache.swa_full' has 1"),
        (put("cache", "type_k", value=1), "'cache.type_k'"),
        (put("notes", value=[]), "'header.notes' has []"),
        (put("more", value=1), "'header' is "),
        ("[]", "its header is not what this format writes"),
        ("{", "its header is not what this format writes"),
        ("[" * 100_000, "its header is not what this format writes"),
        ('{"notes":NaN}', "its header is not what this format writes"),
        ('{"a":1,"a":1}', "its header is not what this format writes"),
        ('{"a": 1}', "its header is not what this format writes"),
        ('{"a":' + "9" * 5000 + "}", "its header is not what this format writes"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
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
        replace(saved, state=b""),
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


@pytest.mark.parametrize("n", range(4))
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
        assert str(caught.value) == (f"{path}: cannot be written: {os.strerror(errno.ENOSPC)}")
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
    with pytest.raises(ag.SavedSessionError, match="cannot be written: "):
        write_saved(path, replace(saved, notes={"new": 1}))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_where_nothing_can_be_written(saved: SavedSession, tmp_path: Path) -> None:
    for target, said in (
        (tmp_path / "none" / "x", "its directory does not exist; create it first"),
        (tmp_path, "is a directory, expected a file name for the saved session"),
        (tmp_path / "a\0b", "cannot be written"),
        (tmp_path / ("n" * 300), "cannot be written: "),
    ):
        with pytest.raises((ag.SavedSessionError, ag.InputError)) as caught:
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

        monkeypatch.setattr(files, "_create_part", denied)
    with pytest.raises(ag.SavedSessionError) as caught:
        write_saved(folder / "x", saved)
    assert str(caught.value) == (f"{folder / 'x'}: cannot be written: Permission denied")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a device that is always full")
def test_a_full_disk(saved: SavedSession) -> None:
    with pytest.raises(ag.InputError, match="/dev/full: is a pipe or a device"):
        write_saved("/dev/full", saved)


# Cells that never were ----------------------------------------------------------------------------


def _logits(model: ag.Model) -> np.ndarray[Any, Any]:
    with model.session() as session:
        session.append([5, 6, 7, 8])
        return inside.last_logits(session).copy()


@pytest.mark.parametrize("write", [write_files, write_window_files, write_hybrid_files])
def test_no_number_before_the_cells_reaches_others(
    write: Callable[..., Files], tmp_path: Path
) -> None:
    """A cell at a negative or the very last position stayed whatever was removed, and every later
    session saw it; several at one position filled a cache that the books called empty.
    """
    files = write(tmp_path, *([8] if write is write_window_files else []))
    with files.model(n_ctx=64) as model:
        with model.session() as session:
            session.append(list(range(20, 30)))
            saved = collect(session, options=EXACT)
        expected = _logits(model)
        refusals = 0
        for place in range(0, 4 * 40, 4):
            for number in (-(2**31), -1, 1, 60, 2**31 - 1):
                state = bytearray(saved.state)
                state[place : place + 4] = struct.pack("<i", number)
                write_saved(path_of(tmp_path), dataclasses.replace(saved, state=bytes(state)))
                try:
                    model.restore_session(path_of(tmp_path)).close()
                except ag.AloraError:
                    refusals += 1
                assert np.array_equal(_logits(model), expected), (place // 4, number)
        assert refusals > 50
