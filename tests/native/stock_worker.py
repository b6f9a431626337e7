"""Runs batches through a libllama without our patch, in a process of its own.

python stock_worker.py OUT.npz BASE.gguf ... with LLAMA_CPP_LIB_PATH set; the harness is shared with
the tests, and nothing in it that this uses needs the adapter bank.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.backends import attach
from tests.native.harness import Base, Logits, sequence

TOKENS = [int(t) for t in np.random.default_rng(11).integers(3, 300, 40)]


def run_batches(base: Base) -> Logits:
    """Logits of a prompt, single tokens, and four sequences in one batch."""
    ctx = base.context()
    rows = [ctx.decode(sequence(TOKENS[:24]))]
    rows += [ctx.decode([(t, 24 + i, (0,))]) for i, t in enumerate(TOKENS[24:])]
    rows.append(ctx.decode([(t, i, (seq,)) for i, t in enumerate(TOKENS) for seq in range(1, 5)]))
    rows.append(ctx.decode(sequence(TOKENS, 5), lambda token: token[1] % 3 == 0))
    ctx.close()
    return np.concatenate(rows)


def main(out: str, *models: str) -> None:
    import llama_cpp.llama_cpp as llama  # not where the tests import run_batches()

    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    attach(Path(os.environ["LLAMA_CPP_LIB_PATH"]))
    results = {}
    for path in models:
        base = Base(Path(path), llama)
        results[path] = run_batches(base)
        base.close()
    np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
