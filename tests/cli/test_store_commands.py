"""`alora-gguf list` and `alora-gguf rm`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alora_gguf import cli
from tests.support.pulling import Pulling
from tests.support.pulls import peft_files


@pytest.fixture
def filled(pulling: Pulling, tmp_path: Path) -> tuple[str, str]:
    """A store with a base and an adapter for it; the commits they are of."""
    base = pulling.server.add("me/tiny-GGUF", {"tiny-Q8_0.gguf": pulling.base.read_bytes()})
    adapter = pulling.server.add("me/sure", peft_files(tmp_path / "peft"))
    assert pulling("pull", "me/tiny-GGUF/tiny-Q8_0.gguf").status == 0
    assert pulling("pull", "me/sure", "--base", "tiny-Q8_0").status == 0
    return base, adapter


def test_an_empty_store(pulling: Pulling) -> None:
    outcome = pulling("list")
    assert (outcome.status, outcome.out) == (0, "")
    assert outcome.err == f"The store {pulling.home} is empty; `alora-gguf pull` adds to it.\n"
    outcome = pulling("list", "--json")
    assert outcome.json == {
        "home": str(pulling.home), "entries": [], "problems": [], "packages": {}, "adapters": {},
    }  # fmt: skip
    assert outcome.err == ""
    assert not pulling.home.exists()


def test_the_table(pulling: Pulling, filled: tuple[str, str]) -> None:
    base, adapter = filled
    sizes = [f"{e.nbytes / 1000:.1f} kB" for e in pulling.store.contents().entries]
    outcome = pulling("list")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "NAME       KIND       SIZE  BASE       FROM",
        f"sure       aLoRA  {sizes[0]:>8}  tiny-Q8_0  me/sure@{adapter[:12]}",
        f"tiny-Q8_0  base   {sizes[1]:>8}  -          me/tiny-GGUF@{base[:12]}",
    ]


def test_the_list_as_json(pulling: Pulling, filled: tuple[str, str]) -> None:
    report = pulling("list", "--json").json
    assert [entry["name"] for entry in report["entries"]] == ["sure", "tiny-Q8_0"]
    for entry in report["entries"]:
        assert entry.pop("path") == str(pulling.store.resolve(entry["name"]))
        path = pulling.home / "entries" / f"{entry['name'].lower()}.json"
        assert entry == json.loads(path.read_text())
        assert set(entry) == {
            "format", "name", "kind", "technology", "architecture", "repository", "commit",
            "sources", "base", "base_model", "vocabulary_sha256", "folder", "files", "added",
        }  # fmt: skip


def test_damage_is_shown_beside_what_is_sound(pulling: Pulling, filled: tuple[str, str]) -> None:
    pulling.store.resolve("tiny-Q8_0").unlink()
    (pulling.home / "entries" / "bad.json").write_text("{")
    (pulling.home / "entries" / "later.json").write_text('{"format": 2}')
    outcome = pulling("list")
    assert outcome.status == 0
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["NAME", "sure", "tiny-Q8_0"]
    bad, later, lost = outcome.err.splitlines()
    entries = pulling.home / "entries"
    assert bad == (
        f"warning: {entries}/bad.json: is not what the store wrote there, expected an entry of the "
        "store; remove it with `alora-gguf rm bad` and pull again"
    )
    assert later == (
        f"warning: {entries}/later.json: is of format 2, expected 1: a later alora-gguf wrote it; "
        "upgrade this one"
    )
    assert lost.endswith(
        "tiny-Q8_0.gguf: cannot be read: No such file or directory; it belongs to 'tiny-Q8_0': "
        "pull it again, or remove it with `alora-gguf rm tiny-Q8_0`"
    )
    report = pulling("list", "--json").json
    assert [entry["path"] is None for entry in report["entries"]] == [False, True]
    assert len(report["problems"]) == 3


def test_rm(pulling: Pulling, filled: tuple[str, str]) -> None:
    size = pulling.store.get("sure").nbytes
    outcome = pulling("rm", "SURE")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out == f"Removed sure ({size / 1000:.1f} kB).\n"
    assert [entry.name for entry in pulling.store.contents().entries] == ["tiny-Q8_0"]
    assert pulling.left_over() == []
    before = json.loads((pulling.home / "entries" / "tiny-q8_0.json").read_text())
    assert pulling("rm", "tiny-q8_0", "--json").json == before
    assert pulling.store.contents().entries == ()
    assert list((pulling.home / "files").iterdir()) == []


def test_names_can_be_verified_and_measured(pulling: Pulling, filled: tuple[str, str]) -> None:
    """As they can be chatted with."""
    found = pulling("verify", "tiny-Q8_0", "sure", "--threads", "1", "--json")
    assert (found.status, found.err) == (0, "")
    paths = {name: str(pulling.store.resolve(name)) for name in ("tiny-Q8_0", "sure")}
    assert found.json["base"]["path"] == paths["tiny-Q8_0"]
    assert found.json["adapter"]["path"] == paths["sure"]
    few = ("--threads", "1", "--contexts", "32", "--rounds", "1")
    found = pulling("bench", "tiny-Q8_0", "sure", *few, "--json")
    assert (found.status, found.err) == (0, "")
    assert found.json["base"]["path"] == paths["tiny-Q8_0"]
    assert [each["path"] for each in found.json["adapters"]] == [paths["sure"]]


@pytest.mark.parametrize("command", ["verify", "bench"])
def test_names_of_another_kind(pulling: Pulling, filled: tuple[str, str], command: str) -> None:
    for names, said in [
        (("nope", "sure"), "nothing named 'nope' is a base in the store "),
        (("sure", "sure"), "'sure' is an adapter, expected a base; its bases are tiny-Q8_0"),
        (("tiny-Q8_0", "nope"), "nothing named 'nope' is an adapter in the store "),
    ]:
        assert pulling.error(command, *names).startswith(said)


def test_rm_of_a_damaged_entry(pulling: Pulling, filled: tuple[str, str]) -> None:
    (pulling.home / "entries" / "sure.json").write_text("[]")
    assert pulling("rm", "sure").out == "Removed sure (a damaged entry).\n"
    assert pulling.left_over() == []
    assert [entry.name for entry in pulling.store.contents().entries] == ["tiny-Q8_0"]


def test_rm_of_an_unknown_name(pulling: Pulling, filled: tuple[str, str]) -> None:
    assert pulling.error("rm", "granite") == (
        f"nothing named 'granite' is in the store {pulling.home}; it holds sure, tiny-Q8_0"
    )
    assert pulling.error("rm", "../files").startswith("'../files' is not a name for the store: ")
    assert len(pulling.store.contents().entries) == 2


def test_rm_in_a_store_that_is_not_there(pulling: Pulling) -> None:
    assert pulling.error("rm", "granite") == (
        f"nothing named 'granite' is in the store {pulling.home}; it is empty"
    )
    assert not pulling.home.exists()


def test_what_an_entry_says_cannot_steer_the_terminal(
    pulling: Pulling, filled: tuple[str, str]
) -> None:
    path = pulling.home / "entries" / "sure.json"
    path.write_text(path.read_text().replace("me/sure", "me/\\u001b[31msure"))
    outcome = pulling("list")
    assert "\x1b" not in outcome.out
    assert r"me/\x1b[31msure@" in outcome.out


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["rm", "x"], ["pull", "--help"]]
)
def test_they_are_quick(pulling: Pulling, filled: tuple[str, str], arguments: list[str]) -> None:
    """Neither numpy nor the hub's client nor the native library is loaded."""
    code = (
        "import sys; from alora_gguf.cli import run; run(sys.argv[1:]); print([m for m in "
        "('numpy', 'gguf', 'llama_cpp', 'huggingface_hub') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=pulling.environment(),
        capture_output=True,
        text=True,
    )
    assert run.stdout.splitlines()[-1] == "[]", run.stderr


@pytest.mark.parametrize("command", ["pull", "list", "rm"])
def test_wrong_usage(pulling: Pulling, command: str) -> None:
    outcome = pulling(command, "--frob")
    assert (outcome.status, outcome.out) == (2, "")
    assert f"Usage: alora-gguf {command}" in outcome.err


def test_where_the_store_is(pulling: Pulling, monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs

    monkeypatch.setenv("ALORA_GGUF_HOME", "relative/store")
    assert pulling("list", "--json").json["home"] == str(Path.cwd() / "relative" / "store")
    monkeypatch.setenv("ALORA_GGUF_HOME", os.path.join("~", "store"))  # noqa: PTH118
    assert pulling("list", "--json").json["home"] == str(Path.home() / "store")
    for unset in (True, False):
        monkeypatch.delenv("ALORA_GGUF_HOME") if unset else monkeypatch.setenv(
            "ALORA_GGUF_HOME", ""
        )
        home = pulling("list", "--json").json["home"]
        assert home == platformdirs.user_data_dir("alora-gguf", appauthor=False)
        assert Path(home).name == "alora-gguf"
    assert cli.run(["list", "--help"]) == 0
