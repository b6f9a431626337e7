"""One side of the idle row: `python -m benchmarks.worker SETUP`, asked in lines of JSON."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from .measure import timed
from .runtime import Context, ContextSize, Library, Weights

_CACHED = 64


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

    size = ContextSize(_CACHED + 512, n_threads=setup["n_threads"])
    context, counting = Context(weights, size), Context(weights, size, count)
    tokens = np.random.default_rng(0).integers(0, setup["n_vocab"], _CACHED + 512).tolist()
    for one in (context, counting):
        if adapters:
            one.add(adapters)
        one.prefill(tokens[:_CACHED])

    for line in sys.stdin:
        what, n = json.loads(line)
        rows = [(t, _CACHED + i, 0, i == n - 1) for i, t in enumerate(tokens[-n:])]
        if what == "nodes":
            counted[0] = 0
            counting.decode(rows)
            counting.truncate(0, _CACHED)
            answer: Any = counted[0]
        else:
            answer = _time(context, rows)
        print(json.dumps(answer), flush=True)


def _time(context: Context, rows: list[tuple[int, int, int, bool]]) -> tuple[float, str]:
    """Seconds for a batch, of several where it is short, and a digest of its logits."""
    seconds = []
    n = 8 if len(rows) == 1 else 1
    for _ in range(n):
        seconds.append(timed(lambda: context.decode(rows)))
        digest = context.digest()
        context.truncate(0, _CACHED)
    return sum(seconds) / n, digest


if __name__ == "__main__":
    main()
