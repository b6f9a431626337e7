"""The header reader: what it reads, what it leaves in the file, and every way a file can be bad."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from alora_gguf.engine import native as _native
from alora_gguf.engine.tokens import Vocabulary
from alora_gguf.errors import FileFormatError, InputError, MissingFileError
from alora_gguf.gguf.base import vocabulary_only
from alora_gguf.gguf.header import read_header
from alora_gguf.gguf.parser import GGML_TYPES, ArrayRef, PartialHeaderError, ValueType
from tests.support import tiny_base
from tests.support.gguf_bytes import tensor_array


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + payload


def tensor(
    name: str, shape: tuple[int, ...], offset: int, kind: int = 0, n_dims: int | None = None
) -> bytes:
    return (
        string(name)
        + struct.pack("<I", len(shape) if n_dims is None else n_dims)
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


ARCHITECTURE = entry("general.architecture", 8, string("llama"))


def assemble(
    entries: tuple[bytes, ...] = (ARCHITECTURE,),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    version: int = 3,
    n_tensors: int | None = None,
) -> bytes:
    count = len(tensors) if n_tensors is None else n_tensors
    head = b"GGUF" + struct.pack("<IQQ", version, count, len(entries))
    head += b"".join(entries) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + data


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A file as gguf's own writer makes it, with every kind of value."""
    path = tmp_path / "sound.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("an.uint", 7)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "Grüße")
    writer.add_array("ids", [1, 2, 3])
    writer.add_token_list(["a", "", "ß" * 200, "b"])
    writer.add_tensor("x.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("y.weight", np.ones((4, 2), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_what_ggufs_writer_wrote(sound: Path) -> None:
    header = read_header(sound)
    assert header.version == 3
    assert header.architecture == "llama"
    assert header.metadata["an.uint"] == 7
    assert header.types["an.uint"] is ValueType.UINT32
    assert header.metadata["a.float"] == 0.5
    assert header.types["a.float"] is ValueType.FLOAT32
    assert header.metadata["a.bool"] is True
    assert header.metadata["a.string"] == "Grüße"
    assert header.array("ids") == (1, 2, 3)
    assert header.array("tokenizer.ggml.tokens") == ("a", "", "ß" * 200, "b")
    assert header.tensors["x.weight"].shape == (3, 2)
    assert header.tensors["x.weight"].type_name == "F32"
    assert header.tensors["y.weight"].nbytes == 16
    np.testing.assert_array_equal(
        tensor_array(header, "x.weight"), np.arange(6, dtype=np.float32).reshape(2, 3)
    )
    assert len(header.tensor_data("y.weight")) == 16


def test_bytes_and_path_read_alike(sound: Path) -> None:
    from_path, from_bytes = read_header(sound), read_header(sound.read_bytes())
    assert from_path.metadata == from_bytes.metadata
    assert from_path.tensors == from_bytes.tensors
    assert from_bytes.name == "<bytes>"
    assert from_path.name == str(sound)


def test_arrays_stay_in_the_file(sound: Path) -> None:
    ref = read_header(sound).metadata["tokenizer.ggml.tokens"]
    assert isinstance(ref, ArrayRef)
    assert ref.type is ValueType.STRING
    assert ref.count == 4
    assert ref.nbytes == 4 * 8 + 402


def test_a_large_vocabulary_is_not_read_string_by_string() -> None:
    words = b"".join(string(f"token{i}") for i in range(128_256))
    merges = b"".join(string(f"a{i} b") for i in range(280_147))
    data = assemble(
        (
            ARCHITECTURE,
            entry("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 128_256) + words),
            entry("tokenizer.ggml.merges", 9, struct.pack("<IQ", 8, 280_147) + merges),
        )
    )
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        header = read_header(data)
    finally:
        sys.setprofile(None)
    assert calls < 50_000  # not even one for each of the 408,403 strings
    assert len(header.array("tokenizer.ggml.tokens")) == 128_256


def test_type_table_is_ggufs() -> None:
    for kind, (per_block, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        assert GGML_TYPES[int(kind)] == (kind.name, per_block, block_bytes)


def test_wrong_value_type_names_both(sound: Path) -> None:
    header = read_header(sound)
    with pytest.raises(
        FileFormatError, match=r"'an.uint' must be of type string, but it is uint32"
    ):
        header.string("an.uint")
    with pytest.raises(FileFormatError, match=r"the metadata key 'nothing' is missing"):
        header.value("nothing")
    with pytest.raises(FileFormatError, match=r"'an.uint' must be of type array"):
        header.array("an.uint")
    with pytest.raises(FileFormatError, match=r"there is no tensor 'z'"):
        header.tensor_data("z")


ONE = tensor("t", (4,), 0)

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty"),
    "magic only": (b"GGU", "truncated"),
    "another format": (b"\x93NUMPY" + b"\0" * 64, r"starts with b'\\x93NUM', expected b'GGUF'"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "html": (b"\n<!DOCTYPE html><html>", "an HTML page saved under this name"),
    "pickle": (b"PK\x03\x04" + b"\0" * 60, "a zip archive"),
    "safetensors": (struct.pack("<Q", 40) + b'{"a":1}' + b" " * 60, "a safetensors file"),
    "ggml": (b"tjgg" + b"\0" * 60, "before GGUF"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (assemble(version=1), "version 1, expected 2 or 3"),
    "version 4": (assemble(version=4), "version 4, expected 2 or 3"),
    "too many tensors": (assemble(n_tensors=2**40), "claims 1099511627776 tensors"),
    "key too long": (assemble((struct.pack("<Q", 2**63) + b"x" * 40,)), "truncated: metadata"),
    "key not utf-8": (assemble((entry(b"\xff\xfe", 4, b"\0" * 4),)), "is not UTF-8"),
    "empty key": (assemble((entry("", 4, b"\0" * 4),)), "an empty key"),
    "key twice": (assemble((ARCHITECTURE, ARCHITECTURE)), "'general.architecture' occurs twice"),
    "unknown type": (assemble((entry("k", 99, b"\0" * 8),)), "'k' has the unknown type 99"),
    "nested array": (
        assemble((entry("k", 9, struct.pack("<IQ", 9, 1) + b"\0" * 8),)),
        "'k' is an array of arrays",
    ),
    "array too long": (
        assemble((entry("k", 9, struct.pack("<IQ", 4, 2**62)),)),
        "truncated: metadata key 'k'",
    ),
    "strings too many": (
        assemble((entry("k", 9, struct.pack("<IQ", 8, 2**62)),)),
        "truncated: metadata key 'k'",
    ),
    "string in array too long": (
        assemble((entry("k", 9, struct.pack("<IQQQ", 8, 2, 2**64 - 1, 0)),)),
        "truncated: metadata key 'k'",
    ),
    "alignment type": (
        assemble((entry("general.alignment", 8, string("x")),)),
        "'general.alignment' must be of type uint32, but it is string",
    ),
    "alignment 3": (
        assemble((entry("general.alignment", 4, struct.pack("<I", 3)),)),
        "general.alignment is 3, expected a power of two",
    ),
    "tensor twice": (assemble(tensors=(ONE, ONE), data=b"\0" * 64), "'t' occurs twice"),
    "tensor name": (assemble(tensors=(tensor("t" * 64, (4,), 0),)), "has 64 bytes, expected 1"),
    "dimensions": (assemble(tensors=(tensor("t", (4,), 0, n_dims=9),)), "has 9 dimensions"),
    "tensor type": (assemble(tensors=(tensor("t", (4,), 0, 99),)), "unknown ggml type 99"),
    "row": (assemble(tensors=(tensor("t", (33,), 0, 8),)), "a multiple of 32 for type Q8_0"),
    "absurd shape": (
        assemble(tensors=(tensor("t", (2**40, 2**40), 0),)),
        "absurdly large",
    ),
    "data past the end": (assemble(tensors=(ONE,), data=b"\0" * 15), "truncated: tensor 't' ends"),
    "overlap": (
        assemble(tensors=(ONE, tensor("u", (4,), 0)), data=b"\0" * 64),
        "tensor 'u' overlaps the tensor before it: its offset is 0, expected 32",
    ),
    "gap": (
        assemble(tensors=(ONE, tensor("u", (4,), 64)), data=b"\0" * 128),
        "tensor 'u' leaves a gap: its offset is 64, expected 32",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_by_name(case: str, tmp_path: Path) -> None:
    data, message = BAD[case]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    for source, name in ((path, str(path)), (data, "<bytes>")):
        with pytest.raises(FileFormatError, match=message) as caught:
            read_header(source)
        assert str(caught.value).startswith(name + ": ")


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none.gguf: there is no such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(FileFormatError, match=r"is a directory, expected a GGUF file"):
        read_header(tmp_path)


def test_every_truncation_is_refused(sound: Path) -> None:
    data = sound.read_bytes()
    header = read_header(data)
    end = max(t.offset + t.nbytes for t in header.tensors.values())
    for n in range(end):
        with pytest.raises(FileFormatError):
            read_header(data[:n])


def test_damaged_bytes_never_escape_as_another_error(sound: Path) -> None:
    data, rng = sound.read_bytes(), random.Random(1)
    for _ in range(3000):
        copy = bytearray(data)
        copy[rng.randrange(len(copy))] = rng.randrange(256)
        try:
            header = read_header(copy)
            for key, kind in header.types.items():
                if kind is ValueType.ARRAY:
                    header.array(key)
            for name in header.tensors:
                header.tensor_data(name)
        except FileFormatError:
            pass


def test_the_bytes_of_an_array_and_of_an_entry(sound: Path) -> None:
    header = read_header(sound)
    words = (b"a", b"", "ß".encode() * 200, b"b")
    stored = b"".join(string(word) for word in words)
    assert bytes(header.array_bytes("tokenizer.ggml.tokens")) == stored
    assert bytes(header.array_bytes("ids")) == struct.pack("<3i", 1, 2, 3)
    assert bytes(header.entries["an.uint"]) == entry("an.uint", 4, struct.pack("<I", 7))
    assert list(header.entries) == list(header.metadata)
    first, last = header.entries["general.architecture"], header.entries["tokenizer.ggml.tokens"]
    assert len(first) == len(ARCHITECTURE)
    assert bytes(last).endswith(stored)
    with pytest.raises(FileFormatError, match=r"'an.uint' must be of type array"):
        header.array_bytes("an.uint")


def test_a_beginning_with_the_whole_header_is_enough(sound: Path) -> None:
    data = sound.read_bytes()
    whole = read_header(data)
    header = read_header(data[: whole.data_offset], name="remote", size=len(data))
    assert header.metadata == whole.metadata
    assert header.tensors == whole.tensors
    assert header.size == len(data)
    assert header.array("tokenizer.ggml.tokens") == whole.array("tokenizer.ggml.tokens")
    with pytest.raises(
        FileFormatError,
        match=rf"remote: the data of tensor 'x.weight' was not fetched, only the file's first "
        rf"{whole.data_offset} bytes",
    ):
        tensor_array(header, "x.weight")
    # of the first tensor all is there, of the second one byte is missing
    last = max(t.offset + t.nbytes for t in whole.tensors.values())
    header = read_header(data[: last - 1], size=len(data))
    assert header.tensor_data("x.weight") == whole.tensor_data("x.weight")
    with pytest.raises(FileFormatError, match=r"'y.weight' was not fetched"):
        header.tensor_data("y.weight")


def test_every_shorter_beginning_says_how_much_more_it_needs(sound: Path) -> None:
    data = sound.read_bytes()
    table_end = read_header(data).data_offset
    while True:  # the padding before the data is not needed
        try:
            read_header(data[: table_end - 1], size=len(data))
        except PartialHeaderError:
            break
        table_end -= 1
    for n in range(table_end):
        with pytest.raises(PartialHeaderError, match=r"only the file's first \d+ bytes") as caught:
            read_header(data[:n], size=len(data))
        assert n < caught.value.needed <= table_end
    needed, requests = 1, 0
    while requests < 1000:
        try:
            read_header(data[:needed], size=len(data))
            break
        except PartialHeaderError as error:
            needed, requests = error.needed, requests + 1
    assert needed == table_end


def test_a_beginning_is_checked_against_the_size_of_the_file(sound: Path) -> None:
    data = sound.read_bytes()
    offset = read_header(data).data_offset
    end = max(t.offset + t.nbytes for t in read_header(data).tensors.values())
    with pytest.raises(FileFormatError, match=rf"the file ends at {end - 1}; download") as caught:
        read_header(data[:offset], size=end - 1)
    assert not isinstance(caught.value, PartialHeaderError)
    # damage is damage, however much more could be fetched
    for case in ("key too long", "strings too many", "string in array too long", "array too long"):
        with pytest.raises(FileFormatError, match="truncated") as caught:
            read_header(BAD[case][0], size=2**40)
        assert not isinstance(caught.value, PartialHeaderError)
    with pytest.raises(FileFormatError, match="claims 1099511627776 tensors"):
        read_header(BAD["too many tensors"][0], size=2**40)
    with pytest.raises(FileFormatError, match="a Git LFS pointer"):
        read_header(BAD["lfs"][0], size=10**9)
    with pytest.raises(InputError, match=r"<bytes>: its size is said to be 3 bytes, but \d+ are"):
        read_header(data, size=3)


def test_llama_cpp_tokenises_with_the_vocabulary_alone(tmp_path: Path) -> None:
    path = tiny_base.write_base(tmp_path / "base.gguf")
    data = path.read_bytes()
    start = read_header(data).data_offset
    header = read_header(data[:start], size=len(data))  # as of a file that was never downloaded
    alone = tmp_path / "vocabulary.gguf"
    alone.write_bytes(vocabulary_only(header))
    assert read_header(alone).metadata == header.metadata
    assert read_header(alone).tensors == {}
    text = "<certainty> in the <|user|>rain <|assistant|> ß\n"
    ids = [tokenize(file, text) for file in (path, alone)]
    assert ids[0] == ids[1]
    assert tiny_base.USER in ids[0]
    assert tiny_base.ASSISTANT in ids[0]


def test_the_vocabulary_of_a_split_model_does_not_look_for_its_other_parts(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m-00001-of-00002.gguf", "llama")
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 2)
    writer.add_int32("split.tensors.count", 5)
    writer.add_token_list(["a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    header = read_header(tmp_path / "m-00001-of-00002.gguf")
    assert set(read_header(vocabulary_only(header)).metadata) == {
        "general.architecture",
        "tokenizer.ggml.tokens",
    }


def tokenize(path: Path, text: str) -> list[int]:
    """By llama.cpp, of a file loaded for its vocabulary only."""
    llama = _native.load().llama
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp refuses {path}"
    try:
        vocabulary = Vocabulary(_native.load(), model, str(path))
        return vocabulary.tokenize(text, add_special=False, parse_special=True)
    finally:
        llama.llama_model_free(model)


def test_a_damaged_length_does_not_put_the_file_into_the_message() -> None:
    key = b"k" * 100_000
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    with pytest.raises(FileFormatError) as caught:
        read_header(head + struct.pack("<I", 99) + b"\0" * 64, name="f.gguf")
    assert str(caught.value).startswith("f.gguf: metadata key 'kkk")
    assert str(caught.value).endswith("kkk' has the unknown type 99")
    assert len(str(caught.value)) < 700


def test_counts_are_bounded_before_anything_is_built() -> None:
    entry = struct.pack("<Q", 4), struct.pack("<IB", 0, 1)
    n = 10_001
    keys = b"".join(entry[0] + b"%04x" % i + entry[1] for i in range(n))
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, n) + keys
    with pytest.raises(FileFormatError, match=f"has {n} metadata entries, expected at"):
        read_header(data)
    data = b"GGUF" + struct.pack("<IQQ", 3, 102_401, 0) + bytes(24 * 102_401)
    with pytest.raises(FileFormatError, match="has 102401 tensors, expected at most 102400"):
        read_header(data)
    text = struct.pack("<Q", 1) + b"a" + struct.pack("<IQ", 8, (64 << 20) + 1)
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text + bytes((64 << 20) + 1)
    with pytest.raises(FileFormatError, match="holds 67108865 bytes of text, expected at most"):
        read_header(data)
    strings = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 4_000_001)
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + strings + bytes(8 * 4_000_001)
    with pytest.raises(FileFormatError, match="has 4000001 strings, expected at most 4000000"):
        read_header(data)
