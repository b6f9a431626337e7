"""`alora-gguf pull` interrupted, killed, or twice at once; and what a terminal shows."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from alora_gguf import cli
from tests.support.hub_server import Handler
from tests.support.pulling import BASE, MAIN, PULL_BASE, Pulling
from tests.support.pulls import peft_files

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX's signals and terminals")


@posix
@pytest.mark.parametrize("what", ["adapter", "base"])
def test_ctrl_c_while_a_file_is_on_its_way(
    pulling: Pulling, sure: tuple[str | Path, ...], what: str
) -> None:
    arrived, done = threading.Event(), threading.Event()

    def stall(handler: Handler) -> bool:
        if not handler.server.storage or handler.command != "GET":
            return False
        handler.reply(200, bytes(2000), promised=pulling.base.stat().st_size)
        arrived.set()
        done.wait(30)
        return True

    pulling.server.trouble = stall
    process = pulling.start(sure if what == "adapter" else PULL_BASE)
    try:
        assert arrived.wait(30)
        deadline = time.monotonic() + 10
        while not pulling.incomplete() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert pulling.incomplete()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        done.set()
        process.kill()
    assert (process.returncode, out, err.strip()) == (cli.EXIT_INTERRUPTED, "", "Interrupted.")
    assert pulling.store.contents().entries == ()
    assert pulling.left_over() == []


@pytest.mark.parametrize("step", ["converting", "hashing"])
def test_ctrl_c_while_the_store_is_written(
    pulling: Pulling, sure: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupt(*_: object) -> None:
        assert len(list((pulling.home / "files").iterdir())) == 1, "nothing is being written"
        raise KeyboardInterrupt

    monkeypatch.setattr("alora_gguf.cli.progress.Progress.__call__", interrupt)
    outcome = pulling(*(sure if step == "converting" else PULL_BASE))
    assert (outcome.status, outcome.out) == (cli.EXIT_INTERRUPTED, "")
    assert outcome.err.strip() == "Interrupted."
    assert pulling.left_over() == []
    assert pulling.store.contents().entries == ()
    monkeypatch.undo()


@posix
def test_what_a_killed_pull_left_goes_with_the_next(
    pulling: Pulling, sure: tuple[str | Path, ...]
) -> None:
    code = (
        "import os, signal\nfrom alora_gguf.store import store\n"
        "store._hash = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code + MAIN, *map(str, sure)]
    killed = subprocess.run(command, env=pulling.environment(), capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert len(pulling.left_over()) == 2  # a directory and the adapter in it
    assert pulling.store.contents().entries == ()
    assert pulling(*sure).status == 0
    assert pulling.left_over() == []


def both(
    pulling: Pulling, *pulls: tuple[str | Path, ...], apart: bool
) -> list[tuple[int, str, str]]:
    """Runs pulls at once; `apart`, each with a cache of its own, so that neither waits."""
    processes = [
        pulling.start(arguments, **({"HF_HUB_CACHE": f"{pulling.cache}{i}"} if apart else {}))
        for i, arguments in enumerate(pulls)
    ]
    outcomes = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        outcomes.append((process.returncode, out, err))
    return outcomes


def meeting(pulling: Pulling, n_parties: int) -> Any:
    """Trouble: storage answers once so many have asked."""
    barrier = threading.Barrier(n_parties, timeout=30)

    def wait(handler: Handler) -> bool:
        if handler.server.storage and handler.command == "GET":
            barrier.wait()
        return False

    return wait


@pytest.mark.parametrize("apart", [True, False], ids=["two caches", "one cache"])
@pytest.mark.parametrize("what", ["adapter", "base"])
@pytest.mark.slow
def test_the_same_twice_at_once(
    pulling: Pulling, sure: tuple[str | Path, ...], what: str, apart: bool
) -> None:
    if apart:
        pulling.server.trouble = meeting(pulling, 2)
    arguments = (*(sure if what == "adapter" else PULL_BASE), "--json")
    outcomes = both(pulling, arguments, arguments, apart=apart)
    assert [(status, err) for status, _, err in outcomes] == [(0, "")] * 2
    assert sorted('"changed": true' in out for _, out, _ in outcomes) == [False, True]
    assert len(pulling.store.contents().entries) == 1
    assert pulling.left_over() == []


@pytest.mark.slow
def test_two_of_one_name_at_once(
    pulling: Pulling, sure: tuple[str | Path, ...], tmp_path: Path
) -> None:
    """One of them is stored, whole; the other one is told so."""
    pulling.server.add("me/other", peft_files(tmp_path / "other", seed=5))
    pulling.server.trouble = meeting(pulling, 2)
    other = ("pull", "me/other", "--base", pulling.base, "--name", "sure")
    outcomes = both(pulling, sure, other, apart=True)
    assert sorted(status for status, _, _ in outcomes) == [0, 1]
    (error,) = (err for status, _, err in outcomes if status)
    assert error.startswith("Error: 'sure' is in the store already with other files, from me/")
    winner = next(i for i, (status, _, _) in enumerate(outcomes) if status == 0)
    entry = pulling.store.get("sure")
    assert entry.about.repository == ("me/sure", "me/other")[winner]
    assert pulling.left_over() == []


# What is shown -----------------------------------------------------------------------------------


def on_a_terminal(pulling: Pulling, arguments: tuple[str | Path, ...], **more: str) -> str:
    """What a pull shows on a terminal, of which only stderr is one."""
    import fcntl
    import pty
    import termios

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, arguments)],
        env=pulling.environment(TERM="xterm-256color", **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    try:
        while block := os.read(leader, 1 << 16):
            shown += block
    except OSError:  # the other end was closed
        pass
    os.close(leader)
    assert process.stdout is not None
    out = process.stdout.read().decode()
    assert process.wait(30) == 0, shown
    assert "%" not in out
    assert "\x1b" not in out
    return shown.decode()


@posix
@pytest.mark.parametrize("plain", [{"NO_COLOR": "1"}, {}], ids=["NO_COLOR", "colour"])
def test_a_bar_on_a_terminal_without_colour(
    pulling: Pulling, sure: tuple[str | Path, ...], plain: dict[str, str]
) -> None:
    shown = on_a_terminal(pulling, PULL_BASE, **plain)
    assert "tiny.gguf: 100%" in shown
    assert "\x1b[3" not in shown


@pytest.mark.slow
def test_no_bar_elsewhere(pulling: Pulling, sure: tuple[str | Path, ...]) -> None:
    for arguments in (sure, PULL_BASE):
        outcome = pulling.process(*arguments)
        assert (outcome.status, outcome.err) == (0, "")


def test_what_a_hub_says_cannot_steer_the_terminal(pulling: Pulling) -> None:
    pulling.server.add(BASE, {"a\x1b[31m.gguf": b"x"})
    error = pulling("pull", BASE, "--file", "*").err
    assert "\x1b" not in error
    assert r"\x1b[31m.gguf" in error
