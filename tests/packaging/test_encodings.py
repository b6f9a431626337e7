"""Texts are in UTF-8 on every system: Python's own choice is the system's, on Windows another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("alora_gguf", "convert", "cli", "native")
MODE_AT = {"open": 0, "NamedTemporaryFile": 0, "fdopen": 1}


def left_to_the_system(source: str) -> Iterator[int]:
    """The lines that open, read or write a text and do not say in which encoding."""
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
            name = call.func.attr
            says = any(each.arg == "encoding" for each in call.keywords)
            if not says and (name in ("read_text", "write_text") or _opens_a_text(name, call)):
                yield call.lineno


def _opens_a_text(name: str, call: ast.Call) -> bool:
    at = MODE_AT.get(name, len(call.args))
    mode = call.args[at] if at < len(call.args) else None
    value = mode.value if isinstance(mode, ast.Constant) else None
    return isinstance(value, str) and {*value} <= {*"rwax+t"}


def test_no_text_is_left_to_the_systems_encoding() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    found = {path: [*left_to_the_system(path.read_text(encoding="utf-8"))] for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_what_would_be_found() -> None:
    for found in ("p.read_text()", "p.write_text(x)", "p.open('w')", "os.fdopen(n, 'r')"):
        assert list(left_to_the_system(found)) == [1]
    for fine in ("p.open('rb')", "p.read_text(encoding='utf-8')", "os.open(p, flags)", "m.open(x)"):
        assert list(left_to_the_system(fine)) == []
