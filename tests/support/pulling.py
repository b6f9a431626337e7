"""Runs the command line on a hub, a cache and a store of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alora_gguf import Store, cli
from tests.support.hub_server import HubServer
from tests.support.smollm2 import stand_in

BASE = "me/tiny-GGUF"
PULL_BASE = ("pull", BASE, "--file", "tiny.gguf")
MAIN = "from alora_gguf.__main__ import main; main()"


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit status, stdout and stderr."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Pulling:
    """Runs `alora-gguf`, here or as a process of its own, on one hub, cache and store."""

    def __init__(self, server: HubServer, folder: Path, base: Path, capsys: Any) -> None:
        self.server = server
        self.base = base
        self.home = folder / "store"
        self.cache = folder / "cache"
        self.store = Store(self.home)
        self.packages = str(stand_in(folder / "packages", None))
        self._capsys = capsys
        self.host = server.url.removeprefix("http://")

    def __call__(self, *arguments: str | Path) -> Outcome:
        self._capsys.readouterr()
        status = cli.run([str(argument) for argument in arguments])
        captured = self._capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    def error(self, *arguments: str | Path) -> str:
        """What a command fails with; nothing goes to stdout then."""
        outcome = self(*arguments)
        assert outcome.status == cli.EXIT_USER, outcome
        assert outcome.out == ""
        assert outcome.err.startswith("Error: ")
        assert outcome.err.count("\n") == 1
        return outcome.err.removeprefix("Error: ").removesuffix("\n")

    def environment(self, **more: str) -> dict[str, str]:
        """Of a process on this hub and store, and what is importable here."""
        kept = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY")}
        own = {
            "HF_ENDPOINT": self.server.url,
            "HF_HUB_CACHE": str(self.cache),
            "HF_TOKEN": "",
            "ALORA_GGUF_HOME": str(self.home),
            "PYTHONPATH": os.pathsep.join(filter(None, (self.packages, kept.get("PYTHONPATH")))),
        }
        return kept | own | more

    def start(self, arguments: Sequence[str | Path], **more: str) -> subprocess.Popen[str]:
        """A process of its own, whose environment has `more` variables."""
        return subprocess.Popen(
            [sys.executable, "-c", MAIN, *map(str, arguments)],
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def process(self, *arguments: str | Path, **more: str) -> Outcome:
        process = self.start(arguments, **more)
        out, err = process.communicate(timeout=120)
        return Outcome(process.returncode, out, err)

    def left_over(self) -> list[str]:
        """What the store has beside whole entries and their files."""
        known = {"entries", "files", "lock"}
        for entry in self.store.contents().entries:
            self.store.path(entry)
            known |= {f"entries/{entry.name.lower()}.json", f"files/{entry.folder}"}
            known |= {f"files/{entry.folder}/{file.name}" for file in entry.files}
        there = {path.relative_to(self.home).as_posix() for path in self.home.rglob("*")}
        return sorted(there - known)

    def incomplete(self) -> list[Path]:
        """Half-written files in the hub's cache."""
        return list(self.cache.rglob("*.incomplete"))
