"""The store on bad days: damage, full disks, processes that are killed or come all at once."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alora_gguf.errors import FileFormatError, StoreError
from alora_gguf.store.store import Store
from tests.support.stored import about, add, files_of

posix = pytest.mark.skipif(os.name != "posix", reason="needs fork, SIGKILL and POSIX's modes")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "a" / "store")


# Damage ------------------------------------------------------------------------------------------

DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "kind": lambda e: e.update(kind="other"),
    "technology": lambda e: e.update(technology=7),
    "sources": lambda e: e.update(sources=["a", 1]),
    "folder": lambda e: e.update(folder="../../outside"),
    "name": lambda e: e.update(name="another"),
    "added": lambda e: e.pop("added"),
    "files": lambda e: e["files"][0].update(name="../../../outside"),
}


@pytest.mark.parametrize("field", DAMAGE)
def test_entries_that_were_tampered_with(store: Store, field: str, tmp_path: Path) -> None:
    """Above all they cannot make it read or remove what is not its own."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    add(store, "sure")
    sound = add(store, "other")
    path = store.home / "entries" / "sure.json"
    entry = json.loads(path.read_text())
    DAMAGE[field](entry)
    path.write_text(json.dumps(entry))
    with pytest.raises(FileFormatError) as caught:
        store.get("sure")
    assert str(caught.value) == (
        f"{path}: has no usable '{field}', expected an entry of the store; remove it with "
        "`alora-gguf rm sure` and pull again"
    )
    contents = store.contents()
    assert contents.entries == (sound,)
    assert [str(problem) for problem in contents.problems] == [str(caught.value)]
    with pytest.raises(FileFormatError, match="no usable"):
        add(store, "sure", b"new")
    assert store.remove("sure") is None
    assert (outside / "precious").exists()
    assert len(files_of(store)) == 2


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '"x"', "[" * 100_000, "\xff", '{"files": []}', "{}" + " " * (1 << 20)],
)
def test_files_that_are_no_entries(store: Store, text: str) -> None:
    add(store, "sure")
    (store.home / "entries" / "sure.json").write_text(text, encoding="latin-1")
    with pytest.raises(FileFormatError, match=r"sure\.json: .*expected an entry of the store"):
        store.get("sure")
    assert add(store, "sure", b"new", replace=True).name == "sure"
    assert store.resolve("sure").read_bytes() == b"new"


def test_an_entry_without_files(store: Store) -> None:
    add(store, "sure")
    path = store.home / "entries" / "sure.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": []}))
    with pytest.raises(FileFormatError, match=r"sure\.json: has no files, expected an entry of"):
        store.get("sure")


def test_an_entry_of_a_later_version_is_left_alone(store: Store) -> None:
    entry = add(store, "sure")
    path = store.home / "entries" / "sure.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2, "kind": "new"}))
    with pytest.raises(FileFormatError, match="is of format 2, expected 1: a later alora-gguf"):
        store.get("sure")
    add(store, "other")  # which removes what nobody names
    assert (store.home / "files" / entry.folder / "sure.gguf").exists()


# The disk ----------------------------------------------------------------------------------------


def test_a_disk_that_is_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = add(store, "sure")
    real = os.fsync

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for name in ("sure", "other"):
        with pytest.raises(StoreError) as caught:
            add(store, name, b"new", replace=True)
        assert str(caught.value) == (
            f"the store {store.home} cannot be written: No space left on device; make room, or "
            "set ALORA_GGUF_HOME to another directory"
        )
    monkeypatch.setattr(os, "fsync", real)
    assert store.contents().entries == (before,)
    assert store.resolve("sure").read_bytes() == b"weights"
    assert len(files_of(store)) == 2


