"""The standalone program, moved to a folder whose name has a blank, without Python and PATH."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

import httpx
import pytest

FOLDER: Final = os.environ.get("ALORA_TEST_PROGRAM", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="no program is named: make test-program")
MOST: Final = 200  # MB


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("moved") / "a folder"
    shutil.copytree(FOLDER, home, symlinks=True)
    return home / "alora-gguf"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "LANG": "C.UTF-8"}


def run(program: Path, *arguments: str, env: dict[str, str], said: str = "") -> str:
    """What it prints; it has no complaints."""
    done = subprocess.run(
        [program, *arguments], env=env, input=said, capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_it_is_small_enough(program: Path) -> None:
    sizes = [each.stat().st_size for each in program.parent.rglob("*") if not each.is_symlink()]
    assert sum(sizes) < MOST * 1e6


def test_the_demo_is_right(program: Path, env: dict[str, str]) -> None:
    told = run(program, "demo", env=env)
    assert 'rewritten question "Who is the manager of the Bomel library?"' in told
    assert "cells are byte for byte what they were" in told


def test_it_chats(program: Path, env: dict[str, str]) -> None:
    assert run(program, "chat", env=env, said="Hello\n/quit\n").strip()


def test_it_converts_what_it_exports(program: Path, env: dict[str, str], tmp_path: Path) -> None:
    adapter = next(program.parent.rglob("demo/jailbreak.gguf"))
    base = str(adapter.with_name("base.gguf"))
    run(program, "export", str(adapter), str(tmp_path / "peft"), "--base", base, env=env)
    out = tmp_path / "jailbreak.gguf"
    run(program, "convert", str(tmp_path / "peft"), "--base", base, "-o", str(out), env=env)
    assert "aLoRA adapter" in run(program, "inspect", str(out), env=env)


def test_it_serves_and_stops(program: Path, env: dict[str, str]) -> None:
    serving = subprocess.Popen(
        [program, "serve", "--port", "18434"], env=env, cwd="/", stderr=subprocess.PIPE, text=True
    )
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
            statuses = []  # 503 while the model is loaded
            while not statuses or (statuses[-1] == 503 and len(statuses) < 60):
                time.sleep(0.2)
                statuses.append(client.get("http://127.0.0.1:18434/v1/models").status_code)
        assert statuses[-1] == 200
    finally:
        serving.send_signal(signal.SIGINT)
        _, said = serving.communicate(timeout=30)
    assert "Traceback" not in said


def test_what_it_cannot_do_is_said(program: Path, env: dict[str, str], tmp_path: Path) -> None:
    """PyTorch is no part of it."""
    data = tmp_path / "lines.jsonl"
    data.write_text('{"messages": [{"role": "user", "content": "a"}], "answer": "b"}\n' * 4)
    base = str(next(program.parent.rglob("demo/base.gguf")))
    done = subprocess.run(
        [program, "train", base, str(data), "-o", str(tmp_path / "out.gguf")],
        env=env, capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "pip install 'alora-gguf[train]'" in done.stderr
