"""The site: that it can be built, and what it shows otherwise than the pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import alora_gguf
from docs import hooks
from tests.support import pages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with warnings as errors."""
    pytest.importorskip("mkdocs", reason="needs the docs extra")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def article(path: Path) -> str:
    """What a page says, without what it shows as code."""
    found = re.search(r"<article.*</article>", path.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, path
    return re.sub(r"<pre.*?</pre>", "", found[0], flags=re.DOTALL)


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
@pytest.mark.slow
def test_a_page_is_shown_whole(site: Path, page: Path) -> None:
    """What GitHub takes for a list or a table, the site takes for one too."""
    path = (site / page.relative_to(pages.DOCS)).with_suffix(".html")
    for paragraph in re.findall(r"<p>(.*?)</p>", article(path), re.DOTALL):
        assert not re.search(r"^(\||- |\d+\. |#+ )", paragraph, re.MULTILINE), paragraph
    assert not re.search(r"(src|href)=\"https?:[^\"]*\.(js|css|woff2?)\"", path.read_text("utf-8"))


def test_every_public_name_is_described(site: Path) -> None:
    text = article(site / "reference" / "python.html")
    for name in set(alora_gguf.__all__) - {"__version__", "aio"}:
        assert re.search(rf'id="alora_gguf\.[\w.]+\.{name}"', text), name
    assert 'id="alora_gguf.session.Session.fork"' in text
    assert not re.search(r'id="alora_gguf\.[\w.]+\._[a-z]', text)


# What differs from the pages ---------------------------------------------------------------------


def shown(markdown: str, page: str = "howto/a.md", repo_url: str = "") -> str:
    return hooks.on_page_markdown(
        markdown,
        page=SimpleNamespace(file=SimpleNamespace(src_uri=page)),
        config=SimpleNamespace(repo_url=repo_url),
        files=None,
    )


def test_links_between_pages_stay() -> None:
    text = "[b](../b.md#c), [here](#d), ![picture](../images/e.svg), [f](https://example.org/f)"
    assert shown(text) == text


def test_links_to_the_repository_become_text_or_lead_there() -> None:
    assert shown("see [native/](../../native/README.md#a).") == "see native/."
    assert (
        shown("see [native/](../../native/README.md#a).", repo_url="https://example.org/r/")
        == "see [native/](https://example.org/r/blob/HEAD/native/README.md#a)."
    )


def test_code_stays_as_it_is() -> None:
    text = "```python\nx = [a](../../b.py)\n```"
    assert shown(text) == text


def test_marks_become_names_for_mkdocstrings() -> None:
    assert shown("<!-- ::: alora_gguf.Model -->") == "\n::: alora_gguf.Model\n"


def test_what_is_folded_is_markdown() -> None:
    assert shown("<details>") == '<details markdown="1">'


def test_aligned_names_become_a_list() -> None:
    griffe_lists = pytest.importorskip("docs.griffe_lists", reason="needs the docs extra")
    text = "What it does.\n\na/b   first\n      and more\nlong  second\n\nRaises Error, if not."
    assert list(griffe_lists.as_lists(text.split("\n"))) == [
        *("What it does.", ""),
        "- `a`, `b`: first and more",
        "- `long`: second",
        *("", "Raises Error, if not."),
    ]
