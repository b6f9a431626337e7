"""With no adapter active, results are bit for bit those of the library without our patch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.stock import stock_library_dir
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_models import tiny_model

from .harness import Base, Context, Logits, write_adapter
from .stock_worker import run_batches


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Logits]:
    """What the unpatched library computes, by family."""
    out = tmp_path_factory.mktemp("stock") / "logits.npz"
    models = {family: str(tiny_model(family).gguf) for family in FAMILIES}
    run = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("stock_worker.py")),
            str(out),
            *models.values(),
        ],
        env={**os.environ, "LLAMA_CPP_LIB_PATH": str(stock_library_dir())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    with np.load(out) as results:
        return {family: results[path] for family, path in models.items()}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_idle_is_bit_equal_to_the_unpatched_library(
    family: str, stock: dict[str, Logits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    adapters = [
        write_adapter(tmp_path / f"{rank}.gguf", model, rank=rank, seed=rank) for rank in (8, 20)
    ]
    base = Base(model.gguf)
    assert np.array_equal(run_batches(base), stock[family])  # an empty bank

    plain = base.context

    def loaded() -> Context:
        """A context whose bank is full, whose sequences all had an adapter, and none has now."""
        ctx = plain()
        for seq, path in enumerate(adapters):
            ctx.activate(seq, 0, ctx.add(path))
        ctx.deactivate()
        return ctx

    monkeypatch.setattr(base, "context", loaded)
    assert np.array_equal(run_batches(base), stock[family])
    base.close()
