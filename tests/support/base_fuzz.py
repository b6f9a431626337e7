"""Opens mutants of bases in child processes; finds what kills or stops a process, or raises what is
not ours.

    nice -n 10 .venv/bin/python -m tests.support.base_fuzz --seconds 1800 --keep FOLDER [BASE...]

goes on for half an hour from the tests' own tiny bases and those named, e.g. the families' in
build/test-models/*/*/base.gguf, and keeps the mutants that were not taken well. `--seed` and
`--first` go on where another run ended.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import base_mutants

MUTANT_SECONDS = 20.0  # longer than any takes on a busy machine
MEMORY = 6 << 30  # bytes of address space of a child
_TEXTS = ("Hello there, the end.", "<|im_start|>a\n\n  b\t\u0000c <s>", "😊 naïve 漢字 \u200b", "")


@dataclass(frozen=True)
class Outcome:
    """What became of mutant `number`: "opened", the code of an error of ours, or a fault."""

    number: int
    base: str
    what: str
    kind: str
    text: str

    @property
    def bad(self) -> bool:
        return self.kind in ("killed", "hang", "traceback")


def run(
    bases: Sequence[Path], seed: int, numbers: Iterator[int], *, until: float | None = None
) -> Iterator[Outcome]:
    """The outcomes of mutants of `bases`, in turn, in as few processes as they leave alive."""
    child: _Child | None = None
    for number in numbers:
        if until is not None and time.monotonic() > until:
            break
        child = child or _Child(bases, seed)
        outcome = child.ask(number)
        yield outcome
        if outcome.kind in ("killed", "hang"):
            child.end()
            child = None
    if child is not None:
        child.end()


class _Child:
    def __init__(self, bases: Sequence[Path], seed: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mutants-")
        self._errors = (Path(self._folder.name) / "stderr").open("w+b")
        command = [sys.executable, "-m", "tests.support.base_fuzz", "--child", str(seed)]
        self._process = subprocess.Popen(
            [*command, self._folder.name, *map(str, bases)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,  # or select() would not see what was read ahead
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "GGML_NO_BACKTRACE": "1", "ALORA_TRIAL_LOAD": "0"},
        )
        self._bases = bases

    def ask(self, number: int) -> Outcome:
        process = self._process
        assert process.stdin is not None
        process.stdin.write(b"%d\n" % number)
        process.stdin.flush()
        lines = [self._line(60.0), b""]  # what is wrong with it, then what came of it
        if lines[0]:
            lines[1] = self._line(MUTANT_SECONDS)
        name = self._bases[number % len(self._bases)].name
        what = lines[0].decode().strip()
        if lines[1]:
            kind, text = json.loads(lines[1])
            return Outcome(number, name, what, kind, text)
        if process.poll() is None and not self._ended():
            return Outcome(number, name, what, "hang", f"after {MUTANT_SECONDS:g} s")
        self._errors.seek(0)
        told = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        said = [line for line in told if "ASSERT" in line or "rror" in line or "what()" in line]
        text = f"status {process.wait()}: {(said or told or [''])[-1][:200]}"
        return Outcome(number, name, what, "killed", text)

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


def _serve(seed: int, folder: Path, bases: Sequence[Path]) -> None:
    """The child: reads numbers, writes what is wrong with each mutant and then what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parts = [base_mutants.Parts.read(base) for base in bases]
    path = folder / "mutant.gguf"
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what C prints is no answer
    for line in sys.stdin:
        number = int(line)
        made, what = base_mutants.mutant(parts[number % len(parts)], (seed, number))
        path.write_bytes(made.encode())
        print(what.encode("unicode_escape").decode(), file=out, flush=True)
        print(json.dumps(_open(path)), file=out, flush=True)


def _open(path: Path) -> tuple[str, str]:
    import alora_gguf as ag

    options = ag.ContextOptions(n_ctx=96, n_batch=48, n_ubatch=32, n_threads=1, n_seq_max=3)
    try:
        with ag.Model(path, options=options) as model:
            tokens = [5, 6, 7, 8] * 9
            try:
                for text in _TEXTS:
                    model.tokenize(text)
            except ag.AloraError as error:
                return error.code, str(error)
            top = model.n_vocab
            with model.session() as session:
                session.append([token % top for token in tokens])
                fork = session.fork()
                session.append([1 % top])
                fork.append([top - 1])
            for token in model.end_tokens:
                model.detokenize([token])
            model.detokenize(list(range(min(top, 400))))
    except ag.AloraError as error:
        return error.code, str(error)
    except BaseException as error:
        import traceback

        return "traceback", f"{error!r} {traceback.format_exc()[-500:]}"
    return "opened", ""


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        _serve(int(sys.argv[2]), Path(sys.argv[3]), [Path(each) for each in sys.argv[4:]])
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("bases", nargs="*", type=Path)
    given = parser.parse_args()
    counts: Counter[str] = Counter()
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bases = [*base_mutants.write_bases(Path(folder)), *given.bases]
        numbers = iter(range(given.first, 10**9))
        for outcome in run(bases, given.seed, numbers, until=time.monotonic() + given.seconds):
            counts[outcome.kind] += 1
            if outcome.bad:
                print(outcome.number, outcome.base, outcome.kind, outcome.what, "|", outcome.text)
                sys.stdout.flush()
                if given.keep:
                    base = bases[outcome.number % len(bases)]
                    seed = (given.seed, outcome.number)
                    made, _ = base_mutants.mutant(base_mutants.Parts.read(base), seed)
                    (given.keep / f"{outcome.number}.gguf").write_bytes(made.encode())
    print(dict(counts))


if __name__ == "__main__":
    main()
