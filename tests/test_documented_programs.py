"""The programs in the documentation run, on the demo model in place of a large one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from alora_gguf import demo

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/conversations.md")
PROGRAMS = [
    pytest.param(block, id=f"{page}-{i}")
    for page in PAGES
    for i, block in enumerate(
        re.findall(
            r"^```python\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE
        )
    )
]


def test_there_are_some() -> None:
    assert len(PROGRAMS) >= 3


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_runs(program: str, tmp_path: Path) -> None:
    for name in demo.INTRINSICS:
        program = program.replace(f'"{name}.gguf"', repr(str(demo.adapter_path(name))))
    program = program.replace('"granite.gguf"', repr(str(demo.base_path())))
    assert not re.search(r"\"\w+\.gguf\"", program)
    prelude = 'page = "The Bomel library opens at 9:30."\n'
    run = subprocess.run(
        [sys.executable, "-c", prelude + program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
