"""`alora-gguf run --reply --steer`: replies that vectors steer, for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf import cli
from tests.support import tiny_base
from tests.support.chats import PLAIN
from tests.support.steers import write_steer

MESSAGES = [{"role": "user", "content": "Hi"}]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("steering")
    base = tiny_base.write_base(folder / "base.gguf", template=PLAIN)
    (folder / "one.json").write_text(json.dumps(MESSAGES))
    return {
        "base": base,
        "formal": write_steer(folder / "formal.gguf", base, seed=0),
        "terse": write_steer(folder / "terse.gguf", base, seed=1),
        "plain": tiny_base.write_adapter(folder / "plain.gguf"),
        "tone": tiny_base.write_adapter(folder / "tone.gguf", seed=8, rank=4),
        "asked": folder / "one.json",
    }


@pytest.fixture
def run(paths: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*options: str | Path) -> tuple[int, str, str]:
        given = ["run", paths["asked"], "-m", paths["base"], "-t", "1", "--reply", "-n", "8"]
        for name in ("formal", "terse", "plain", "tone"):
            given += ["-a", f"{name}={paths[name]}"]
        status = cli.run([str(each) for each in (*given, *options)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


CASES: dict[str, tuple[list[str], Any]] = {
    "base": ([], None),
    "one": (["--steer", "formal"], "formal"),
    "half": (["--steer", "formal=0.5"], {"formal": 0.5}),
    "both": (["--steer", "formal=0.5", "--steer", "terse=-1"], {"formal": 0.5, "terse": -1.0}),
    "as an adapter": (["--reply-adapter", "terse"], "terse"),
    "beside one": (
        ["--reply-adapter", "plain", "--steer", "formal=0.5"],
        {"plain": 1.0, "formal": 0.5},
    ),
    "at a scale": (["--reply-adapter", "plain=0.5"], {"plain": 0.5}),
    "together": (
        ["--reply-adapter", "plain", "--reply-adapter", "tone=0.5", "--steer", "formal=0.5"],
        {"plain": 1.0, "tone": 0.5, "formal": 0.5},
    ),
}


def test_what_is_written(run: Run, paths: dict[str, Path]) -> None:
    found = {}
    adapters = {name: paths[name] for name in ("formal", "terse", "plain", "tone")}
    with ag.Model(paths["base"], adapters=adapters, n_threads=1) as model:
        for name, (given, adapter) in CASES.items():
            with model.chat(messages=MESSAGES) as chat:
                wanted = chat.reply(max_tokens=8, temperature=0, adapter=adapter).text
            status, out, err = run(*given, "--value")
            assert (status, json.loads(out)) == (0, wanted), err
            found[name] = wanted
    assert len(set(found.values())) == len(CASES)


def test_a_later_run_knows_by_what_it_was_steered(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    for given in (["--steer", "formal=0.5"], ["--steer", "formal=0.6"], ["--steer", "terse=0.5"]):
        assert run(*given, "-o", path)[0] == 0
    assert len(path.read_text().splitlines()) == 3
    status, _, err = run("--steer", "formal=0.5", "-o", path)
    assert (status, err.startswith("1 of 1 are in")) == (0, True), err
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--steer", "plain=1"], "--steer plain: is an adapter with weights, not a steering vec"),
        (["--steer", "formal=x"], "--steer formal: expected a scale from -1000 to 1000, found 'x'"),
        (["--steer", "formal", "--reply-adapter", "formal"], "is the --reply-adapter too; give it"),
        (["--reply-adapter", "plain", "--reply-adapter", "plain=2"], "is given twice; give it one"),
        (["--steer", "nobody"], "nobody"),
        (
            ["--intrinsic", "formal"],
            "is a steering vector, which is not asked anything; --reply --",
        ),
    ],
)
def test_what_is_refused(run: Run, options: list[str], text: str) -> None:
    status, out, err = run(*options)
    assert (status != 0, out) == (True, "")
    assert text in " ".join(err.split())


def test_without_a_reply_there_is_nothing_to_steer(
    paths: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["run", str(paths["asked"]), "--intrinsic", "jailbreak", "--steer", "formal"]
    assert cli.run(asked) != 0
    assert "--steer is for a reply; add --reply, or leave it out" in capsys.readouterr().err
