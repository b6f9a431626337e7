"""The rows about nobody asking, against the stock library: a loaded bank with no adapter active,
whose bits are stock's with upstream's attention; and what the base gains with ours.

Both sides are the same worker process with another library, so nothing else can differ.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from .bench import Bench
from .measure import Result, Side, alternate
from .models import TARGETS

_ROOT = Path(__file__).resolve().parents[1]
_CASES = {"decode, 1 token": 1, "prefill, 512 tokens": 512}
_WITHIN_NOISE = 1.03
_NOT_SLOWER = 0.97
# of the base alone, by the conversation's length
_GOALS_TOKEN = {2048: 1.25, 8192: 2.0, 32768: 3.0}
_GOALS_READ = {2048: 1.1, 8192: 1.3, 32768: 2.0}


class Worker:
    """A process with one library, the base and perhaps a bank, that times batches on request."""

    def __init__(
        self,
        bench: Bench,
        stock: Path | None,
        adapters: Sequence[Path] = (),
        *,
        attention: str = "auto",
        n_cached: int = 64,
    ) -> None:
        setup = {
            "attention": attention,
            "n_cached": n_cached,
            "stock": None if stock is None else str(stock),
            "base": str(bench.path),
            "adapters": [str(p) for p in adapters],
            "n_threads": bench.settings.n_threads,
            "n_vocab": bench.shape.vocab,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(setup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env=dict(os.environ),
        )

    def ask(self, what: str, n_tokens: int) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, n_tokens]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a benchmark worker ended early; its message is above")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def idle(bench: Bench) -> list[Result]:
    """Eight adapters loaded, none active, against a stock llama.cpp that has none."""
    adapters, results = bench.adapters(list(TARGETS)[-1]), []
    with ExitStack() as stack:
        ours = stack.enter_context(Worker(bench, None, adapters, attention="upstream"))
        stock = stack.enter_context(Worker(bench, _stock(bench)))
        for case, n in _CASES.items():
            results += _idle_case(bench, case, n, ours, stock)
    return results


def base(bench: Bench) -> list[Result]:
    """The base alone: a token after the cached conversation, and reading as long a one."""
    n, results = bench.settings.n_cached, []
    cases = (
        ("time", 1, f"1 token after {n}", 30, _GOALS_TOKEN),
        ("read", n, f"reading {n} tokens", 3, _GOALS_READ),
    )
    with ExitStack() as stack:
        ours = stack.enter_context(Worker(bench, None, n_cached=n))
        stock = stack.enter_context(Worker(bench, _stock(bench), n_cached=n))
        for what, size, case, rounds, goals in cases:
            samples = alternate(
                {
                    "ours": partial(_asked, ours, what, size),
                    "stock": partial(_asked, stock, what, size),
                },
                bench.settings.rounds(rounds),
            )
            results.append(
                Result("base alone", case, Side("ours", samples["ours"]),
                       Side("stock library", samples["stock"]), kind="speedup",
                       floor=_NOT_SLOWER, goal=f"≥ {_at(goals, n)}x")
            )  # fmt: skip
    return results


def _asked(worker: Worker, what: str, n: int) -> float:
    seconds, _ = worker.ask(what, n)
    return float(seconds)


def _at(goals: dict[int, float], n: int) -> float:
    return max((goal for at, goal in goals.items() if n >= at), default=1.0)


def _stock(bench: Bench) -> Path:
    """The folder of the unpatched library, which is built if none was named."""
    if bench.settings.stock is None:
        from tests.stock import stock_library_dir

        return Path(stock_library_dir())
    return bench.settings.stock


def _idle_case(bench: Bench, case: str, n: int, ours: Worker, stock: Worker) -> list[Result]:
    seen: set[str] = set()

    def run(worker: Worker) -> Callable[[], float]:
        def sample() -> float:
            seconds, digest = worker.ask("time", n)
            seen.add(digest)
            return float(seconds)

        return sample

    samples = alternate(
        {"ours": run(ours), "stock": run(stock)}, bench.settings.rounds(30 if n == 1 else 7)
    )
    nodes, stock_nodes = ours.ask("nodes", n), stock.ask("nodes", n)
    return [
        Result("idle, 8 adapters loaded", case, Side("ours", samples["ours"]),
               Side("stock library", samples["stock"]), floor=_WITHIN_NOISE, goal="1.00x"),
        Result("idle, nodes of the graph", case, Side("ours", [nodes], "nodes"),
               Side("stock library", [stock_nodes], "nodes"), floor=1, goal="the same"),
        Result("idle, different logits", f"{case}, all runs of both sides",
               Side("", [len(seen) - 1], ""), None, kind="value", floor=0, goal="bit-equal"),
    ]  # fmt: skip
