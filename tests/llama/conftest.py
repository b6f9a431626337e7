"""Fixtures of the drop-in's tests: the models, and what stock makes of the cases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alora_gguf import demo
from tests.stock import stock_library_dir
from tests.support import tiny_base
from tests.support.tiny_base import write_hybrid, write_recurrent, write_swa


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("drop-in")
    return {
        "demo": demo.base_path(),
        "tiny": tiny_base.write_base(folder / "tiny.gguf"),
        "hybrid": write_hybrid(folder / "hybrid.gguf"),
        "recurrent": write_recurrent(folder / "recurrent.gguf"),
        "swa": write_swa(folder / "swa.gguf"),
    }


@pytest.fixture(scope="session")
def stock(paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of all cases with the stock class on the unpatched library."""
    out = tmp_path_factory.mktemp("stock") / "results.json"
    worker = Path(__file__).with_name("stock_worker.py")
    command = [sys.executable, str(worker), str(out), *(f"{k}={v}" for k, v in paths.items())]
    run = subprocess.run(
        command,
        env={**os.environ, "LLAMA_CPP_LIB_PATH": str(stock_library_dir())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    results: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return results
