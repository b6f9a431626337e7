"""/save in one process, /restore in another: the same conversation, and nothing read again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alora_gguf import Model
from alora_gguf.demo import base_path, io_yaml_path
from tests.support.chatting import Chatting, masked
from tests.support.pulling import MAIN

from .test_piped import ANSWER, QUESTION


def chat(*arguments: str | Path, lines: str) -> tuple[int, str, str]:
    """A process of its own: its status, stdout and stderr."""
    run = subprocess.run(
        [sys.executable, "-c", MAIN, "chat", "--threads", "1", *map(str, arguments)],
        input=lines, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return run.returncode, run.stdout, run.stderr


@pytest.fixture
def saved(home: Path, tmp_path: Path) -> Path:
    path = tmp_path / "my talk.alora"
    status, out, err = chat(lines=f"{QUESTION}\n/save {path}\n")
    assert (status, out) == (0, f"{ANSWER}\n")
    size = f"{path.stat().st_size / 1e6:.1f} MB"
    assert err == f"saved 2 messages, {size}: {path}\n"
    return path


def turn_of(out: str) -> dict[str, Any]:
    events = [json.loads(line) for line in out.splitlines()]
    return next(event for event in events if event["event"] == "turn")


@pytest.mark.slow
def test_another_process_goes_on(saved: Path) -> None:
    """With the same words as one that never stopped."""
    lines = f"/restore {saved}\nWho runs it?\n"
    _, out, err = chat("--json", lines=lines)
    assert err == "restored 2 messages, 273 tokens; nothing was read again\n"
    turn = turn_of(out)
    assert turn["timings"]["reused"] == 273
    _, alone, _ = chat("--json", lines=f"{QUESTION}\nWho runs it?\n")
    assert turn["assistant"] == json.loads(alone.splitlines()[-1])["assistant"]
    _, by_option, _ = chat("--json", "--restore", saved, lines="Who runs it?\n")
    assert turn_of(by_option)["timings"]["reused"] == 273


@pytest.mark.slow
def test_what_was_said_is_shown_and_can_be_taken_back(saved: Path, chatting: Chatting) -> None:
    found = chatting(lines=f'/restore "{saved}"\n/cache\n/doc\n/rewind\n/rewind\n')
    assert found.out.startswith(f"user: {QUESTION}\nassistant: {ANSWER}\n")
    assert "█ 273 reused by the last reading, ▓ 0 read or written since" in found.out
    assert "  8  Omar Biswell arrives on Friday." in found.out
    assert found.err.splitlines()[1:] == [
        "took back 1 turn; 0 messages left", "Error: nothing was said yet",
    ]  # fmt: skip


@pytest.mark.slow
def test_one_is_replaced_and_another_file_is_not(saved: Path, chatting: Chatting) -> None:
    before = saved.read_bytes()
    found = chatting("--restore", saved, lines=f"Who runs it?\n/save {saved}\n")
    assert found.err.startswith("saved 4 messages, ")
    assert saved.read_bytes() != before
    if os.name == "posix":
        assert saved.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_it_needs_its_base_and_room(saved: Path, chatting: Chatting, tiny: Any) -> None:
    found = chatting("-m", tiny.base, "--restore", saved, lines="hi\n")
    assert found.err.startswith(f"Error: {saved}: was saved with the base ")
    assert (found.status, found.out) == (1, "")
    found = chatting("--ctx", "256", "--restore", saved, lines="hi\n")
    assert found.err == (
        f"Error: --restore {saved}: does not fit a KV cache of 256 cells; start with --ctx 512\n"
    )
    found = chatting("--ctx", "256", lines=f"/restore {saved}\n/cache\n")
    assert found.err == (
        "Error: this does not fit the KV cache: room for 273 tokens is needed, and 0 of its 256 "
        "are in use; give it less to read (/doc off drops documents), or make room with /ctx N\n"
    )
    assert "256 cells free" in found.out


def test_only_what_was_said_is_counted(chatting: Chatting, tmp_path: Path) -> None:
    path = tmp_path / "talk.alora"
    lines = f"Hi\n/save {path}\nWho runs it?\n/rewind\n/restore {path}\n"
    found = chatting("--system", "Be brief.", lines=lines)
    told = [line for line in found.err.splitlines() if "message" in line]
    assert [line.partition(" message")[0] for line in told] == [
        "saved 2", "took back 1 turn; 2", "restored 2",
    ]  # fmt: skip
    assert [line.partition(":")[0] for line in found.out.splitlines()[-2:]] == ["user", "assistant"]


def test_times_are_masked() -> None:
    assert masked("12 ms, 1.5 and 2e-06, 90%, in 13 ms, 273") == "T ms, P and P, P%, in T ms, 273"


def test_what_was_watched_is_watched_again(chatting: Chatting, tmp_path: Path) -> None:
    text = io_yaml_path("jailbreak").read_text()
    asked = text.replace("instruction: ~", 'instruction: "Is it {what}, or worse?"')
    (tmp_path / "io.yaml").write_text(asked)
    path, contract = tmp_path / "talk.alora", ("--contract", f"jailbreak={tmp_path}")
    watch = 'bad=jailbreak(what="so, (or so)")<0.999 uncertainty@question'
    lines = f"{QUESTION}\n/watch {watch}\n/save {path}\n"
    assert chatting(*contract, lines=lines).status == 0
    watching = (
        'watching bad=jailbreak(what="so, (or so)")<0.999 uncertainty at each question'.replace(
            "0.999", "P"
        )
    )
    found = chatting(*contract, "--restore", path, lines="Who runs it?\n")
    assert found.err.splitlines()[0] == watching
    assert re.match(r"bad: .* · certainty P% · ", found.err.splitlines()[1])
    restored = f"/restore {path}\n"
    assert watching in chatting(*contract, lines=restored).err
    # what is watched by now goes on, and without the contract there is nothing to ask by
    other = chatting(*contract, "-w", "answerability", lines=f"{restored}/watch\n").err
    assert "\nwatching bad" not in other
    now = "; now watching answerability at each question\n"
    assert f"\nwhen it was saved, it was {watching}{now}" in other
    lost = chatting("-w", "answerability", lines=restored).err
    assert "\nwhen it was saved, it was watching bad=jailbreak(what=" in lost
    assert f" uncertainty@question{now}" in lost
    assert other.endswith("\nwatching answerability at each question\n")
    without = chatting("--restore", path, lines="/watch\n").err.splitlines()
    assert without[0].startswith("not watched, as it was when it was saved: bad=jailbreak(what=")
    assert "unknown argument what; the instruction takes none" in without[0]
    assert without[1] == "watching nothing"
    # somebody else's notes
    with Model(base_path(), n_ctx=512, n_threads=1) as model:
        for notes in ({}, {"alora_gguf.watched": 5}, {"alora_gguf.watched": [5, "\x1b[2J("]}):
            model.chat(messages=["Hi"]).save(path, notes=notes)
            found = chatting("--restore", path, lines="/watch\n")
            assert found.err.splitlines()[-1] == "watching nothing"
            assert (found.status, "\x1b" in found.err) == (0, False)


@pytest.mark.slow
def test_a_document_is_read_once_whatever_reads_it(home: Path, tmp_path: Path) -> None:
    """By chats and runs of several processes: --prompt-cache."""
    doc, cache = tmp_path / "library.txt", tmp_path / "cache"
    doc.write_text("The library opens at nine. Omar Biswell arrives on Friday. " * 20)
    options = ("--doc", doc, "--prompt-cache", cache, "--json")
    first, second = (turn_of(chat(*options, lines=f"{QUESTION}\n")[1]) for _ in range(2))
    assert len(list(cache.iterdir())) == 1
    assert second["assistant"] == first["assistant"]
    assert first["timings"]["reused"] == 0
    assert second["timings"]["reused"] > 256
    given = {
        "documents": [{"text": doc.read_text(), "title": doc.name}],
        "messages": [{"role": "user", "content": QUESTION}],
    }
    asked = ("--intrinsic", "answerability", "--prompt-cache", cache, "--threads", "1")
    results = list[Any]()
    for line in (given, {**given, "documents": [doc.read_text()]}) * 2:
        ran = subprocess.run(
            [sys.executable, "-c", MAIN, "run", "-", *map(str, asked)],
            input=json.dumps(line), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        results.append(json.loads(ran.stdout))
    reused = [each["read"]["reused"] > 256 for each in results]
    assert reused[2:] == [True, True]
    assert [each["results"]["answerability"]["value"] for each in results[:2]] == [
        each["results"]["answerability"]["value"] for each in results[2:]
    ]
    assert len(list(cache.iterdir())) in (1, 2)  # whether the title is written, or is not
