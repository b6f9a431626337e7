"""The generated parts of docs/ are what the code says now."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from alora_gguf.cli import group

from tests.support import pages

ROOT = Path(__file__).parents[2]
PYTHON = [
    pytest.param(block.text, id=str(block))
    for page in (*pages.PAGES, *pages.READMES)
    for block in pages.blocks(page)
    if block.language == "python"
]
COMMANDS = [
    pytest.param(line, id=f"{block}")
    for page in (*pages.PAGES, *pages.READMES)
    for block in pages.blocks(page)
    if block.language in ("sh", "console")
    for line in re.findall(
        r"^(?:\$ )?(alora-gguf .+)", re.sub(r"\\\n\s*", "", block.text), re.MULTILINE
    )
]


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


def test_every_page_is_in_the_site() -> None:
    nav = (ROOT / "mkdocs.yml").read_text("utf-8").partition("nav:")[2].partition("hooks:")[0]
    named = re.findall(r"[\w/-]+\.md", nav)
    assert sorted(named) == sorted(p.relative_to(pages.DOCS).as_posix() for p in pages.PAGES)


@pytest.mark.parametrize("page", [*pages.PAGES, *pages.READMES], ids=pages.name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in pages.links(page):
        if ":" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in pages.anchors(target), link


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("line", COMMANDS)
def test_a_commands_options_exist(line: str) -> None:
    """Parsed, not run."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: next((i for i, word in enumerate(words) if word in "<>|;&"), len(words))]
    if not words or words[0].startswith("-") or words[0] == "COMMAND":
        return
    program = click.Context(group, info_name="alora-gguf", **group.context_settings)
    command = group.get_command(program, words[0])
    assert command is not None, words[0]
    if "--help" not in words:
        command.make_context(words[0], words[1:], parent=program)


@pytest.mark.parametrize("text", PYTHON)
def test_python_is_python(text: str) -> None:
    """Compiled, not run; what is said of `chat` or `model` may stand alone, with its await."""
    compile(text, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("text", PYTHON)
def test_imported_names_exist(text: str) -> None:
    tree = compile(text, "page", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alora_gguf"):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                there = hasattr(module, name.name) or find_spec(f"{node.module}.{name.name}")
                assert there, f"{node.module} has no {name.name}"
