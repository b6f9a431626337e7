"""Real processes that are killed while they convert, or that convert to one name at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alora_gguf.convert import convert_adapter

from alora_gguf.gguf.header import read_header
from tests.support.peft_files import Case

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

# Imports once and forks for every conversion, so that one costs milliseconds. Reads orders, a line
# of JSON each: whether to overwrite, the names to convert under, all at once, and after how many
# seconds to kill. Answers with the exit codes and how long it took.
FORKER = """
import json, os, signal, sys, time
from alora_gguf.convert import convert_adapter
from alora_gguf.errors import InputError
source, base, out = sys.argv[1:]

def convert(name, overwrite, path=out):
    convert_adapter(source, base, path, outtype="f32", name=name, overwrite=overwrite)

def child(name, overwrite, gate):
    os.read(gate, 1)
    try:
        convert(name, overwrite)
        return 0
    except InputError as error:
        return 3 if "exists already" in str(error) else 4

def fork(name, overwrite, gate, opener):
    pid = os.fork()
    if pid == 0:
        os.close(opener)
        try:
            code = child(name, overwrite, gate)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            code = 5
        os._exit(code)
    return pid

convert("warm", True, out + ".warm")
for line in sys.stdin:
    order = json.loads(line)
    gate, opener = os.pipe()
    pids = [fork(name, order["overwrite"], gate, opener) for name in order["names"]]
    start = time.perf_counter()
    os.close(gate)
    os.close(opener)
    if order["kill_after"] is not None:
        time.sleep(order["kill_after"])
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps([codes, time.perf_counter() - start]), flush=True)
"""


class Forker:
    """Gives a running FORKER its orders."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(
        self, *names: str, overwrite: bool, kill_after: float | None = None
    ) -> tuple[list[int], float]:
        """Converts under each name at once; their exit codes, and the seconds it took."""
        order = {"names": names, "overwrite": overwrite, "kill_after": kill_after}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        codes, seconds = json.loads(self.process.stdout.readline())
        return codes, seconds


