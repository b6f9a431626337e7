"""native/upstream-prs: each piece has its description, and a patch that applies to the pin."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.upstream import ROOT, upstream_tree

FOLDER = ROOT / "native" / "upstream-prs"
PIECES = sorted(path for path in FOLDER.iterdir() if path.is_dir())
FILES = re.compile(r"^\+\+\+ b/(\S+)", re.MULTILINE)


def patch_of(piece: Path) -> Path:
    """Its own, or the one of our builds that its description names."""
    own = [*piece.glob("*.patch")]
    return own[0] if own else ROOT / "native" / "patches" / f"{piece.name}.patch"


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.name)
def test_a_piece_applies(piece: Path, tmp_path: Path) -> None:
    patch = patch_of(piece)
    text = patch.read_text(encoding="utf-8")
    for name in FILES.findall(text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(upstream_tree() / name, tmp_path / name)
    command = ["git", "apply", "--unidiff-zero", "--check", "--verbose", str(patch)]
    environment = {"GIT_CEILING_DIRECTORIES": str(tmp_path.parent), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert patch.name in (piece / "README.md").read_text(encoding="utf-8") or patch.parent == piece
    assert f"({piece.name}/README.md)" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("amx-tile-config", ["none"], "mmq.cpp: there is no such file; give llama.cpp's sources"),
        ("lora-precision", [], "expected two files: a GLM 4 and a LoRA"),
        ("lora-precision", ["no.gguf", "x"], "no.gguf: cannot be loaded, expected a model's GGUF"),
    ],
)
def test_a_check_says_what_it_lacks(name: str, arguments: list[str], said: str) -> None:
    command = [sys.executable, FOLDER / name / "check.py", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith(said) or said in run.stderr.splitlines()[0]
    assert "Traceback" not in run.stderr


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not shutil.which("g++"),
    reason="AMX is x86-64's, and the check compiles with g++",
)
def test_amx_gets_the_configuration_that_was_written() -> None:
    check = FOLDER / "amx-tile-config" / "check.py"
    run = subprocess.run(
        [sys.executable, check, upstream_tree()], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "with the patch: 0 of 64 bytes" in run.stdout
    version = re.search(r"\) (\d+)\.(\d+)", run.stdout)
    if version and (int(version[1]), int(version[2])) < (13, 3):  # what it mends
        assert "without the patch: 0 of 64" not in run.stdout
