"""The row about nobody asking: a loaded bank with no adapter active, against the stock library.

Both sides are the same worker process with another library, so nothing else can differ.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from .bench import Bench
from .measure import Result, Side, alternate
from .models import TARGETS

_ROOT = Path(__file__).resolve().parents[1]
_CASES = {"decode, 1 token": 1, "prefill, 512 tokens": 512}
_WITHIN_NOISE = 1.03


class Worker:
    """A process with one library, the base and perhaps a bank, that times batches on request."""

    def __init__(self, bench: Bench, stock: Path | None, adapters: list[Path]) -> None:
        setup = {
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
    stock_dir = bench.settings.stock
    if stock_dir is None:
        from tests.stock import stock_library_dir

        stock_dir = stock_library_dir()
    targets = list(TARGETS)[-1]
    results = []
    with ExitStack() as stack:
        ours = stack.enter_context(Worker(bench, None, bench.adapters(targets)))
        stock = stack.enter_context(Worker(bench, stock_dir, []))
        for case, n in _CASES.items():
            results += _idle_case(bench, case, n, ours, stock)
    return results


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