@contextmanager
def forking(case: Case) -> Iterator[Forker]:
    command = [sys.executable, "-c", FORKER, *map(str, (case.source, case.base, case.out))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Forker(process)
        process.stdin.close()  # type: ignore[union-attr] # ends it
    assert process.returncode == 0
    case.out.with_name("out.gguf.warm").unlink()


def expected(case: Case, *names: str) -> list[bytes]:
    """What whole files have in them, by the names they were converted under."""
    case.write()
    found = []
    for name in names:
        path = case.folder / "expected.gguf"
        convert_adapter(case.source, case.base, path, outtype="f32", name=name)
        found.append(path.read_bytes())
        path.unlink()
    return found


def parts(case: Case) -> list[Path]:
    return list(case.folder.glob(".*"))


@pytest.mark.parametrize("old", [None, b"old"], ids=["new", "replacing"])
def test_killed_at_any_moment(case: Case, old: bytes | None) -> None:
    rng = random.Random(3)
    (whole,) = expected(case, "name")
    with forking(case) as convert:
        seconds = sorted(convert("name", overwrite=True)[1] for _ in range(5))[2]
        killed = []
        for i in range(40):
            case.out.unlink(missing_ok=True)
            if old is not None:
                case.out.write_bytes(old)
            delay = (i + rng.random()) / 40 * 1.2 * seconds
            codes, _ = convert("name", overwrite=old is not None, kill_after=delay)
            assert codes in ([0], [-signal.SIGKILL])
            killed.append(codes != [0])
            found = case.out.read_bytes() if case.out.exists() else None
            assert found in (whole, old)
            assert found == whole or killed[-1]
            assert len(parts(case)) <= 1  # not two: each removes what the one before it left
        assert any(killed)
        assert convert("name", overwrite=True)[0] == [0]
    assert case.out.read_bytes() == whole
    assert not parts(case)


# Reads a path, a step and a mode, a line of JSON each; writes there in a fork that kills itself
# before or after that step, and answers with its exit code.
AT_A_STEP = """
import json, os, signal, sys
from pathlib import Path
from alora_gguf.gguf import writer
from alora_gguf.gguf.parser import ValueType

step = "never"

def dying(name, real=lambda *_: None):
    def call(*arguments):
        if step == name:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments)
        if step == "after " + name:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

os.fsync = dying("fsync", os.fsync)
Path.hardlink_to = dying("link", Path.hardlink_to)
Path.replace = dying("rename", Path.replace)
data = [dying(f"tensor {i}", lambda i=i: bytes([i]) * 20000) for i in range(3)]
tensors = [writer.OutTensor(f"t{i}", (20000,), 24, make) for i, make in enumerate(data)]
metadata = [("name", ValueType.STRING, "abc")]

for line in sys.stdin:
    path, step, mode = json.loads(line)
    pid = os.fork()
    if pid == 0:
        overwrite = mode == "overwrite"
        progress = dying("progress")
        writer.write_gguf(Path(path), metadata, tensors, overwrite=overwrite, progress=progress)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
STEPS = ["tensor 0", "tensor 1", "after tensor 2", "progress", "fsync", "after fsync"]


@pytest.fixture(scope="module")
def writing() -> Iterator[Callable[[Path, str, str], int]]:
    """Writes to a path until a step, in a mode; its exit code."""
    command = [sys.executable, "-c", AT_A_STEP]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        orders, answers = process.stdin, process.stdout
        assert orders
        assert answers

        def write(path: Path, step: str, mode: str) -> int:
            print(json.dumps([str(path), step, mode]), file=orders, flush=True)
            return int(answers.readline())

        yield write
        orders.close()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("step", "mode", "whole"),
    [(step, "overwrite", False) for step in [*STEPS, "rename"]]
    + [("after rename", "overwrite", True), ("link", "new", False), ("after link", "new", True)],
)
def test_killed_at_every_step(
    tmp_path: Path, writing: Callable[[Path, str, str], int], step: str, mode: str, whole: bool
) -> None:
    path = tmp_path / "out.gguf"
    if mode == "overwrite":
        path.write_bytes(b"old")
    assert writing(path, step, mode) == -signal.SIGKILL
    if whole:
        assert bytes(read_header(path).tensor_data("t2")) == b"\2" * 20000
        assert read_header(path).value("name") == "abc"
    else:
        assert (path.read_bytes() if path.exists() else b"old") == b"old"
    # once renamed, it has no other name; in every other case something is left
    assert len(list(tmp_path.glob(".*"))) == (0 if step == "after rename" else 1)
    assert writing(path, "never", "overwrite") == 0
    assert list(tmp_path.iterdir()) == [path]
    assert bytes(read_header(path).tensor_data("t2")) == b"\2" * 20000


def test_of_several_processes_one_wins(case: Case) -> None:
    names = [f"name{i}" for i in range(5)]
    whole = expected(case, *names)
    with forking(case) as convert:
        for _ in range(6):
            codes, _ = convert(*names, overwrite=False)
            assert sorted(codes) == [0, 3, 3, 3, 3]  # 3: it exists already
            assert case.out.read_bytes() == whole[codes.index(0)]
            assert not parts(case)
            case.out.unlink()


def test_several_processes_may_replace_each_other(case: Case) -> None:
    names = [f"name{i}" for i in range(5)]
    whole = expected(case, *names)
    with forking(case) as convert:
        for _ in range(6):
            codes, _ = convert(*names, overwrite=True)
            assert codes == [0] * 5
            assert case.out.read_bytes() in whole
            assert not parts(case)


def test_killed_ones_do_not_disturb_the_living(case: Case) -> None:
    """A part is removed while others of the same name are being written: none of those is lost."""
    (whole,) = expected(case, "name")
    rng = random.Random(4)
    with forking(case) as convert:
        _, seconds = convert("name", overwrite=True)
        for _ in range(6):
            codes, _ = convert(
                "name", "name", "name", overwrite=True, kill_after=rng.random() * 2 * seconds
            )
            assert set(codes) <= {0, -signal.SIGKILL}
            codes, _ = convert("name", "name", overwrite=True)
            assert codes == [0, 0]
            assert case.out.read_bytes() == whole
            assert not parts(case)
