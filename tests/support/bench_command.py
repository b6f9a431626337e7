"""Runs `alora-gguf bench` and looks at what it says."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from alora_gguf import cli

SMALL = ("--threads", "1", "--contexts", "32,96", "--rounds", "2")


def run(*arguments: str | Path, out: io.StringIO | None = None) -> tuple[int, str, str]:
    """(status, stdout, stderr)"""
    out, err = out or io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run(["bench", *map(str, arguments)])
    return status, out.getvalue(), err.getvalue()


def measured(*arguments: str | Path) -> dict[str, Any]:
    """What --json says."""
    status, out, err = run(*arguments, "--json")
    assert (status, err) == (0, ""), err
    found: dict[str, Any] = json.loads(out)  # one object and nothing else
    return found


def failure(*arguments: str | Path) -> str:
    """The one sentence that it ends with."""
    status, out, err = run(*arguments)
    assert (status, out) == (cli.EXIT_USER, ""), err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    return err.removeprefix("Error: ").removesuffix("\n")


def squeezed(text: str) -> str:
    """Without what line breaks put between words."""
    return " ".join(text.split())
