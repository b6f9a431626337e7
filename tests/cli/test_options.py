"""Options that several commands have: what they do is the same everywhere."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import get_args

import pytest
from alora_gguf.cli.options import CacheType
from alora_gguf.cli.progress import Progress

from alora_gguf import ContextOptions, ModelError, cli
from alora_gguf.engine import native as _native
from alora_gguf.options import CacheType as PackagesCacheType
from tests.support.chats import PLAIN
from tests.support.files import Files

NOTE = (
    "Note: this build computes on the CPU only, so --gpu-layers changes nothing; README.md says "
    "how to build for a GPU\n"
)
COMMANDS = ("bench", "chat", "run", "verify")


@pytest.fixture
def arguments(files: Files, tmp_path: Path) -> dict[str, list[str]]:
    """What each command opens the tiny base with."""
    base, alora = str(files.base), str(files.alora)
    template, asked = tmp_path / "plain.jinja", tmp_path / "asked.json"
    template.write_text(PLAIN)
    asked.write_text(json.dumps([{"role": "user", "content": "hello"}]))
    return {
        "bench": [base, alora, "--contexts", "32", "--rounds", "1"],
        "chat": ["-m", base, "-p", "hello", "--chat-template", str(template), "--max-tokens", "2"],
        "run": [str(asked), "-m", base, "--chat-template", str(template), "--reply"],
        "verify": [base, alora],
    }


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """With how many layers on the GPU a base is loaded, which fails."""
    found: list[int] = []

    def load(_native: object, _path: object, n_gpu_layers: int, **_: object) -> None:
        found.append(n_gpu_layers)
        raise ModelError("not today")

    # vocabularies are read by the loader itself
    monkeypatch.setattr("alora_gguf.engine.llama_context.load_weights", load)
    return found


def failure(*arguments: str) -> str:
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        assert cli.run([*arguments]) == cli.EXIT_USER
    return err.getvalue()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("can", [True, False])
def test_layers_on_the_gpu(
    command: str,
    can: bool,
    arguments: dict[str, list[str]],
    loads: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If this build has a use for one, and else it is said that there are none."""
    monkeypatch.setattr(_native.load().llama, "llama_supports_gpu_offload", lambda: can)
    found = failure(command, *arguments[command], "--gpu-layers", "-1")
    assert loads == [-1 if can else 0]
    assert found == f"{'' if can else NOTE}Error: not today\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_none_unless_they_are_asked_for(
    command: str, arguments: dict[str, list[str]], loads: list[int]
) -> None:
    assert failure(command, *arguments[command]) == "Error: not today\n"
    assert loads == [0]


def test_the_types_of_cells_are_the_packages() -> None:
    assert get_args(CacheType) == get_args(PackagesCacheType)


@pytest.mark.parametrize("command", ["chat", "run"])
def test_types_of_cells(
    command: str, arguments: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[ContextOptions] = []

    def load(_base: object, given: ContextOptions, *_: object, **__: object) -> None:
        found.append(given)
        raise ModelError("not today")

    monkeypatch.setattr("alora_gguf.model.check_load", load)
    failure(command, *arguments[command], "-ctk", "q8_0", "--cache-type-v", "q4_0")
    assert [(each.type_k, each.type_v) for each in found] == [("q8_0", "q4_0")]


@pytest.mark.parametrize("command", COMMANDS)
def test_loading_moves_a_bar(
    command: str,
    arguments: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told: list[tuple[str, float]] = []
    monkeypatch.setattr(Progress, "fraction", lambda bar, done: told.append((bar._label, done)))
    assert cli.run([command, *arguments[command], "--threads", "1"]) == 0, capsys.readouterr().err
    assert told[-1] == ("Loading", 1)


def test_a_part_of_one_moves_the_bar_in_hundredths(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(Progress, "__call__", lambda _, *done: told.append(done))
    with Progress("Loading") as progress:
        for part in (0.0, 0.125, 1.0):
            progress.fraction(part)
    assert told == [(0, 100), (12, 100), (100, 100)]