@posix
def test_a_directory_that_may_not_be_used(tmp_path: Path) -> None:
    code = (
        "import os, sys; from alora_gguf.store.store import Store; import alora_gguf.store.entry\n"
        "from alora_gguf.errors import StoreError\n"
        "os.chdir(sys.argv[1])\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"  # root may do anything
        "def add():\n"
        "    with Store('written').adding('x'): pass\n"
        "for use in (add, Store('shut').contents, lambda: Store('shut').get('x')):\n"
        "    try: use()\n"
        "    except StoreError as error: print(error)\n"
    )
    (tmp_path / "written").mkdir(mode=0o555)
    (tmp_path / "shut" / "entries").mkdir(parents=True)
    (tmp_path / "shut").chmod(0o000)
    command = [sys.executable, "-c", code, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    (tmp_path / "shut").chmod(0o755)
    way_out = (
        "Permission denied; check that it is a directory you may use, or set ALORA_GGUF_HOME to "
        "another directory"
    )
    assert run.stdout.splitlines() == [
        f"the store {tmp_path}/{name} cannot be {done}: {way_out}"
        for name, done in (("written", "written"), ("shut", "read"), ("shut", "read"))
    ], run.stderr


# Who else writes ---------------------------------------------------------------------------------


def test_an_interrupt_after_the_entry_appeared_leaves_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with store.adding("sure") as addition:
        (addition.folder / "sure.gguf").write_bytes(b"weights")
        addition.files()
        monkeypatch.setattr("alora_gguf.files.sync_folder", interrupt)  # the last step of all
        with pytest.raises(KeyboardInterrupt):
            addition.commit(about())
    monkeypatch.undo()
    assert store.resolve("sure").read_bytes() == b"weights"


@posix
def test_everything_is_on_the_disk_before_the_entry_appears(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    before: list[int] = []
    fsync, replace = os.fsync, Path.replace

    def note(number: int) -> None:
        synced.append(os.fstat(number).st_ino)
        fsync(number)

    def appear(part: Path, path: Path) -> Path:
        before.extend(synced)
        return replace(part, path)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "replace", appear)
    file = store.path(add(store, "sure"))
    entry = store.home / "entries" / "sure.json"
    assert before == [path.stat().st_ino for path in (file, file.parent, entry)]
    assert synced[len(before) :] == [entry.parent.stat().st_ino]


@pytest.mark.slow
def test_whoever_reads_meanwhile_reads_a_whole_entry(store: Store) -> None:
    add(store, "sure")
    wrong: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                assert store.get("sure").name == "sure"
        except BaseException as error:
            wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(100):
        add(store, "sure", b"%d" % i, replace=True)
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_many_at_once(store: Store) -> None:
    """Threads add, replace, remove and read: what is read is whole, and nothing is left over."""
    rng = random.Random(1)
    wrong: list[object] = []
    orders = [[rng.random() for _ in range(25)] for _ in range(6)]

    def act(index: int, chance: float) -> None:
        if chance < 0.6:
            add(store, "sure", bytes([index]) * 1000, replace=True)
        elif chance < 0.7:
            store.remove("sure")
        else:
            entry = store.get("sure")
            if len(entry.files) != 1 or entry.nbytes != 1000:
                wrong.append(entry)

    def try_to(index: int, chance: float) -> None:
        try:
            act(index, chance)
        except BaseException as error:
            if "nothing named 'sure' is in the store" not in str(error):
                wrong.append(error)

    def work(index: int) -> None:
        for chance in orders[index]:
            try_to(index, chance)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    add(store, "sure", b"last", replace=True)
    assert store.resolve("sure").read_bytes() == b"last"
    assert len(files_of(store)) == 2


# Reads orders, a line of JSON each: how many processes add the same name at once, and after how
# many seconds to kill them. Answers with their exit codes.
FORKER = """
import json, os, signal, sys, time
from alora_gguf.store.store import Store
from alora_gguf.store.entry import Description
store = Store(sys.argv[1])
about = Description("base", None, "llama", None, None, ())

def add(number):
    with store.adding("sure", replace=True) as addition:
        for part in (1, 2):
            path = addition.folder / f"sure-{part}.gguf"
            path.write_bytes(bytes([number]) * 300000)
        addition.commit(about)

add(99)
for line in sys.stdin:
    count, delay = json.loads(line)
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            code = 5
            try:
                add(number)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    if delay is not None:
        time.sleep(delay)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]), flush=True)
"""


@posix
def test_killed_at_any_moment(store: Store) -> None:
    rng = random.Random(2)
    command = [sys.executable, "-c", FORKER, str(store.home)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        killed = 0
        for _ in range(30):
            print(json.dumps([2, rng.random() * 0.03]), file=process.stdin, flush=True)
            codes = json.loads(process.stdout.readline())
            assert set(codes) <= {0, -signal.SIGKILL}
            killed += -signal.SIGKILL in codes
            first = store.resolve("sure")  # there is always one, and it is whole
            values = {p.read_bytes() for p in first.parent.iterdir()}
            assert len(values) == 1
            assert len(values.pop()) == 300_000
        assert killed
        print(json.dumps([3, None]), file=process.stdin, flush=True)
        assert json.loads(process.stdout.readline()) == [0, 0, 0]
        process.stdin.close()
    add(store, "sure", b"last", replace=True)
    assert len(files_of(store)) == 2
    assert not list(store.home.rglob("*.part"))


@posix
def test_what_is_being_added_is_not_taken_for_abandoned(store: Store) -> None:
    with store.adding("slow") as slow:
        (slow.folder / "slow.gguf").write_bytes(b"slow")
        add(store, "quick")
        store.remove("quick")
        assert slow.commit(about()).name == "slow"
    assert store.resolve("slow").read_bytes() == b"slow"
