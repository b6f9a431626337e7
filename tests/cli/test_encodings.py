"""An output that is not in UTF-8, as in a pipe on Windows, and as in other locales elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support import vectors
from tests.support.running import MAIN


def told(*arguments: str | Path) -> bytes:
    """What the command prints where the system's encoding is Western Europe's."""
    run = subprocess.run(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        env=os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    return run.stdout


def test_what_it_cannot_hold_is_no_reason_to_fail(tmp_path: Path) -> None:
    rows = {"direction.1": vectors.unit(vectors.rows(seed=1)[0])}
    path = vectors.glp(tmp_path / "v.gguf", rows, {"general.name": "förmal"}, hook="ffn")
    table = told("inspect", path).decode("cp1252")
    assert "förmal" in table
    assert "h - s·V V? h" in table


def test_json_is_in_utf_8_all_the_same(tmp_path: Path) -> None:
    questions = {"漢字": {"type": "noul", "instructions": "Is it urgent?"}}
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"state": "Now!", "questions": questions}), encoding="utf-8")
    found = json.loads(told("decide", body, "-c", "256", "--orders", "1", "--threads", "1"))
    assert list(found["answers"]) == ["漢字"]

    said = told("chat", "--json", "--prompt", "Who is 漢?", "--threads", "1", "-c", "512")
    events = [json.loads(each) for each in said.splitlines()]
    assert [each["user"] for each in events if each["event"] == "turn"] == ["Who is 漢?"]
