"""`alora-gguf bench` and its limits: time, Ctrl-C, files and options that cannot be."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.cli.bench import measuring, subjects

from alora_gguf import Session, cli, demo
from tests.support.bench_command import failure, measured, run
from tests.support.files import Files
from tests.support.verified import adapter_with

# Time ---------------------------------------------------------------------------------------------


def test_rounds_end_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def ten_seconds_a_round(self: measuring.Measuring) -> float:
        return 10.0 * len(self._contexts[32]["read"])

    monkeypatch.setattr(measuring.Measuring, "_passed", ten_seconds_a_round)
    monkeypatch.setattr(measuring.Measuring, "_estimate", lambda *_: 5.0)
    result = measured("--contexts", "32", "--rounds", "1000", "--time", "30", "--threads", "1")
    assert len(result["contexts"][0]["read"]) == 3


@pytest.mark.slow
def test_long_contexts_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_GROWTH", 50)  # who knows how long they take
    result = measured("--contexts", "64,640,1280", "--rounds", "1", "--threads", "1")
    assert [row["n_tokens"] for row in result["contexts"]] == [64]
    assert result["decoding"]["n_tokens"] == 64
    note = r"left out for lack of time: 640, 1280 tokens; a round of 640 takes about \d+ s, more"
    assert any(re.match(note, each) for each in result["notes"])
    assert not any("was up" in each for each in result["notes"])


def test_the_time_is_up_amid_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the second context is being read; what was complete stays."""
    sync, passed = Session.sync, measuring.Measuring._passed
    reading = threading.Event()

    def slow(self: Session, tokens: Sequence[int], **options: Any) -> Any:
        if len(tokens) == 128:
            reading.set()
            while not options["cancel"].cancelled:
                time.sleep(0.01)
        return sync(self, tokens, **options)

    def until_then(self: measuring.Measuring) -> float:
        return 1000.0 if reading.is_set() else passed(self) / 1000

    monkeypatch.setattr(Session, "sync", slow)
    monkeypatch.setattr(measuring.Measuring, "_passed", until_then)
    result = measured("--contexts", "64,128", "--rounds", "2", "--threads", "1")
    assert [row["n_tokens"] for row in result["contexts"]] == [64, 128]
    assert len(result["contexts"][0]["alora"]["total"]) == 3
    assert result["contexts"][1]["alora"] is None
    assert len(result["contexts"][1]["lora"]["total"]) == 1
    assert result["notes"][-1] == "the time was up before all was measured; --time was 60"


def test_no_time_for_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: measuring.Measuring, *_: object) -> None:
        while True:
            time.sleep(0.01)
            self._cancel.check()

    monkeypatch.setattr(measuring.Measuring, "_warm_up", never)
    started = time.monotonic()
    assert failure("--time", "1") == (
        "--time 1: nothing could be measured in that time; give more --time, or shorter --contexts"
    )
    assert time.monotonic() - started > 1

    def warm(self: measuring.Measuring) -> None:
        self._took[subjects.WARM] = 10.0, 5.0

    monkeypatch.setattr(measuring.Measuring, "_warm_up", warm)
    monkeypatch.setattr(measuring.Measuring, "_ask_plain", never)
    assert failure("--time", "1", "--contexts", "128,256") == (
        "--time 1: nothing could be measured in that time, a round of the shortest context takes "
        "about 30 s; give more --time, or shorter --contexts"
    )


@pytest.mark.slow
def test_quick_is_a_matter_of_defaults() -> None:
    result = measured("--quick", "--threads", "1", "--time", "50")
    assert (result["method"]["rounds"], result["method"]["seconds"]) == (2, 50)
    assert [row["n_tokens"] for row in result["contexts"]] == [128, 512]
    result = measured("--quick", "--threads", "1", "--contexts", "16", "--rounds", "1")
    assert (result["method"]["rounds"], result["method"]["seconds"]) == (1, 10)
    assert [row["n_tokens"] for row in result["contexts"]] == [16]


# Interrupted --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    ask = measuring.Measuring._round

    def one_round(self: measuring.Measuring, n: int, **options: Any) -> None:
        ask(self, n, **options)
        done.set()

    def press(*_: object) -> None:
        if done.is_set():
            done.clear()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(measuring.Measuring, "_round", one_round)
    monkeypatch.setattr("alora_gguf.cli.progress.Progress.__call__", press)
    plot = tmp_path / "never.png"
    few = ("--contexts", "16", "--rounds", "1000", "--threads", "1")
    status, out, err = run(*few, "--json", "--plot", plot)
    assert (status, err.strip()) == (cli.EXIT_INTERRUPTED, "Interrupted.")
    result = json.loads(out)
    assert result["interrupted"] is True
    assert result["notes"][-1] == "interrupted: this is what had been measured"
    assert 1 <= len(result["contexts"][0]["lora"]["total"]) < 1000
    assert not plot.exists()

    status, out, err = run(*few)
    assert (status, err.strip()) == (cli.EXIT_INTERRUPTED, "Interrupted.")
    assert "To the first token\n" in out
    assert out.endswith("\nInterrupted: this is what had been measured.\n")


def test_ctrl_c_before_anything_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "_TICK", 0.0)
    monkeypatch.setattr("alora_gguf.cli.progress.Progress.__call__", interrupt)
    monkeypatch.setattr("alora_gguf.cli.progress.Progress.fraction", lambda *_: None)  # loading
    status, out, err = run("--threads", "1")
    assert (status, out, err.strip()) == (cli.EXIT_INTERRUPTED, "", "Interrupted.")
    assert "bench" not in {thread.name for thread in threading.enumerate()}


