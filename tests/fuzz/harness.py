"""Uses mutants of files in child processes; finds what kills or stops a process, or raises what is
not ours. Mutants are numbered, and depend on nothing but the seed and their number.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

MUTANT_SECONDS = 20.0  # longer than any takes on a busy machine
MEMORY = 6 << 30  # bytes of address space of a child
_GENERATION = 3000  # mutants of one child


class Kind(Protocol):
    """A kind of file, made from sound ones that stand in `folder` or are given by path."""

    def __init__(self, folder: Path, given: Sequence[Path]) -> None: ...

    def make(self, rng: random.Random, path: Path) -> str:
        """Writes a mutant to `path`; what is wrong with it, in words."""
        ...

    def use(self, path: Path) -> None:
        """Does with it what programs do. Raises AloraError if it is refused."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What became of mutant `number`: "used", the code of an error of ours, or a fault."""

    number: int
    what: str
    kind: str
    text: str

    @property
    def bad(self) -> bool:
        return self.kind in ("killed", "hang", "traceback")


def run(
    kind: str,
    seed: int,
    numbers: Iterator[int],
    *,
    given: Sequence[Path] = (),
    until: float | None = None,
) -> Iterator[Outcome]:
    """The outcomes of mutants of a kind of tests.fuzz.kinds, in as few processes as they leave
    alive.
    """
    child: _Child | None = None
    for n, number in enumerate(numbers, 1):
        if until is not None and time.monotonic() > until:
            break
        child = child or _Child(kind, seed, given)
        outcome = child.ask(number)
        yield outcome
        if outcome.kind in ("killed", "hang") or n % _GENERATION == 0:
            child.end()
            child = None
    if child is not None:
        child.end()


class _Child:
    def __init__(self, kind: str, seed: int, given: Sequence[Path]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mutants-")
        self._errors = (Path(self._folder.name) / "stderr").open("w+b")
        command = [sys.executable, "-m", "tests.fuzz", "--child", kind, str(seed)]
        self._process = subprocess.Popen(
            [*command, self._folder.name, *map(str, given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,  # or select() would not see what was read ahead
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "GGML_NO_BACKTRACE": "1", "ALORA_TRIAL_LOAD": "0"},
        )

    def ask(self, number: int) -> Outcome:
        process = self._process
        assert process.stdin is not None
        process.stdin.write(b"%d\n" % number)
        process.stdin.flush()
        lines = [self._line(60.0), b""]  # what is wrong with it, then what came of it
        if lines[0]:
            lines[1] = self._line(MUTANT_SECONDS)
        what = lines[0].decode().strip()
        if lines[1]:
            kind, text = json.loads(lines[1])
            return Outcome(number, what, kind, text)
        if process.poll() is None and not self._ended():
            return Outcome(number, what, "hang", f"after {MUTANT_SECONDS:g} s")
        self._errors.seek(0)
        told = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        said = [line for line in told if "ASSERT" in line or "rror" in line or "what()" in line]
        text = f"status {process.wait()}: {(said or told or [''])[-1][:200]}"
        return Outcome(number, what, "killed", text)

    def _ended(self) -> bool:
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _line(self, seconds: float) -> bytes:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline() if ready else b""

    def end(self) -> None:
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        self._folder.cleanup()


def serve(kind: type[Kind], seed: int, folder: Path, given: Sequence[Path]) -> None:
    """The child: reads numbers, writes what is wrong with each mutant and then what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what C prints is no answer
    (folder / "sound").mkdir()
    files, path = kind(folder / "sound", given), folder / "mutant"
    for line in sys.stdin:
        what = files.make(random.Random(repr((seed, int(line)))), path)
        print(what.encode("unicode_escape").decode(), file=out, flush=True)
        print(json.dumps(_outcome(files, path)), file=out, flush=True)


def keep(kind: type[Kind], seed: int, number: int, path: Path, given: Sequence[Path]) -> None:
    """Writes a mutant anew."""
    with tempfile.TemporaryDirectory() as folder:
        kind(Path(folder), given).make(random.Random(repr((seed, number))), path)


def _outcome(files: Any, path: Path) -> tuple[str, str]:
    from alora_gguf.errors import AloraError

    try:
        with contextlib.redirect_stdout(sys.stderr):
            files.use(path)
    except AloraError as error:
        return error.code, str(error)
    except BaseException as error:
        import traceback

        return "traceback", f"{error!r} {traceback.format_exc()[-500:]}"
    return "used", ""
