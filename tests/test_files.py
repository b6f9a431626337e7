"""A file is there whole or not at all, on whatever disk and under whatever name; small ones."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alora_gguf.convert import convert_adapter

from alora_gguf.errors import FileFormatError, InputError, MissingFileError, StoreError
from alora_gguf.files import (
    check_target,
    read_json,
    read_small,
    remove_abandoned,
    write_whole,
    write_whole_directory,
)
from alora_gguf.gguf.header import read_header
from tests.support.peft_files import Case, sound_case

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX's files and modes")


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return sound_case(tmp_path)


def put(path: Path, data: bytes, *, overwrite: bool = False) -> None:
    with write_whole(path, overwrite=overwrite) as file:
        file.write(data)


def part_of(path: Path, middle: str = "0a1b2c3d") -> Path:
    return path.with_name(f".{path.name}.{middle}.part")


def test_existing_output_needs_force_and_survives_a_failure(case: Case) -> None:
    case.out.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"out\.gguf: exists already; pass overwrite=True"):
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


def test_the_same_input_gives_the_same_bytes(case: Case) -> None:
    case.convert()
    first = case.out.read_bytes()
    case.convert(overwrite=True)
    assert case.out.read_bytes() == first


def test_inputs_are_never_overwritten(case: Case) -> None:
    before = case.base.read_bytes()
    case.write()
    with pytest.raises(InputError, match="is one of the files to convert from"):
        convert_adapter(case.source, case.base, case.base, overwrite=True)
    assert case.base.read_bytes() == before


# ---- what stands at the name ---------------------------------------------------------------------


def test_directories(case: Case) -> None:
    case.write()
    with pytest.raises(InputError, match="is a directory, expected a file name"):
        convert_adapter(case.source, case.base, case.folder)
    for parent in (case.folder / "no", case.base):
        with pytest.raises(InputError, match="its directory does not exist; create it first"):
            convert_adapter(case.source, case.base, parent / "out.gguf")


@posix
def test_pipes_devices_and_sockets_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", Path("/dev/null")):
            with pytest.raises(InputError, match=r"is a pipe or a device, expected"):
                put(path, b"new", overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"pipe", "socket"}


@posix
def test_a_link_stays_and_the_file_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real, link = tmp_path / "store" / "v1.gguf", tmp_path / "latest.gguf"
    real.write_bytes(b"old")
    link.symlink_to(Path("store") / "v1.gguf")
    with pytest.raises(InputError, match=r"latest\.gguf: exists already"):
        put(link, b"new")
    put(link, b"new", overwrite=True)
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert len(list(tmp_path.rglob("*"))) == 3


@posix
def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    link, loop = tmp_path / "link", tmp_path / "loop"
    link.symlink_to("missing")
    loop.symlink_to("loop")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"link: is a link to .*missing, which does not exist"):
            put(link, b"new", overwrite=overwrite)
    with pytest.raises(FileFormatError, match=r"loop: cannot be written: Too many levels"):
        put(loop, b"new", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "loop"]


@posix
def test_names_too_long_and_just_short_enough(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be written: File name too long"):
        put(tmp_path / ("x" * 256), b"new")
    with pytest.raises(FileFormatError, match="cannot be written: embedded null"):
        put(tmp_path / "a\0b", b"new")
    for name in ("x" * 255, "ä" * 127):
        path = tmp_path / name
        part = next(p for p in _killed(path) if p.suffix == ".part")
        put(path, b"new")
        assert path.read_bytes() == b"new"
        assert not part.exists()
    assert len(list(tmp_path.iterdir())) == 2


@posix
def test_the_mode_is_that_of_any_new_file_or_of_the_one_replaced(case: Case) -> None:
    case.convert()
    ordinary = case.folder / "ordinary"
    ordinary.touch()
    assert stat.S_IMODE(case.out.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)
    case.out.chmod(0o640)
    case.convert(overwrite=True)
    assert stat.S_IMODE(case.out.stat().st_mode) == 0o640


# ---- what the disk says --------------------------------------------------------------------------


def _command(case: Case, out: Path) -> list[str]:
    """`alora-gguf convert`, as a process of its own."""
    case.write()
    code = "from alora_gguf.__main__ import main; main()"
    command = [sys.executable, "-c", code, "convert", case.source, "--base", case.base]
    return [str(part) for part in [*command, "-o", out, "--outtype", "f32", "--force"]]


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Where a small file system can be mounted, by those who run in NAMESPACE."""
    disk = tmp_path / "disk"
    disk.mkdir()
    probe = [*NAMESPACE, f"mount -t tmpfs none '{disk}'"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("mounting a file system without privileges needs Linux's user namespaces")
    return disk


def _converted_onto(case: Case, disk: Path, options: str) -> tuple[str, list[str]]:
    """Converts onto a file system of 8 KiB that has an old file; the error, and what is there."""
    script = (
        'set -e; disk="$1"; options="$2"; shift 2\n'
        'mount -t tmpfs -o size=8k none "$disk"\n'
        'printf old > "$disk/out.gguf"; mount -o "remount,$options" "$disk"\n'
        '"$@" && exit 99\n'  # it should not have been possible
        'ls -A "$disk"; cat "$disk/out.gguf"\n'
    )
    command = [*NAMESPACE, script, "sh", str(disk), options, *_command(case, disk / "out.gguf")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stderr, run.stdout.splitlines()


def test_a_full_disk_is_reported_and_the_old_file_stays(case: Case, disk: Path) -> None:
    error, found = _converted_onto(case, disk, "size=8k")
    assert error == f"Error: {disk}/out.gguf: cannot be written: No space left on device\n"
    assert found == ["out.gguf", "old"]


def test_a_read_only_disk_is_reported(case: Case, disk: Path) -> None:
    error, found = _converted_onto(case, disk, "ro")
    assert error == f"Error: {disk}/out.gguf: cannot be written: Read-only file system\n"
    assert found == ["out.gguf", "old"]


@posix
def test_a_limit_on_file_sizes_is_reported(case: Case) -> None:
    import resource

    case.out.write_bytes(b"old")
    run = subprocess.run(
        _command(case, case.out),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert run.returncode == 1
    assert run.stderr == f"Error: {case.out}: cannot be written: File too large\n"
    assert case.out.read_bytes() == b"old"
    assert sorted(p.name for p in case.folder.iterdir()) == ["adapter", "base.gguf", "out.gguf"]


@posix
def test_a_directory_that_may_not_be_written_is_reported(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from alora_gguf.files import write_whole\n"
        "from alora_gguf.errors import AloraError\n"
        "os.chdir(sys.argv[1])\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"  # root may write anywhere
        "for name in ('out.gguf', 'shut/out.gguf'):\n"
        "    try:\n"
        "        with write_whole(Path(name), overwrite=True) as file: file.write(b'new')\n"
        "    except AloraError as error: print(type(error).__name__, error)\n"
    )
    (tmp_path / "out.gguf").write_bytes(b"old")
    (tmp_path / "shut").mkdir(mode=0o000)
    tmp_path.chmod(0o555)
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    tmp_path.chmod(0o755)
    assert run.stdout.splitlines() == [
        "FileFormatError out.gguf: cannot be written: Permission denied",
        "FileFormatError shut/out.gguf: cannot be written: Permission denied",
    ], run.stderr
    assert (tmp_path / "out.gguf").read_bytes() == b"old"


def test_an_interruption_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), write_whole(path, overwrite=True) as file:
        raise KeyboardInterrupt(file.write(b"new"))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# ---- who else writes -----------------------------------------------------------------------------


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    late = write_whole(path, overwrite=False)
    late.__enter__().write(b"second")
    path.write_bytes(b"first")
    with pytest.raises(InputError, match="exists already"):
        late.__exit__(None, None, None)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_also_where_the_file_system_has_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    path = tmp_path / "out.gguf"
    put(path, b"first")
    late = write_whole(tmp_path / "late.gguf", overwrite=False)
    late.__enter__().write(b"second")
    (tmp_path / "late.gguf").write_bytes(b"first")
    with pytest.raises(InputError, match="exists already"):
        late.__exit__(None, None, None)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"first", b"first"]


def test_threads_leave_one_whole_file(case: Case) -> None:
    case.write()

    def once(_: int) -> int:
        report = convert_adapter(case.source, case.base, case.out, overwrite=True, name="a")
        return report.nbytes

    with ThreadPoolExecutor(4) as pool:
        sizes = set(pool.map(once, range(12)))
    assert sizes == {case.out.stat().st_size}
    read_header(case.out)


# ---- what killed writers leave -------------------------------------------------------------------


IN_A_FILE = """
with write_whole(Path(sys.argv[1]), overwrite=True) as file:
    file.write(b'x' * 100000); file.flush(); os._exit(9)
"""
IN_A_DIRECTORY = """
with write_whole_directory(Path(sys.argv[1])) as folder:
    (folder / "first").write_bytes(b'x' * 100000); os._exit(9)
"""


def _killed(path: Path, work: str = IN_A_FILE) -> list[Path]:
    """Kills a writer of `path` in the middle; what the folder holds then."""
    code = (
        "import os, sys; from pathlib import Path\n"
        f"from alora_gguf.files import write_whole, write_whole_directory\n{work}"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True)
    assert run.returncode == 9, run.stderr
    return list(path.parent.iterdir())


def test_an_abandoned_part_goes_with_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")
    left = _killed(path)
    assert len(left) == 2
    assert path.read_bytes() == b"old"
    assert len(_killed(path)) == 2  # that one removed the first part, and left its own
    with pytest.raises(InputError, match="exists already"):
        put(path, b"new")
    put(path, b"new", overwrite=True)
    assert list(tmp_path.iterdir()) == [path]


def test_parts_of_living_writers_and_other_files_stay(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    others = [part_of(path, "short"), part_of(path, "much longer"), part_of(tmp_path / "b.gguf")]
    for other in others:
        other.write_bytes(b"other")
    with write_whole(path, overwrite=True) as slow:
        slow.write(b"slow")
        with write_whole(path, overwrite=True) as quick:
            quick.write(b"quick")
        assert path.read_bytes() == b"quick"
    assert path.read_bytes() == b"slow"
    assert set(tmp_path.iterdir()) == {path, *others}


@posix
def test_what_only_looks_like_a_part_is_left_alone(tmp_path: Path) -> None:
    path, pipe = tmp_path / "out.gguf", part_of(tmp_path / "out.gguf")
    os.mkfifo(pipe)
    target, link = tmp_path / "target", part_of(path, "deadbeef")
    target.write_bytes(b"precious")
    link.symlink_to(target)
    put(path, b"new")
    assert set(tmp_path.iterdir()) == {path, pipe, target, link}
    assert target.read_bytes() == b"precious"


@posix
def test_without_locks_nothing_is_taken_for_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    path = tmp_path / "out.gguf"
    part = next(p for p in _killed(path) if p != path)
    monkeypatch.setattr("fcntl.flock", refuse)
    put(path, b"new")
    assert set(tmp_path.iterdir()) == {path, part}


@posix
def test_a_part_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    path, calls = tmp_path / "out.gguf", []

    def another_writer_comes_first(number: int, operation: int) -> None:
        calls.append(number)
        if len(calls) == 1:
            put(path, b"first", overwrite=True)
        real(number, operation)

    real = fcntl.flock
    monkeypatch.setattr("fcntl.flock", another_writer_comes_first)
    put(path, b"second", overwrite=True)
    assert len(calls) == 4  # once in vain, the other's look and its own lock, once more
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


# ---- directories ---------------------------------------------------------------------------------


def put_directory(path: Path, data: bytes) -> None:
    with write_whole_directory(path) as folder:
        assert not path.is_dir() or not any(path.iterdir())
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_bytes(data)


@posix
def test_an_abandoned_directory_goes_with_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for _ in range(2):  # the second removes what the first has left
        (left,) = _killed(path, IN_A_DIRECTORY)
        assert left.name.startswith(".out.")
    put_directory(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
    assert (path / "inner" / "file").read_bytes() == b"new"


def test_a_living_writer_keeps_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    with write_whole_directory(path) as slow:
        (slow / "file").write_bytes(b"slow")
        remove_abandoned(path)
        assert not any(path.iterdir())
    assert (path / "file").read_bytes() == b"slow"
    assert list(tmp_path.iterdir()) == [path]


@posix
def test_a_directory_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    path, calls = tmp_path / "out", []

    def another_writer_comes_first(number: int, operation: int) -> None:
        calls.append(number)
        if len(calls) == 1:
            remove_abandoned(path)
        real(number, operation)

    real = fcntl.flock
    monkeypatch.setattr("fcntl.flock", another_writer_comes_first)
    put_directory(path, b"second")
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_of_a_directory_is_left_where_its_writer_fails(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        put_directory(tmp_path / "out", None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_directory_taken_meanwhile_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "out"
    writing = write_whole_directory(path)
    (writing.__enter__() / "file").write_bytes(b"mine")
    path.mkdir()
    (path / "theirs").write_bytes(b"theirs")
    with pytest.raises(FileFormatError, match="out: cannot be written: "):
        writing.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == [path]
    assert (path / "theirs").read_bytes() == b"theirs"


def test_checking_a_target_tells_which_file_it_is(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    assert check_target(path, overwrite=False) == path
    assert not list(tmp_path.iterdir())


def test_a_private_file_is_for_its_owner_and_an_error_of_the_block_passes(tmp_path: Path) -> None:
    path = tmp_path / "session"
    with write_whole(path, private=True) as file:
        file.write(b"secret")
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(StoreError, match="cannot be written: "):
        write_whole(tmp_path / ("x" * 256), error=StoreError).__enter__()
    with pytest.raises(InputError, match="mine"), write_whole(path):
        raise InputError("mine")
    assert path.read_bytes() == b"secret"


# ---- small files ---------------------------------------------------------------------------------


def test_a_small_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "io.yaml"
    path.write_bytes(b"12345")
    assert read_small(path, 5) == b"12345"
    with pytest.raises(FileFormatError, match=r"io\.yaml: has more than 4 bytes, too many"):
        read_small(path, 4)
    with pytest.raises(MissingFileError, match="there is no such file") as caught:
        read_small(tmp_path / "none", 4, error=StoreError)
    assert caught.value.filename == str(tmp_path / "none")
    with pytest.raises(FileFormatError, match="is a directory, expected a contract; check"):
        read_small(tmp_path, 4, what="contract")
    with pytest.raises(FileFormatError, match="cannot be read: embedded null"):
        read_small(tmp_path / "a\0b", 4)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(FileFormatError, match=r"is a Git LFS pointer, .*`git lfs pull`"):
        read_small(path, 100)


@posix
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="is a pipe or a device, expected a file"):
        read_small(tmp_path / "pipe", 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: "),
        ("[" * 100_000, "is not JSON: "),
        ("[1]", "holds list, expected a JSON object"),
    ],
)
def test_json_that_is_not_an_object(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=rf"c\.json: {message}"):
        read_json(path)
