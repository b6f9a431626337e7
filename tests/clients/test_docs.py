"""docs/serve.md: each client's snippet runs as it stands, against a server at another address."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from alora_gguf.serve import Server, write_index

from .conftest import package

TEXT = (Path(__file__).parents[2] / "docs/serve.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
IMPORTED = re.compile(r"^(?:from|import) (\w+)", re.MULTILINE)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda code: IMPORTED.search(code)[1])
def test_a_snippet_runs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snippet: str
) -> None:
    for name in IMPORTED.findall(snippet):
        package(name)
    write_index(server.service, tmp_path / "switch")
    monkeypatch.chdir(tmp_path)
    assert "http://127.0.0.1:8080" in snippet
    exec(snippet.replace("http://127.0.0.1:8080", server.url), {})
