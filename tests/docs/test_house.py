"""The package's plan, in figures: `make house` prints them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("grimp", reason="needs the lint extra")

from docs import house

ROOT = Path(__file__).parents[2]
# where a limit is not met yet
SO_FAR = {
    "import circles": 6,
    "modules reachable from chat": 69,
    "files from invoke to llama_decode": 30,
    "product lines": 31_573,
    "public names that say they are not": 7,
}


@pytest.fixture(scope="module")
def figures() -> dict[str, int]:
    """In a process that has not imported the package."""
    run = subprocess.run(
        [sys.executable, "-m", "docs.house", "--json"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, int] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("figure", house.LIMITS)
def test_no_figure_is_too_high(figures: dict[str, int], figure: str) -> None:
    assert figures[figure] <= SO_FAR.get(figure, house.LIMITS[figure])


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}}
    assert house.circles(graph) == [["b", "c"], ["d"]]
    assert house.circles(house.without(graph, [("c", "b"), ("d", "d")])) == []
    assert house.reachable(graph, "a") == {"b", "c"}


def test_floors_are_the_rooms_of_the_longest_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "rooms", lambda: ["__init__", "chat", "engine", "errors"])
    graph = {
        "alora_gguf": {"alora_gguf.chat.chat"},
        "alora_gguf.chat.chat": {"alora_gguf.engine.context", "alora_gguf.errors"},
        "alora_gguf.engine.context": {"alora_gguf.errors"},
        "alora_gguf.errors": set(),
        "alora_gguf.cli": {"alora_gguf"},
    }
    assert house.floors(graph) == ["alora_gguf", "chat", "engine", "errors"]