def test_a_bug_amid_measuring_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("never")

    monkeypatch.setattr(measuring.Measuring, "_warm_up", broken)
    status, out, err = run("--threads", "1")
    assert (status, out) == (cli.EXIT_BUG, "")
    log = Path(err.strip().removeprefix(
        "Error: a bug in alora-gguf. Please report it with this file: "
    ))  # fmt: skip
    assert "ZeroDivisionError: never" in log.read_text()
    log.unlink()


# What can be wrong --------------------------------------------------------------------------------


def bad_files(files: Files, folder: Path) -> dict[str, tuple[tuple[Path | str, ...], str]]:
    """Arguments, and what is said."""
    base, alora = demo.base_path(), demo.adapter_path("uncertainty")
    missing, empty, noise = folder / "none.gguf", folder / "empty.gguf", folder / "noise.gguf"
    empty.touch()
    noise.write_bytes(b"noise" * 100)
    return {
        "missing base": ((missing, alora), "there is no such file, expected a GGUF file"),
        "missing adapter": ((base, missing), f"{missing}: there is no such file"),
        "base is a directory": ((folder, alora), f"base model {folder}: is a directory, expected"),
        "adapter is a directory": ((base, folder), f"{folder}: is a directory, expected an"),
        "empty base": ((empty, alora), f"base model {empty}: the file is empty"),
        "empty adapter": ((base, empty), f"{empty}: the file is empty"),
        "noise as base": ((noise, alora), f"base model {noise}: is not a GGUF file"),
        "noise as adapter": ((base, noise), f"{noise}: is not a GGUF file"),
        "swapped": ((alora, base), f"{alora}: is an adapter (general.type = adapter), not a base"),
        "base as adapter": ((base, base), f"{base}: general.type is 'model', expected 'adapter'"),
        "another base": ((files.base, alora), f"{alora}: was made for the architecture 'granite'"),
        "one is wrong": ((base, alora, files.alora), f"{files.alora}: was made for the archi"),
        "base's name": (("nobody", alora), "nothing named 'nobody' is a base in the store"),
        "adapter's name": ((base, "nobody"), "nothing named 'nobody' is an adapter in the store"),
        "too long": (
            (base, alora, "--contexts", "128,3000"),
            f"--contexts 3000: {base} was trained for texts of 2048 tokens, and question and "
            "answer take 21; at most 2027 are left",
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    "case",
    ["missing base", "missing adapter", "base is a directory", "adapter is a directory",
     "empty base", "empty adapter", "noise as base", "noise as adapter", "swapped",
     "base as adapter", "another base", "one is wrong", "base's name", "adapter's name",
     "too long"],
)  # fmt: skip
def test_bad_files_are_one_sentence_before_anything_is_loaded(
    case: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alora_gguf.Model", None)
    monkeypatch.setenv("ALORA_GGUF_HOME", str(tmp_path / "store"))
    arguments, said = bad_files(files, tmp_path)[case]
    assert said in failure(*arguments)


def test_a_base_that_only_looks_like_the_right_one(files: Files, tmp_path: Path) -> None:
    """Its shapes fit, its vocabulary does not: known once it is loaded."""
    other = adapter_with(
        tmp_path / "other.gguf",
        {"alora.invocation_text": "something else"},
        invocation=files.invocation,
    )
    assert failure(files.base, other) == (
        f"{other}: its invocation {list(files.invocation)} reads 'something else', but "
        f"'<certainty>' in {files.base}, which has another vocabulary; use the base it was trained "
        "on"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((demo.base_path(),), "give at least one adapter after the base; or neither, for the demo"),
        (("--contexts", "12,many"), "'12,many' is not a list of lengths; expected tokens from 1"),
        (("--contexts", ""), "'' is not a list of lengths"),
        (("--contexts", "0"), "'0' is not a list of lengths"),
        (("--contexts", "1,99999999"), "'1,99999999' is not a list of lengths"),
        (("--rounds", "0"), "0 is not in the range"),
        (("--time", "0"), "0 is not in the range"),
        (("--time", "nan"), "'nan' is not a valid integer"),
        (("--threads", "0"), "0 is not in the range"),
    ],
)
def test_wrong_usage(arguments: tuple[str | Path, ...], said: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert err.startswith("Usage: alora-gguf bench [OPTIONS] [BASE] [ADAPTER]...")


def test_help_says_it_all() -> None:
    status, out, _ = run("--help")
    assert status == 0
    for option in (
        "BASE", "ADAPTER", "--contexts", "--threads", "--rounds", "--time", "--quick", "--seed",
        "--plot", "--json", "--verbose",
    ):  # fmt: skip
        assert option in out


@pytest.mark.slow
def test_a_busy_machine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_STEADY", 0.5)
    result = measured("--contexts", "16", "--rounds", "1", "--threads", "1")
    note = (
        r"times vary, medians are up to \d+\.\d times the shortest; something else may be keeping"
    )
    assert any(re.match(note, each) for each in result["notes"])
    monkeypatch.setattr(measuring, "_STEADY", 1e9)
    result = measured("--contexts", "16", "--rounds", "1", "--threads", "1")
    assert not any("times vary" in each for each in result["notes"])
    assert any(each.startswith("some figures are of one round") for each in result["notes"])
    result = measured("--contexts", "16", "--rounds", "2", "--threads", "1")
    assert not any("of one round" in each for each in result["notes"])
