"""What a move found, step by step: printed for people, and as JSON for programs."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import changes, hunks

NATIVE = Path(__file__).resolve().parents[1]
ROOT = NATIVE.parent


class UpgradeError(Exception):
    """The move stops here; the text says what to do."""


@dataclass
class Step:
    """One part of the move."""

    name: str
    seconds: float = 0.0
    ok: bool = False
    said: str = ""


@dataclass
class Report:
    """What is printed, and written for programs by --json."""

    old: str = ""
    new: str = ""
    sha256: str = ""
    steps: list[Step] = field(default_factory=list)
    placed: list[tuple[str, hunks.Placed]] = field(default_factory=list)  # with its patch's name
    changes: changes.Changes | None = None
    by_hand: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    error: str = ""

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Times a step, and says how it went when it is over."""
        step = Step(name)
        self.steps.append(step)
        begin = time.monotonic()
        try:
            yield step
            step.ok = True
        finally:
            step.seconds = round(time.monotonic() - begin, 1)
            said = step.said if step.ok else step.said or "FAILED"
            print(f"{name:<8}{step.seconds:>7.1f} s  {said}", flush=True)

    def outcomes(self) -> dict[str, int]:
        counts = dict.fromkeys(("exact", "moved", "fuzz", "by hand", "left out", "failed"), 0)
        for _, each in self.placed:
            counts[each.outcome] += 1
        return counts

    def as_json(self) -> dict[str, object]:
        return {
            "from": self.old,
            "to": self.new,
            "sha256": self.sha256,
            "ok": not self.error,
            "error": self.error,
            "steps": [vars(step) for step in self.steps],
            "hunks": [as_json(name, each) for name, each in self.placed],
            "changes": self.changes.as_json() if self.changes else None,
            "by_hand": self.by_hand,
            "written": self.written,
        }


def as_json(patch: str, placed: hunks.Placed) -> dict[str, object]:
    hunk = placed.hunk
    return {
        "patch": patch,
        "file": hunk.path,
        "hunk": hunk.number,
        "function": hunk.heading,
        "line": hunk.core_start + 1,
        "new_line": None if placed.start is None else placed.start + 1,
        "outcome": placed.outcome,
        "moved": placed.moved,
        "fuzz": placed.fuzz,
        "note": placed.note,
        "purpose": purpose(patch, hunk),
    }


# ---- what a hunk is for --------------------------------------------------------------------------


def purpose(patch: str, hunk: hunks.Hunk) -> str:
    """What native/README.md says that a hunk of the file `patch` is for."""
    if any(line.startswith("+#include") for line in hunk.lines):
        return "declares what the other hunks of this file use"
    section = changes.text(NATIVE / "README.md").partition("## The patches, hunk by hunk")[2]
    files, rows = "", []
    about = f"no row in native/README.md's table, and no line that begins with patches/{patch}"
    for line in section.partition("\n## ")[0].splitlines():
        if line.startswith(f"`patches/{patch}` "):  # one that has no rows
            about = line.partition("` ")[2]
        cells = [cell.strip(" |") for cell in line.split(" | ")]
        if len(cells) == 3:
            files = cells[0] or files  # an empty cell is the one above
            if any(hunk.path.endswith(f"/{name}") for name in _names(files)):
                rows.append((cells[1], cells[2]))
    function = re.sub(r"\b(\w+)::\1\(", "constructor", hunk.heading)
    fitting = [
        why for what, why in rows if any(re.search(rf"\b{n}\b", function) for n in _words(what))
    ]
    return "; ".join(fitting or [why for _, why in rows[:1]]) or about


def _names(cell: str) -> list[str]:
    """`llama-kv-cache.cpp`, `.h` are two files."""
    names = re.findall(r"`([^`]+)`", cell)
    return [name if name[0] != "." else Path(names[0]).stem + name for name in names]


def _words(cell: str) -> list[str]:
    return re.findall(r"\bconstructor\b|(?<=`)\w+(?=`)", cell)


def print_report(report: Report, file_of: dict[str, list[hunks.Placed]]) -> None:
    for path, placed in file_of.items():
        print(f"  {path}: {', '.join(map(str, placed))}")
    if report.changes is not None:
        print("changed upstream, where we rely on it:")
        print("\n".join(f"  {line}" for line in report.changes.report()))
    if report.by_hand:
        print("left to do by hand:")
        print("\n".join(f"  {line}" for line in report.by_hand))
