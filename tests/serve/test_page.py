"""The page's files: what browsers are told about them, and that they ask nobody else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

import alora_gguf as ag
from alora_gguf import demo, serve
from tests.support.serving import open_demo, serving

FOLDER = Path(serve.__file__).parent / "page"
FILES = sorted(path.name for path in FOLDER.iterdir())
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def directives(answer: httpx.Response) -> dict[str, list[str]]:
    parts = answer.headers["content-security-policy"].split(";")
    return {name: values for name, *values in map(str.split, parts)}


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in FILES)])
def test_headers(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == TYPES[Path(path).suffix or ".html"]
    allowed = directives(answer)
    assert allowed["default-src"] == ["'none'"]
    for name in ("script-src", "style-src", "img-src", "connect-src"):
        assert allowed[name] == ["'self'"]
    assert allowed["require-trusted-types-for"] == ["'script'"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    # kept by the browser, and never shown without asking whether it is still the same
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    assert again.headers["content-security-policy"]


def test_a_path_leads_to_no_other_file(client: httpx.Client) -> None:
    for path in ("/page/", "/page/../app.py", "/page/%2e%2e/app.py", "/page/none.js"):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_from_elsewhere(name: str) -> None:
    text = (FOLDER / name).read_text("utf-8")
    text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")  # a name, which nobody asks for
    assert not re.search(r"(?:https?:)?//[\w-]+\.\w", text)
    assert not re.search(r"@import|url\(|\bimport\(|innerHTML|insertAdjacentHTML|\beval\(", text)


def test_the_page_has_no_scripts_or_styles_within() -> None:
    text = (FOLDER / "index.html").read_text("utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)
    named = set(re.findall(r'(?:src|href)="/page/([^"]+)"', text))
    for script in FOLDER.glob("*.js"):
        named |= set(re.findall(r'from "\./([^"]+)"', script.read_text("utf-8")))
    assert named | {"index.html"} == set(FILES)


def test_every_control_has_a_label() -> None:
    text = (FOLDER / "index.html").read_text("utf-8")
    for tag in re.findall(r"<(?:input|textarea|select)\b[^>]*>", text):
        name = re.search(r'id="([^"]+)"', tag)
        assert name is not None
        wrapped = re.search(rf'<label[^>]*>[^<]*<\w+ id="{name[1]}"', text)
        assert f'for="{name[1]}"' in text or wrapped or "aria-label=" in tag, tag


def test_the_page_needs_no_key() -> None:
    with serving(api_key="secret") as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/").status_code == 200
        assert client.get("/page/main.js").status_code == 200
        assert client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/cache").status_code == 401


def test_the_demo_brings_what_to_begin_with(client: httpx.Client, tmp_path: Path) -> None:
    got = client.get("/page/example.json").json()
    assert got["documents"] == list(demo.DOCUMENTS)
    assert set(got["questions"]) <= {turn.question for turn in demo.TURNS}
    other = tmp_path / "other.gguf"
    shutil.copy(demo.base_path(), other)

    def load() -> ag.Model:
        return ag.Model(other, n_threads=1)

    with serving(load) as server:
        assert httpx.get(f"{server.url}/page/example.json").json() == {}


def test_files_that_can_be_loaded_are_listed(client: httpx.Client, tmp_path: Path) -> None:
    assert client.get("/v1/adapters").json()["loading"] is False
    folder = tmp_path / "adapters"
    (folder / "more").mkdir(parents=True)
    shutil.copy(demo.adapter_path("jailbreak"), folder / "more" / "guard.gguf")
    (folder / "notes.txt").write_text("no adapter")
    how: dict[str, Any] = {"adapters_dir": folder}
    with serving(open_demo, **how) as server, httpx.Client(base_url=server.url) as other:
        got = other.get("/v1/adapters").json()
        assert (got["loading"], got["files"]) == (True, ["more/guard.gguf"])
        body = {"lora_name": "guard", "lora_path": got["files"][0]}
        assert other.post("/v1/load_lora_adapter", json=body, timeout=60).status_code == 200


def test_listing_looks_at_so_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alora_gguf.serve import adapters

    monkeypatch.setattr(adapters, "MAX_LOOKED", 3)
    for i in range(9):
        (tmp_path / f"{i}.gguf").touch()
    with ag.Model(demo.base_path(), n_threads=1) as model:
        assert len(adapters.Adapters(model, "demo", tmp_path).loadable() or ()) == 3


def test_a_stream_says_how_much_is_read(client: httpx.Client) -> None:
    body = {
        "messages": [{"role": "user", "content": "word " * 600}],
        "max_tokens": 2,
        "stream": True,
    }

    def progress(**more: Any) -> list[Any]:
        said = client.post("/v1/chat/completions", json=body | more).text
        chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
        return [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]

    found = progress(return_progress=True)
    assert len(found) > 1
    assert found[-1]["processed"] == found[-1]["total"]
    assert progress() == []
