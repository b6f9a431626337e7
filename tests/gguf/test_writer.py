"""The bytes of a GGUF: its values, and what cannot be in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from alora_gguf.errors import ConvertError
from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.parser import ValueType
from alora_gguf.gguf.writer import OutTensor, Value, measure_gguf, write_gguf

METADATA: list[tuple[str, ValueType, Value]] = [
    ("text", ValueType.STRING, "ä"),
    ("yes", ValueType.BOOL, True),
    ("u32", ValueType.UINT32, 2**32 - 1),
    ("i32", ValueType.INT32, -5),
    ("u64", ValueType.UINT64, 2**63),
    ("f32", ValueType.FLOAT32, 0.5),
    ("ids", ValueType.ARRAY, (3, 4)),
    ("tags", ValueType.ARRAY, ["a", "", "ü"]),
    ("none", ValueType.ARRAY, ()),
]


def tensor(name: str, size: int, fill: bytes = b"\1") -> OutTensor:
    return OutTensor(name, (size,), 24, lambda: fill * size)  # of type I8


def test_every_kind_of_value_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "o.gguf"
    write_gguf(path, METADATA, [], overwrite=False)
    header = read_header(path)
    assert {key: header.types[key] for key, _, _ in METADATA} == {k: t for k, t, _ in METADATA}
    for key, kind, value in METADATA:
        found = list(header.array(key)) if kind is ValueType.ARRAY else header.value(key)
        assert found == (list(value) if isinstance(value, (tuple, list)) else value), key


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (ValueType.UINT32, -1, "'k' = -1 does not fit the type uint32"),
        (ValueType.INT32, 2**31, "'k' = 2147483648 does not fit the type int32"),
        (ValueType.FLOAT32, 1e39, r"'k' = 1e\+39 does not fit the type float32"),
        (ValueType.ARRAY, [1, 2**32], "'k' = 4294967296 does not fit the type uint32"),
        (ValueType.STRING, "a\ud800", r"'k' = 'a\\ud800' is not valid Unicode text"),
        (ValueType.ARRAY, ["\udcff"], r"'k' = '\\udcff' is not valid Unicode text"),
    ],
)
def test_values_that_do_not_fit(
    tmp_path: Path, kind: ValueType, value: Value, message: str
) -> None:
    with pytest.raises(ConvertError, match=message):
        write_gguf(tmp_path / "o", [("k", kind, value)], [], overwrite=False)
    assert not list(tmp_path.iterdir())


def test_names_that_readers_would_refuse(tmp_path: Path) -> None:
    one: tuple[str, ValueType, Value] = ("k", ValueType.UINT32, 1)
    with pytest.raises(ConvertError, match="'k' would stand in the file twice"):
        measure_gguf([one, one], [])
    with pytest.raises(ConvertError, match="'t' would stand in the file twice"):
        measure_gguf([], [tensor("t", 1), tensor("s", 1), tensor("t", 2)])
    with pytest.raises(ConvertError, match=r"has 64 bytes, more than llama\.cpp's 63"):
        measure_gguf([], [tensor("ä" * 32, 1)])


def test_progress_counts_bytes_up_to_the_size_of_the_file(tmp_path: Path) -> None:
    path, calls = tmp_path / "o", []
    tensors = [tensor("a", 100), tensor("b", 32), tensor("c", 1)]
    size = write_gguf(
        path, METADATA, tensors, overwrite=False, progress=lambda *call: calls.append(call)
    )
    assert size == path.stat().st_size
    head = size - 128 - 32 - 32
    assert calls == [(head + 128, size), (head + 160, size), (head + 192, size)]


def test_measuring_makes_everything_and_writes_nothing(tmp_path: Path) -> None:
    made, calls = [], []

    def make() -> bytes:
        made.append("tensor")
        return b"12345"

    tensors = [OutTensor("t", (5,), 24, make)]
    size = measure_gguf(METADATA, tensors, lambda *call: calls.append(call))
    assert made == ["tensor"]
    assert calls == [(size, size)]
    assert not list(tmp_path.iterdir())
    assert size == write_gguf(tmp_path / "o", METADATA, tensors, overwrite=False)
    assert size == (tmp_path / "o").stat().st_size


def test_wrong_size_is_caught(tmp_path: Path) -> None:
    short = OutTensor("t", (4,), 0, lambda: b"\0" * 12)
    with pytest.raises(ConvertError, match="'t' has 12 bytes, not 16"):
        write_gguf(tmp_path / "o", [("k", ValueType.UINT32, 1)], [short], overwrite=False)
