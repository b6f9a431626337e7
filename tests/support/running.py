"""`alora-gguf run` in this process and as one of its own, and conversations for the demo model."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alora_gguf import cli
from alora_gguf.demo.script import DOCUMENTS
from tests.support import tiny_base
from tests.support.chats import PLAIN

MAIN = "from alora_gguf.__main__ import main; main()"
LIBRARY, OWNER, DAIRY, KETTLE, CAFE = (DOCUMENTS[i] for i in (0, 1, 2, 5, 6))
# questions that one document answers beyond doubt, so that no rounding changes the answer
QUESTIONS = (
    "When does the Bomel library open?",
    "Who runs the Brosa dairy?",
    "On which day is the Brosa dairy closed?",
    "In which street is the Bomel library?",
    "When does the Duva cafe close?",
    "In which street is the Duva cafe?",
)
CONTEXTS = (
    (LIBRARY, DAIRY, CAFE),
    (DAIRY, LIBRARY, CAFE),
    (CAFE, DAIRY, LIBRARY, OWNER),
    (KETTLE, LIBRARY, DAIRY, CAFE),
    (OWNER, KETTLE, CAFE, LIBRARY, DAIRY),
)


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit status, stdout and stderr."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return read_lines(self.out)

    @property
    def error(self) -> str:
        """What is said; nothing goes to stdout then."""
        assert self.out == ""
        assert self.err.startswith("Error: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("Error: ").removesuffix("\n")


class Runner:
    """Runs `alora-gguf run --threads 1`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path, given: object = b"") -> Outcome:
        self._capsys.readouterr()
        stdin = io.TextIOWrapper(io.BytesIO(as_bytes(given)), encoding="ascii")
        self._monkeypatch.setattr("sys.stdin", stdin)
        status = cli.run(["run", "--threads", "1", *map(str, arguments)])
        captured = self._capsys.readouterr()
        return Outcome(status, captured.out, captured.err)


def start(*arguments: str | Path, first: str = "", **more: Any) -> subprocess.Popen[str]:
    """The same as a process of its own, which runs the line `first` before."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-c", f"{first}\n{MAIN}", "run", "--threads", "1", *map(str, arguments)],
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        **pipes | more,
    )


def process(*arguments: str | Path) -> Outcome:
    running = start(*arguments)
    out, err = running.communicate(timeout=120)
    return Outcome(running.returncode, out, err)


def as_bytes(given: object) -> bytes:
    """Bytes as they are, all else as JSON; a tuple as JSON lines."""
    if isinstance(given, bytes):
        return given
    if isinstance(given, tuple):
        return b"".join(json.dumps(each).encode() + b"\n" for each in given)
    return json.dumps(given).encode()


def talk(question: str, documents: Sequence[str] = (LIBRARY,), **more: Any) -> dict[str, Any]:
    """A conversation as the command takes it."""
    said = [{"role": "user", "content": question}]
    return {"documents": list(documents), "messages": said, **more}


def thirty() -> tuple[dict[str, Any], ...]:
    """Six questions about each of five contexts, and no two of one context in a row."""
    return tuple(
        talk(question, context, id=f"{i}.{k}")
        for i, question in enumerate(QUESTIONS)
        for k, context in enumerate(CONTEXTS)
    )


def read_lines(text: str) -> list[dict[str, Any]]:
    """JSON lines, each of which must be whole."""
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.split("\n")[:-1]]


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on how work was shared: all but timings, numbers to four places."""
    found = {k: v for k, v in record.items() if k != "read"}
    if "results" in record:
        found["results"] = {
            name: {k: _rounded(v) for k, v in result.items() if k != "timings"}
            for name, result in record["results"].items()
        }
    if "reply" in record:
        found["reply"] = {k: v for k, v in record["reply"].items() if k != "timings"}
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return round(value, 2) if isinstance(value, float) else value


CONTRACT = """\
model: ~
response_format: |
  {"type": "object", "properties": {"ok": {"enum": ["y", "n"]}}, "required": ["ok"]}
transformations: ~
instruction: "Is it {what}?"
parameters: {max_completion_tokens: 60}
"""


@dataclass(frozen=True)
class Tiny:
    """A random base, two adapters without contracts, and a contract."""

    base: Path
    alora: Path
    lora: Path
    contract: Path

    @classmethod
    def write(cls, folder: Path) -> Tiny:
        contract = folder / "io.yaml"
        contract.write_text(CONTRACT)
        return cls(
            tiny_base.write_base(folder / "base.gguf", template=PLAIN),
            tiny_base.write_adapter(folder / "sure.gguf", invocation=[tiny_base.ASSISTANT]),
            tiny_base.write_adapter(folder / "lora.gguf", seed=4),
            contract,
        )

    @property
    def options(self) -> tuple[str | Path, ...]:
        return ("-m", self.base, "-a", f"sure={self.alora}", "--contract", f"sure={self.contract}")
