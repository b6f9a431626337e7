"""Shell completion as the reference says to switch it on, in a bash of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pulling import MAIN, Pulling
from tests.support.pulls import peft_files

BASH = shutil.which("bash")
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
pytestmark = pytest.mark.skipif(os.name != "posix" or BASH is None, reason="needs bash")

# what bash does when Tab is pressed behind the words that it is given
TAB = """
{switch_on}
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_alora_gguf_completion alora-gguf
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


class Shell:
    """Completes words."""

    def __init__(self, pulling: Pulling, folder: Path) -> None:
        program = folder / "bin" / "alora-gguf"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{MAIN}" "$@"\n')
        program.chmod(0o755)
        self._environment = pulling.environment(PATH=f"{program.parent}:{os.environ['PATH']}")
        found = re.search(r'^eval "\$\(_ALORA.*$', REFERENCE.read_text("utf-8"), re.MULTILINE)
        assert found is not None
        self._script = TAB.format(switch_on=found[0])

    def __call__(self, *words: str) -> list[str]:
        assert BASH is not None
        done = subprocess.run(
            [BASH, "--norc", "-c", self._script, "bash", "alora-gguf", *words],
            env=self._environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        # without a prompt there are no options of completion, and it says so
        wrong = [line for line in done.stderr.splitlines() if "compopt" not in line]
        assert wrong == [], done.stderr
        return done.stdout.split()


@pytest.fixture
def tab(pulling: Pulling, tmp_path: Path) -> Shell:
    """With a base and two adapters in the store."""
    pulling.server.add("me/tiny-GGUF", {"tiny-Q8_0.gguf": pulling.base.read_bytes()})
    pulling.server.add("me/sure", peft_files(tmp_path / "peft"))
    assert pulling("pull", "me/tiny-GGUF/tiny-Q8_0.gguf").status == 0
    for name in ("sure", "surer"):
        assert pulling("pull", "me/sure", "--base", "tiny-Q8_0", "--name", name).status == 0
    return Shell(pulling, tmp_path)


def test_commands_and_options(tab: Shell) -> None:
    assert tab("ver") == ["verify"]
    assert tab("chat", "--gpu") == ["--gpu-layers"]
    assert tab("bench", "--c") == ["--contexts"]


@pytest.mark.slow
def test_names_in_the_store(tab: Shell) -> None:
    for command in ("chat", "run"):
        assert tab(command, "-a", "s") == ["sure", "surer"]
        assert tab(command, "-a", "surer") == ["surer"]
        assert tab(command, "-m", "") == ["tiny-Q8_0"]
    for command in ("verify", "bench"):
        assert tab(command, "t") == ["tiny-Q8_0"]
        assert tab(command, "tiny-Q8_0", "s") == ["sure", "surer"]
    assert tab("rm", "") == ["sure", "surer", "tiny-Q8_0"]


def test_a_store_that_cannot_be_read(tab: Shell, pulling: Pulling) -> None:
    """Nobody wants to read of it while typing."""
    shutil.rmtree(pulling.home)
    pulling.home.write_text("is not a directory")
    assert tab("chat", "-a", "s") == []
