"""The generated parts of docs/ are what the code says now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_pages_are_up_to_date() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "docs", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{run.stdout}{run.stderr}run `make docs`"


def test_a_stale_page_is_found(tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        from docs.__main__ import PARTS, render
    finally:
        sys.path.remove(str(ROOT))
    for name in PARTS:
        stale = f"before <!-- {name} --> old <!-- end {name} --> after"
        made = render(stale)
        assert made.startswith(f"before <!-- {name} -->\n")
        assert made.endswith(f"<!-- end {name} --> after")
        assert " old " not in made
        assert len(made.splitlines()) > 4
