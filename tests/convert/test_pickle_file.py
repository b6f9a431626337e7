"""A pickle is read only as far as it is a dictionary of tensors, and none of it ever runs."""

from __future__ import annotations

import io
import os
import pickle
import random
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alora_gguf.convert import Pick, convert_adapter
from alora_gguf.convert.pickle_file import PickleFile

from alora_gguf.errors import ConvertError, FileFormatError, UnsupportedAdapterError
from alora_gguf.gguf.header import read_header
from tests.support.peft_files import Case

torch = pytest.importorskip("torch", reason="pickles are read with torch; the test extra has it")


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"echo ran > {self.mark}",))


def archive(program: bytes, **others: bytes) -> bytes:
    """A zip as torch saves it, around a pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in {"data.pkl": program, "version": b"3\n", **others}.items():
            file.writestr(f"a/{name}", data)
    return out.getvalue()


def save(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def test_values_of_every_dtype_come_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 5))
    wide = torch.from_numpy(values)
    content = OrderedDict(
        f64=wide,
        f32=wide.float(),
        f16=wide.half(),
        bf16=wide.bfloat16(),
        view=wide.float().T,
        parameter=torch.nn.Parameter(wide.float()),
        empty=torch.zeros(0, 4),
        ids=torch.arange(3),
    )
    with PickleFile(save(tmp_path / "adapter_model.bin", content)) as file:
        assert {name: (t.dtype, t.shape) for name, t in file.tensors.items()} == {
            "f64": ("F64", (3, 5)),
            "f32": ("F32", (3, 5)),
            "f16": ("F16", (3, 5)),
            "bf16": ("BF16", (3, 5)),
            "view": ("F32", (5, 3)),
            "parameter": ("F32", (3, 5)),
            "empty": ("F32", (0, 4)),
            "ids": ("int64", (3,)),
        }
        for name in ("f64", "f32", "f16", "bf16", "view", "parameter", "empty"):
            found = file.read(name)
            assert found.dtype == (np.float64 if name == "f64" else np.float32)
            np.testing.assert_array_equal(found, content[name].detach().double().numpy())
        with pytest.raises(
            UnsupportedAdapterError, match="'ids' has the dtype int64, expected F32"
        ):
            file.read("ids")


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    import hashlib

    path = save(tmp_path / "a.bin", {"x": torch.ones(2)})
    file = PickleFile(path)
    assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    file.close()
    file.close()


def test_a_pickle_converts_to_what_safetensors_would(case: Case) -> None:
    case.convert()
    wanted = read_header(case.out.read_bytes())
    case.out.unlink()
    safetensors = case.source / "adapter_model.safetensors"
    safetensors.unlink()
    content = {name: torch.from_numpy(values) for name, values in case.tensors.items()}
    save(case.source / "adapter_model.bin", content)
    with pytest.raises(UnsupportedAdapterError, match="a pickle"):
        convert_adapter(case.source, case.base, case.out, outtype="f32")
    pick = Pick(allow_pickle=True)
    convert_adapter(case.source, case.base, case.out, outtype="f32", pick=pick)
    found = read_header(case.out)
    assert list(found.tensors) == list(wanted.tensors)
    for name in wanted.tensors:
        assert found.tensor_data(name) == wanted.tensor_data(name)
    different = {k for k, v in wanted.metadata.items() if found.metadata.get(k) != v}
    assert different == {"alora.source.sha256"}

    mark = case.folder / "mark"
    save(case.source / "adapter_model.bin", {**content, "x": Evil(mark)})
    case.out.unlink()
    with pytest.raises(UnsupportedAdapterError, match=r"refers to \w+\.system"):
        convert_adapter(case.source, case.base, case.out, pick=pick)
    assert sorted(p.name for p in case.folder.iterdir()) == ["adapter", "base.gguf"]


# ---- what it must not do -------------------------------------------------------------------------


def test_the_evil_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "mark"), protocol=2))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("where", ["alone", "in a dictionary", "as a key", "beside a tensor"])
def test_code_is_refused_by_name_and_not_run(tmp_path: Path, where: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "adapter_model.bin"
    evil = Evil(mark)
    content: Any = {
        "alone": evil,
        "in a dictionary": {"x": [evil]},
        "as a key": {("x", evil): 1},
        "beside a tensor": {"x": torch.ones(2), "y": evil},
    }[where]
    save(path, content)
    with pytest.raises(UnsupportedAdapterError) as caught:
        PickleFile(path)
    assert f"{path}: refers to {os.system.__module__}.system, but" in str(caught.value)
    assert "safe_serialization=True" in str(caught.value)
    assert not mark.exists()


def test_other_opcodes_that_fetch_code_are_refused(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "a.bin"
    command = f"echo ran > {mark}"
    programs = {
        "STACK_GLOBAL": pickle.dumps(Evil(mark), protocol=4),
        "INST": f"(S'{command}'\niposix\nsystem\n.".encode(),
        "OBJ": f"(cposix\nsystem\nS'{command}'\no.".encode(),
    }
    for opcode, program in programs.items():
        path.write_bytes(archive(program))
        with pytest.raises(UnsupportedAdapterError, match=f"opcode {opcode}|to posix.system"):
            PickleFile(path)
    assert not mark.exists()


def test_torch_is_a_second_wall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PickleFile, "_check_calls", lambda *_: None)
    mark = tmp_path / "mark"
    with pytest.raises(UnsupportedAdapterError, match="is refused by torch's restricted loader"):
        PickleFile(save(tmp_path / "a.bin", {"x": Evil(mark)}))
    assert not mark.exists()


def test_forms_that_cannot_be_checked_are_refused(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "a.bin"
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:  # the form of CVE-2025-32434
        data = pickle.dumps(Evil(mark), protocol=2)
        info = tarfile.TarInfo("storages")
        info.size = len(data)
        file.addfile(info, io.BytesIO(data))
    save(path, {"x": Evil(mark)}, _use_new_zipfile_serialization=False)
    for content in (path.read_bytes(), pickle.dumps(Evil(mark)), tar.getvalue()):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match=r"not in the form that torch has saved in since"):
            PickleFile(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds list, not a dictionary of tensors"),
        (torch.ones(2), "holds Tensor, not a dictionary"),
        ({"x": 1}, "holds 'x', which is not a tensor"),
        ({"x": {"y": torch.ones(2)}}, "holds 'x', which is not a tensor"),
        ({1: torch.ones(2)}, "holds an entry named 1,"),
        ({"a\nb": torch.ones(2)}, r"holds an entry named 'a\\nb',"),
        ({"x": torch.ones(1).expand(1000)}, "holds 'x' of 4000 bytes in fewer"),
        ({"x": torch.ones(2).to_sparse()}, r"refers to torch\._utils\._rebuild_sparse_tensor"),
        ({"x": np.ones(2)}, r"refers to numpy\."),
    ],
)
def test_what_is_no_dictionary_of_tensors_is_refused(
    tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(UnsupportedAdapterError, match=message):
        PickleFile(save(tmp_path / "a.bin", content))


# ---- what it may not be --------------------------------------------------------------------------

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty; download or save it again"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "is .* but a Git LFS pointer"),
    "html": (b"<!DOCTYPE html><body>404", "but an HTML page saved under this name"),
    "safetensors": (
        b"\x10\0\0\0\0\0\0\0{}" + b" " * 14,
        r"but a safetensors file: rename it to adapter_model\.safetensors",
    ),
    "gguf": (b"GGUF" + b"\0" * 40, "is not a pickle of torch but a GGUF file"),
    "noise": (b"hello", r"it starts with b'hell'; older pickles cannot be checked"),
    "other zip": (b"PK\x03\x04" + b"\0" * 100, r"is truncated or damaged \(File is not a zip"),
    "no pickle": (archive(b"").replace(b"data.pkl", b"data.xyz"), "with 0 data.pkl, expected one"),
    "two pickles": (archive(b".", **{"b/data.pkl": b"."}), "with 2 data.pkl, expected one"),
    "empty pickle": (archive(b""), r"is truncated or damaged \(pickle exhausted"),
    "no opcode": (archive(b"\xff"), "is truncated or damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    data, message = BAD[name]
    path = tmp_path / "adapter_model.bin"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=message) as caught:
        PickleFile(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(FileFormatError, match="is compressed, which torch's own files are not"):
        PickleFile(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be read: No such file"):
        PickleFile(tmp_path / "none.bin")


def test_truncations_and_damage_never_escape_as_another_error(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.bin", random.Random(1)
    save(path, {"x": torch.ones(300, 4), "y": torch.ones(3)})
    data = path.read_bytes()
    for n in [*range(0, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:n])
        with pytest.raises(FileFormatError, match=r"a\.bin: "):
            PickleFile(path)
    for _ in range(400):
        copy = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            copy[rng.randrange(len(copy))] = rng.randrange(256)
        path.write_bytes(copy)
        try:
            with PickleFile(path) as file:
                for name, info in file.tensors.items():
                    if info.dtype in ("F32", "F16"):
                        file.read(name)
        except (FileFormatError, UnsupportedAdapterError):
            pass


# ---- the torch it needs --------------------------------------------------------------------------


def test_without_torch_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.bin", {"x": torch.ones(2)})
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    with pytest.raises(
        ConvertError, match=r"needs PyTorch 2\.6 or newer, .*`pip install torch`, or load the"
    ):
        PickleFile(path)


@pytest.mark.parametrize("version", ["2.5.1+cu121", "1.13.0", "unknown"])
def test_a_torch_with_holes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    path = save(tmp_path / "a.bin", {"x": torch.ones(2)})
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(ConvertError) as caught:
        PickleFile(path)
    assert f"but this is {version}, whose restricted loader" in str(caught.value)
    assert "CVE-2025-32434" in str(caught.value)
    assert "pip install --upgrade torch" in str(caught.value)
