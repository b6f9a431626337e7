"""A file that llama.cpp has not loaded on this machine before is loaded in a process of its own
first, so that what ends that process is a sentence here. What passed is remembered.

Checks by rules (gguf/soundness.py) come before; this is for what they do not foresee.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from alora_gguf._calls import check_interrupts
from alora_gguf.errors import CancelledError, ModelError
from alora_gguf.files import data_home
from alora_gguf.options import CancelToken

from .library import LLAMA_CPP_PYTHON

TRIAL_VARIABLE: Final = "ALORA_TRIAL_LOAD"  # 0: files are loaded without a trial
_PACKAGE: Final = Path(__file__).parents[1]
_KNOWN: Final = 256  # files that are remembered:
_SMALL: Final = 16 << 20  # up to so many bytes by what is in them, larger ones by stat()
_START: Final = 60.0  # seconds that the process may take until it loads
_LONGEST: Final = 60.0  # seconds that it may take to load a small file,
_SLOWEST: Final = 5e6  # and bytes of a large one in a second: less than any disk reads
_POLL: Final = 0.05  # seconds
_TAIL: Final = 2000  # bytes of what it said last
# What a process ends by that does not survive a file. Not SIGKILL, which somebody else sends, such
# as a system that is out of memory.
_DEATHS: Final = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")
# `sys` is built in; with -c the current directory comes first, and may hold anything
_PROGRAM: Final = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from alora_gguf.engine.loading import load_here; load_here(sys.argv[1], sys.argv[2] == 'True')"
)


def try_to_load(
    files: Iterable[Path], *, vocab_only: bool = False, cancel: CancelToken | None = None
) -> None:
    """Loads a GGUF, or one in several `files`, in a process of its own if this release of ours has
    not loaded it before, and computes two tokens with it unless `vocab_only`.

    Does nothing for files of this package, nor where no such process can be had: in programs that
    are not run by a Python interpreter, or with ALORA_TRIAL_LOAD=0. Raises ModelError if llama.cpp
    ends that process, or goes on for too long, CancelledError.
    """
    files = list(files)
    interpreter = _interpreter()
    if interpreter is None or _PACKAGE in files[0].parents:
        return
    try:
        size = sum(each.stat().st_size for each in files)
        known = [_known(files, only) for only in sorted({False, vocab_only})]
    except OSError:
        return  # whoever loads it says so
    if any(each.exists() for each in known):
        return
    if _run(interpreter, files[0], size, vocab_only=vocab_only, cancel=cancel):
        _remember(known[-1])


def _interpreter() -> str | None:
    if os.environ.get(TRIAL_VARIABLE) == "0" or getattr(sys, "frozen", False):
        return None
    name = Path(sys.executable or "").name.lower()  # of a program that embeds Python: itself
    return sys.executable if name.startswith(("python", "pypy")) else None


def _known(files: Iterable[Path], vocab_only: bool) -> Path:
    """The file that stands for having loaded these, as they are, with this library."""
    version = importlib.metadata.version("alora-gguf")
    digest = hashlib.sha256(f"{version}\n{LLAMA_CPP_PYTHON}\n{vocab_only}\n".encode())
    for file in files:
        found = file.stat()
        if found.st_size <= _SMALL:
            digest.update(file.read_bytes())
        else:
            stamp = os.path.realpath(file), found.st_size, found.st_mtime_ns, found.st_ino
            digest.update(repr(stamp).encode("utf-8", "surrogateescape"))
    return data_home() / "known" / digest.hexdigest()


def _remember(known: Path) -> None:
    with contextlib.suppress(OSError):  # then it is tried again next time
        known.parent.mkdir(parents=True, exist_ok=True)
        known.touch()
        others = sorted(known.parent.iterdir(), key=lambda each: each.stat().st_mtime)
        for each in others[:-_KNOWN]:
            each.unlink(missing_ok=True)


def _run(
    interpreter: str, path: Path, size: int, *, vocab_only: bool, cancel: CancelToken | None
) -> bool:
    """Whether the file was loaded; if not, nothing is known of it. Raises as try_to_load()."""
    command = [interpreter, "-c", _PROGRAM, str(path), str(vocab_only), *sys.path]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    hidden = getattr(subprocess, "CREATE_NO_WINDOW", 0)
    with tempfile.TemporaryDirectory() as folder:
        out, words = Path(folder) / "out", Path(folder) / "words"
        with out.open("wb") as stdout, words.open("wb") as stderr:
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                    env=environment, creationflags=hidden,
                )  # fmt: skip
            except OSError:
                return False
        try:
            status = _wait(process, out, path, _LONGEST + size / _SLOWEST, cancel)
        finally:
            process.kill()  # which does nothing to one that has ended
            process.wait()
        if status == 0:
            return True
        death = _death(status)
        if death is None or not out.stat().st_size:
            return False
        said = words.read_bytes()[-_TAIL:].decode("utf-8", "replace").strip()
    last = said.splitlines()[-1] if said else "it said nothing"
    raise ModelError(
        f"{path}: llama.cpp does not survive loading this file: the process of its own that tried "
        f"ended by {death} ({last}); the file is damaged, or was not made for llama.cpp"
    )


def _death(status: int) -> str | None:
    """The name of what ended a process, if that was its own doing."""
    if sys.platform == "win32":  # NTSTATUS of an error, or abort()
        error = status & 0xFFFFFFFF
        return f"status {error:#x}" if error >> 30 == 3 or error == 3 else None
    return next((name for name in _DEATHS if -status == getattr(signal, name, 0)), None)


def _wait(
    process: subprocess.Popen[bytes],
    out: Path,
    path: Path,
    longest: float,
    cancel: CancelToken | None,
) -> int:
    """The exit status. Raises as try_to_load()."""
    since, begun = time.monotonic(), False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_POLL)
        check_interrupts()
        if cancel is not None and cancel.cancelled:
            raise CancelledError(f"{path}: loading was cancelled")
        if not begun and out.stat().st_size:
            since, begun = time.monotonic(), True
        elif time.monotonic() > since + (longest if begun else _START):
            if not begun:
                return 1
            raise ModelError(
                f"{path}: llama.cpp was still loading this file after {longest:.0f} s in a process "
                f"of its own, so it may never end; with {TRIAL_VARIABLE}=0 in the environment it "
                "is loaded without this trial"
            )
