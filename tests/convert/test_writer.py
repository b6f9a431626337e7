"""The output is there whole or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alora_gguf.convert.writer import OutTensor, replacing, write_gguf

from alora_gguf.errors import ConvertError, InputError
from alora_gguf.gguf_header import read_header
from alora_gguf.gguf_types import ValueType
from tests.support.peft_files import Case


def test_existing_output_needs_force_and_survives_a_failure(case: Case) -> None:
    case.out.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"out.gguf: exists already; pass --force"):
        case.convert()
    name = next(n for n in case.tensors if n.endswith("layers.1.mlp.up_proj.lora_B.weight"))
    case.tensors[name][0, 0] = float("nan")  # found late, when half of the file is written
    with pytest.raises(Exception, match="NaN"):
        case.convert(overwrite=True)
    assert case.out.read_bytes() == b"precious"
    assert sorted(p.name for p in case.folder.iterdir()) == ["adapter", "base.gguf", "out.gguf"]
    case.tensors[name][0, 0] = 0
    case.convert(overwrite=True)
    assert read_header(case.out).architecture == "llama"


def test_inputs_are_never_overwritten(case: Case) -> None:
    before = case.base.read_bytes()
    case.write()
    from alora_gguf.convert import convert_adapter

    with pytest.raises(InputError, match="is one of the files to convert from"):
        convert_adapter(case.source, case.base, case.base, overwrite=True)
    assert case.base.read_bytes() == before


def test_targets_that_cannot_be(case: Case) -> None:
    case.write()
    from alora_gguf.convert import convert_adapter

    with pytest.raises(InputError, match="is a directory, expected a file name"):
        convert_adapter(case.source, case.base, case.folder)
    with pytest.raises(InputError, match="its directory does not exist; create it first"):
        convert_adapter(case.source, case.base, case.folder / "no" / "out.gguf")


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_mode_is_that_of_any_new_file(case: Case) -> None:
    case.convert()
    ordinary = case.folder / "ordinary"
    ordinary.touch()
    assert stat.S_IMODE(case.out.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdopen

    def full(number: int, mode: str) -> object:
        os.close(number)
        return real(os.open("/dev/full", os.O_WRONLY), mode)

    monkeypatch.setattr("os.fdopen", full)
    with (
        pytest.raises(ConvertError, match=r"out.gguf: cannot be written: No space left"),
        replacing(tmp_path / "out.gguf", overwrite=False) as file,
    ):
        file.write(b"x" * 100_000)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_directory_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with (
        pytest.raises(ConvertError, match="cannot be written: Permission denied"),
        replacing(tmp_path / "out.gguf", overwrite=False),
    ):
        pass


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    late = replacing(path, overwrite=False)
    late.__enter__().write(b"second")
    path.write_bytes(b"first")
    with pytest.raises(InputError, match="exists already"):
        late.__exit__(None, None, None)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_many_writers_leave_one_whole_file(case: Case) -> None:
    case.write()
    from alora_gguf.convert import convert_adapter

    def once(_: int) -> int:
        report = convert_adapter(case.source, case.base, case.out, overwrite=True, name="a")
        return report.nbytes

    with ThreadPoolExecutor(4) as pool:
        sizes = set(pool.map(once, range(12)))
    assert sizes == {case.out.stat().st_size}
    read_header(case.out)


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")
    code = (
        "import os, sys; from pathlib import Path;"
        "from alora_gguf.convert.writer import replacing\n"
        "with replacing(Path(sys.argv[1]), overwrite=True) as file:\n"
        "    file.write(b'x' * 100000); file.flush(); os._exit(9)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    run = subprocess.run(command, capture_output=True, cwd=tmp_path)
    assert run.returncode == 9, run.stderr
    assert path.read_bytes() == b"old"


def test_wrong_size_is_caught(tmp_path: Path) -> None:
    tensor = OutTensor("t", (4,), 0, lambda: b"\0" * 12)
    with pytest.raises(ConvertError, match="'t' has 12 bytes, not 16"):
        write_gguf(tmp_path / "o", [("k", ValueType.UINT32, 1)], [tensor], overwrite=False)
