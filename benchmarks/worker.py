"""A side against the stock library: `python -m benchmarks.worker SETUP`, asked in lines of JSON."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from . import growing
from .measure import timed
from .runtime import Context, ContextSize, Library, Weights


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the terminal's Ctrl-C ends both processes
    setup: dict[str, Any] = json.loads(sys.argv[1])
    library = Library(Path(setup["stock"]) if setup["stock"] else None)
    weights = Weights(library, Path(setup["base"]))
    adapters = [Path(p) for p in setup["adapters"]]
    counted = [0]

    def count(_tensor: int, ask: bool, _user_data: object) -> bool:
        counted[0] += 1
        return not ask  # no node is wanted by itself, so each is asked about once

    n_cached: int = setup["n_cached"]
    size = ContextSize(n_cached + 512, n_threads=setup["n_threads"])
    context, counting = Context(weights, size), Context(weights, size, count)
    tokens = np.random.default_rng(0).integers(0, setup["n_vocab"], n_cached + 512).tolist()
    for one in (context, counting):
        if adapters:
            one.add(adapters)
        if library.alora is not None:
            one.attend(setup["attention"])
    cached = growing.conversation(context, tokens, n_cached)
    for one in (context, counting):
        one.restore(cached)

    for line in sys.stdin:
        what, n = json.loads(line)
        rows = [(t, n_cached + i, 0, i == n - 1) for i, t in enumerate(tokens[-n:])]
        if what == "nodes":
            counted[0] = 0
            counting.decode(rows)
            counting.truncate(0, n_cached)
            answer: Any = counted[0]
        elif what == "read":
            context.clear()
            answer = timed(lambda: context.prefill(tokens[:n])), context.digest()  # noqa: B023
            context.clear()
            context.restore(cached)
        else:
            answer = _time(context, rows, n_cached)
        print(json.dumps(answer), flush=True)


def _time(
    context: Context, rows: list[tuple[int, int, int, bool]], n_cached: int
) -> tuple[float, str]:
    """Seconds for a batch, of several where it is short, and a digest of its logits."""
    seconds = []
    n = 8 if len(rows) == 1 else 1
    for _ in range(n):
        seconds.append(timed(lambda: context.decode(rows)))
        digest = context.digest()
        context.truncate(0, n_cached)
    return sum(seconds) / n, digest


if __name__ == "__main__":
    main()
