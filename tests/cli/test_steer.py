"""`alora-gguf steer` as a user runs it: reports, JSON, pictures, statuses and sentences."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from alora_gguf import VectorFile, cli
from tests.steer.test_pairs import write
from tests.support import tiny_base
from tests.support.chats import PLAIN

TEXTS = ["the rain", "in the main", "another one", "plain", "air", "three teas"]


def run(*arguments: object) -> tuple[int, str, str]:
    """(status, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run(["steer", *map(str, arguments), "-t", "1"])
    return status, out.getvalue(), err.getvalue()


def refusal(*arguments: object, status: int = 1) -> str:
    found, out, err = run(*arguments)
    assert (found, out) == (status, "")
    return err.strip().splitlines()[-1].removeprefix("Error: ")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base.write_base(tmp_path_factory.mktemp("steer") / "base.gguf", template=PLAIN)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    lines = [{"prompt": text, "positive": "a", "negative": "b"} for text in TEXTS]
    return write(tmp_path / "pairs.jsonl", *lines)


@pytest.fixture
def vector(base: Path, pairs: Path, tmp_path: Path) -> Path:
    path = tmp_path / "v.gguf"
    assert run("derive", base, pairs, "-o", path)[0] == 0
    return path


def as_json(*arguments: object) -> Any:
    status, out, err = run(*arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_derive(base: Path, pairs: Path, tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    status, out, err = run("derive", base, pairs, "-o", path, "--layers", "0-1")
    assert (status, err) == (0, "")
    said = " ".join(out.split())
    assert f"{path}: add of mean, behind layers 0 to 1; scale 1 is 0.4 |h|." in said
    assert "Learnt from 4 pairs, told on 2 held out:" in said
    rows = [line.split() for line in out.splitlines()]
    assert ["layer", "|h|", "AUROC", "95", "%", "random", "d'"] in rows
    assert [row[0] for row in rows if row[-1:] == ["acts"]] == ["0", "1"]
    assert VectorFile.read(path).layers == (0, 1)
    assert refusal("derive", base, pairs, "-o", path) == (
        f"{path}: exists already; pass --force to replace it"
    )
    found = as_json(
        "derive", base, pairs, "-o", path, "--force", "--operation", "project", "--method", "pca",
        "--rank", "2", "--layers", "1", "--read-at", "last",
    )  # fmt: skip
    assert (found["operation"], found["rank"], found["scale"], found["chosen"]) == (
        "project", 2, 1.0, [1],
    )  # fmt: skip
    assert [each["layer"] for each in found["layers"]] == [0, 1]


def test_sweep(base: Path, pairs: Path, vector: Path, tmp_path: Path) -> None:
    out_file, how = tmp_path / "out.gguf", ("--pairs", pairs, "--replies", "2", "-n", "3")
    status, out, err = run(
        "sweep", base, vector, *how, "--scales", "-0.5,0.01,0.02", "--random", "1",
        "-o", out_file,
    )  # fmt: skip
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    heading = "scale odds 95 % random preferred random text random replies random repeats random"
    assert heading.split() in rows
    assert [row[0] for row in rows if row[-1:] == ["suggested"]] == ["0.02"]
    assert ["0", "-", "-"] not in rows
    said = " ".join(out.split())
    assert "Suggested: 0.02, the largest scale up to which both perplexities are within 2" in said
    assert "Written to" in said
    assert "on 2 held-out pairs, beside 1 random vector of the same norms; scale 1 is 0." in said
    assert out_file.exists()
    question = next(line for line in out.splitlines() if line.startswith("Replies to: "))
    assert question.removeprefix("Replies to: ") in TEXTS
    found = as_json("sweep", base, vector, *how, "--scales", "1", "--random", "0")
    assert [step["scale"] for step in found["steps"]] == [0, 1]


def test_sweep_draws(base: Path, pairs: Path, vector: Path, tmp_path: Path) -> None:
    how = ("--pairs", pairs, "--replies", "0", "--scales", "1,2", "--random", "1")
    pictures = [tmp_path / f"{i}.svg" for i in range(2)]
    for picture in pictures:
        assert run("sweep", base, vector, *how, "--plot", picture)[0] == 0
    text = pictures[0].read_text()
    assert "<svg" in text
    assert "log-odds (nats per token)" in text
    assert "perplexity of replies" not in text
    assert pictures[1].read_text() == text
    said = refusal("sweep", base, vector, *how, "--plot", tmp_path / "x.txt")
    assert said.endswith("expected a name that ends in .png, .svg, .pdf")


def test_a_command_scores(base: Path, pairs: Path, vector: Path, tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text(
        "import json, sys\n"
        "said = json.load(sys.stdin)\n"
        "print(len(said['question']) + 0.5 if set(said) == {'question', 'reply'} else 'no')\n"
    )
    how = ("--pairs", pairs, "--replies", "1", "-n", "2", "--scales", "1", "--random", "0")
    found = as_json("sweep", base, vector, *how, "--score", f"{sys.executable} {script}")
    assert [step["vector"]["score"] for step in found["steps"]] == [
        len(found["questions"][0]) + 0.5
    ] * 2
    script.write_text("print('good')")
    said = refusal("sweep", base, vector, *how, "--score", f"{sys.executable} {script}")
    assert said == f"--score: '{sys.executable}' printed 'good', expected a number"
    script.write_text("raise SystemExit('out of luck')")
    said = refusal("sweep", base, vector, *how, "--score", f"{sys.executable} {script}")
    assert said == f"--score: '{sys.executable}' ended with 1: out of luck"
    said = refusal("sweep", base, vector, *how, "--score", "no-such-command")
    assert said.startswith("--score: 'no-such-command' cannot be run: ")
    script.write_text("print('nan')")
    said = refusal("sweep", base, vector, *how, "--score", f"{sys.executable} {script}")
    assert said == f"--score: '{sys.executable}' printed 'nan', expected a number"
    said = refusal("sweep", base, vector, *how, "--score", "'a", status=2)
    assert said.startswith("Invalid value for '--score': ")


def test_match(base: Path, pairs: Path, tmp_path: Path) -> None:
    prompt, path = tmp_path / "prompt.txt", tmp_path / "m.gguf"
    prompt.write_text("zzz " * 8)
    how = ("--prompt", prompt, "--questions", pairs, "-n", "3", "-o", path)
    status, out, err = run("match", base, *how, "--layers", "0")
    assert (status, err) == (0, "")
    said = " ".join(out.split())
    assert "times the mean difference. On 2 held-out questions, 6 tokens of replies:" in said
    for label in ("recovered of the prompt's effect", "by random vectors of the same norms"):
        assert label in said
    assert VectorFile.read(path).layers == (0,)
    found = as_json("match", base, *how, "--force")
    assert found["scale"] in [each["scale"] for each in found["candidates"]]


def test_wrong_usage(base: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.gguf"
    said = refusal("derive", base, pairs, "-o", "", status=2)
    assert "Invalid value for '-o' / '--output': the path is empty; name a file" in said
    said = refusal("derive", base, pairs, "-o", out, "--layers", "8-", status=2)
    assert said.endswith("'8-' is neither auto nor layers such as 8-14 or 8,10,12")
    for text in ("0-9999999999", "9" * 5000, "5-3", ""):
        said = refusal("derive", base, pairs, "-o", out, "--layers", text, status=2)
        assert said.endswith("is neither auto nor layers such as 8-14 or 8,10,12")
    said = refusal("sweep", base, out, "--pairs", pairs, "--scales", "a", status=2)
    assert said.endswith("'a' is not a list of numbers, such as 0.5,1,2")
    said = refusal("sweep", base, out, "--pairs", pairs, "--force", status=2)
    assert said == "--force is only used with --output; give both"
    both = tmp_path / "both.svg"
    said = refusal("sweep", base, out, "--pairs", pairs, "--plot", both, "-o", both, status=2)
    assert said == f"--plot and --output are both {both}; name two files"
    said = refusal("derive", base, pairs, "-o", out, "--rank", "2")
    assert said.startswith("rank is 2, but operation 'add' has one direction")
    assert not out.exists()
