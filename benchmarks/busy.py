"""`python -m benchmarks.busy`: a model beside a program that wants one of the cores.

A reply is written with one thread, with one for each core, and with as many as the model finds to
be free (`n_threads=None`), each in turn: while the machine is idle, while another process computes
all the time, and where that one begins only once the model is open. Each reply is a process's own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import alora_gguf as ag
from alora_gguf import smollm2
from alora_gguf.threads import most_threads

SPIN: Final = "while True: pass"
FREE: Final = 0  # stands for n_threads=None
PROMPT: Final = "Tell me a long story about a library by the sea, and about who reads there."


@contextlib.contextmanager
def busy(n: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def write(base: Path, n_threads: int, n_tokens: int, n_late: int) -> float:
    """Seconds for each token of a reply, without those that a model needs to look around; beside so
    many processes that begin when the model is open.
    """
    options = {"n_threads": n_threads} if n_threads else {}
    with ag.Model(base, n_ctx=1024, **options) as model, model.session() as session:  # type: ignore[arg-type]
        session.append(model.tokenize(PROMPT))
        sampling = ag.Sampling(
            temperature=0.8, seed=1, logit_bias=dict.fromkeys(model.end_tokens, -1e9)
        )
        session.generate(max_tokens=32, sampling=sampling).read()
        with busy(n_late):
            session.generate(max_tokens=48, sampling=sampling).read()
            started = time.perf_counter()
            session.generate(max_tokens=n_tokens, sampling=sampling).read()
            return (time.perf_counter() - started) / n_tokens


def in_a_process(base: Path, n_threads: int, n_tokens: int, n_late: int) -> float:
    command = [sys.executable, "-m", "benchmarks.busy", str(base), "--once", str(n_threads)]
    command += ["--tokens", str(n_tokens), "--late", str(n_late)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__)
    parser.add_argument("base", nargs="?", type=Path, help="a GGUF (smollm2)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--late", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    try:
        base = chosen.base or smollm2.base_path()
        ag.BaseFile.read(base)
    except ag.AloraError as error:
        parser.error(str(error))
    if chosen.once is not None:
        print(write(base, chosen.once, chosen.tokens, chosen.late))
        return 0
    most = most_threads()
    sides = {1: "1 thread", most: f"{most} threads", FREE: "as many as are free"}
    print(f"{base.name}, {most} cores, load {os.getloadavg()[0]:.1f}; ms a token, median of rounds")
    cases = {"idle": (0, 0), "beside a busy process": (1, 0), "that begins later": (0, 1)}
    for case, (n, n_late) in cases.items():
        took: dict[int, list[float]] = {each: [] for each in sides}
        with busy(n):
            for i in range(chosen.rounds):
                order = [*sides][i % len(sides) :] + [*sides][: i % len(sides)]
                for each in order:
                    took[each].append(1000 * in_a_process(base, each, chosen.tokens, n_late))
        medians = {each: statistics.median(some) for each, some in took.items()}
        best = min(medians[each] for each in sides if each != FREE)
        about = "; ".join(
            f"{sides[each]} {medians[each]:.2f} ({min(some):.2f} .. {max(some):.2f})"
            for each, some in took.items()
        )
        print(f"{case}: {about}; {medians[FREE] / best:.2f}x of the better one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
