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


@pytest.fixture(scope="module")
def figures() -> dict[str, tuple[int, list[str]]]:
    """In a process that has not imported the package."""
    run = subprocess.run(
        [sys.executable, "-m", "docs.house", "--json"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, tuple[int, list[str]]] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("figure", house.LIMITS)
def test_no_figure_is_too_high(figures: dict[str, tuple[int, list[str]]], figure: str) -> None:
    assert figures[figure][0] <= house.LIMITS[figure]


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
    folders -= {"_pyinstaller"}  # hooks of another program's, which nothing here imports
    assert folders | {"convert", "cli"} <= named | {"llama"}
    assert set(contracts) - {"circles", "package"} <= named


def way(title: str) -> list[str]:
    section = PAGE.partition(f"## The way of {title}")[2].partition("\n## ")[0]
    files = re.findall(r"`((?:\w+/)*\w+\.py)`", section)
    assert len(files) > 5
    return files


def test_an_invoke_goes_through_the_files_that_the_page_names(
    figures: dict[str, tuple[int, list[str]]],
) -> None:
    assert set(way("an invoke")) <= set(figures["files from invoke to llama_decode"][1])


def test_the_files_on_a_converts_way_exist() -> None:
    for file in way("a convert"):
        assert any((folder / file).is_file() for folder in (ROOT / "alora_gguf", ROOT)), file
