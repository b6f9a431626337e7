"""The package's plan, in figures: `make house` prints them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("grimp", reason="needs the lint extra")

from docs import house

ROOT = Path(__file__).parents[2]
# where a limit is not met yet
SO_FAR = {
    "import circles": 3,
    "rooms in alora_gguf/": 21,
    "modules reachable from chat": 62,
    "files from invoke to llama_decode": 28,
    "product lines": 29_900,
    "public names that say they are not": 1,
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


# docs/architecture.md -----------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = [
    (re.findall(r"`([\w/]+)`", owner), set(re.findall(r"`([\w.]+)`", shunned)))
    for owner, _, shunned in re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)[
        1:-1
    ]
]


@pytest.fixture(scope="module")
def contracts() -> dict[str, dict[str, list[str]]]:
    from importlinter.api import read_configuration

    found = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    return {contract["id"]: contract for contract in found}


@pytest.mark.parametrize(("names", "shunned"), ROWS, ids=lambda x: "-".join(sorted(x)))
def test_what_the_page_says_of_a_folder_is_its_contract(
    contracts: dict[str, dict[str, list[str]]], names: list[str], shunned: set[str]
) -> None:
    ids = {name if name in contracts else "package" for name in names}
    forbidden = set().union(*(contracts[each]["forbidden_modules"] for each in ids))
    sources = set().union(*(contracts[each]["source_modules"] for each in ids))
    assert shunned
    assert shunned <= {name.removeprefix("alora_gguf.") for name in forbidden}
    assert {f"alora_gguf.{name}" for name in names} <= sources | {"alora_gguf.faces"}


def test_every_folder_is_on_the_page(contracts: dict[str, dict[str, list[str]]]) -> None:
    named = {name for names, _ in ROWS for name in names}
    folders = {path.parent.name for path in (ROOT / "alora_gguf").glob("*/__init__.py")}
    assert folders | {"convert", "cli"} <= named | {"llama"}
    assert set(contracts) - {"circles", "package"} <= named


@pytest.mark.parametrize("way", ["invoke", "convert"])
def test_the_ways_lead_through_files_that_exist(way: str) -> None:
    section = PAGE.partition(f"## The way of an {way}" if way == "invoke" else "## The way of a ")[
        2
    ]
    files = re.findall(r"`([\w/]+\.py)`", section.partition("\n## ")[0])
    assert len(files) > 5
    for file in files:
        assert any((folder / file).is_file() for folder in (ROOT / "alora_gguf", ROOT)), file
