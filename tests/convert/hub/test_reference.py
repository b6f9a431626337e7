"""hf://owner/repo[@revision][/path]: what is one, and what leads astray."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest
from alora_gguf.convert.hub.reference import is_reference, parse_reference

from alora_gguf.errors import InputError
from tests.support.hub_repos import LIBRARY


@pytest.mark.parametrize(
    ("text", "repo", "path", "revision"),
    [
        ("hf://o/r", "o/r", "", None),
        ("hf://o/r/", "o/r", "", None),
        ("hf://ibm-granite/granitelib-rag-r1.0/a/b", LIBRARY, "a/b", None),
        ("hf://o/r@main", "o/r", "", "main"),
        ("hf://o/r@refs/pr/1/a b/c.gguf", "o/r", "a b/c.gguf", "refs/pr/1"),
        ("hf://o/r@v1.0/a@b", "o/r", "a@b", "v1.0"),
        ("hf://o/r@feature%2Fx/a", "o/r", "a", "feature/x"),
    ],
)
def test_references(text: str, repo: str, path: str, revision: str | None) -> None:
    found = parse_reference(text)
    assert (found.repo, found.path, found.revision) == (repo, path, revision)
    assert found.text == text
    assert is_reference(text)
    squeezed = parse_reference(Path(text))  # a Path makes one slash of two
    assert (squeezed.repo, squeezed.path, squeezed.revision) == (repo, path, revision)
    assert is_reference(Path(text))


@pytest.mark.parametrize("text", ["adapter", "/hf/a", "./hf:/a", "hf:a", "https://hf.co/a/b"])
def test_what_is_no_reference(text: str) -> None:
    assert not is_reference(text)
    with pytest.raises(
        InputError, match=r"not a reference to a hub, expected hf://owner/repo\[@revision\]"
    ):
        parse_reference(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hf://", "Empty body"),
        ("hf://o", "Repository id must be"),
        ("hf://o//a", ""),
        ("hf://../../etc", "Repo id must|Cannot have"),
        ("hf://o/.git", "Repo id must|Cannot have"),
        ("hf://o/a--b", "Repo id must|Cannot have"),
        ("hf://o/a..b", "Repo id must|Cannot have"),
        (f"hf://o/{'a' * 97}", "Repo id must|Cannot have"),
        ("hf://o/r;x", "Repo id must|Cannot have"),
        ("hf://datasets/o/r", "only model repositories can be read, without 'datasets/'"),
        ("hf://o/r/../x", "stay inside the repository"),
        ("hf://o/r/a/..", "stay inside the repository"),
        ("hf://o/r/./x", "stay inside the repository"),
        ("hf://o/r//etc/passwd", "must not contain empty segments"),
        ("hf://o/r/C:/x", "stay inside the repository"),
        ("hf://o/r/.. /x", "stay inside the repository"),
        ("hf://o/r/.../x", "stay inside the repository"),
        ("hf://o/r/a\\b", "stay inside the repository"),
        ("hf://o/r/a\0b", "stay inside the repository"),
        ("hf://o/r/a\x1b[31mb", r"\\x1b\[31mb'.*stay inside the repository"),
        ("hf://o/r@", "Empty revision"),
        ("hf://o/r@../../x", "stay inside the repository"),
        ("hf://o/r@%2e%2e%2f/x", "after the '@' comes a branch, a tag or a commit"),
        ("hf://o/r@/x", "Empty revision"),
        ("hf://o/r/a@v1", "stands before the path: hf://o/r@v1/a, or, .* name, hf://o/r@main/a@v1"),
    ],
)
def test_references_that_lead_astray(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=rf"is not a reference to a hub, .*|{problem}") as caught:
        parse_reference(text)
    assert re.search(problem, str(caught.value))


def test_whatever_is_accepted_stays_inside(tmp_path: Path) -> None:
    rng = random.Random(1)
    parts = [
        "a",
        "b.c",
        "..",
        ".",
        "",
        "/",
        "@",
        "\\",
        "C:",
        "\0",
        "\n",
        " ",
        "ä",
        "hf:",
        "--",
        "%2e",
    ]
    accepted = 0
    for _ in range(5000):
        text = "hf://o/r" + "".join(rng.choice([*parts, "/"]) for _ in range(rng.randrange(8)))
        try:
            found = parse_reference(text)
        except InputError:
            continue
        accepted += 1
        for name in (found.path, found.revision or "main"):
            inside = os.path.normpath(tmp_path.joinpath(*name.split("/")))
            assert Path(inside).is_relative_to(tmp_path)
            assert "\\" not in name
            assert name.isprintable()
        assert parse_reference(text.rstrip("/")).path == found.path
    assert accepted > 300
