"""`alora-gguf run` on many conversations: sharing, lines, bad ones among good ones, reruns."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.cli.running.output import AppendedFile

import alora_gguf as ag
from alora_gguf import ContextOptions, Model, demo
from tests.support.running import (
    CONTEXTS,
    Runner,
    as_bytes,
    process,
    read_lines,
    start,
    talk,
    thirty,
    without_times,
)

JAILBREAK = ("--intrinsic", "jailbreak")
BOTH = ("--intrinsic", "answerability", *JAILBREAK)
HELLO = {"messages": [{"role": "user", "content": "Hello!"}]}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(monkeypatch, capsys)


@pytest.fixture(scope="module")
def alone() -> list[dict[str, Any]]:
    """What thirty chats say one by one, each with all of the cache."""
    found = []
    options = ContextOptions(n_ctx=512, n_threads=1, n_pooled=0)
    with Model(demo.base_path(), adapters=demo.adapter_paths(), options=options) as model:
        for given in thirty():
            with model.chat(documents=given["documents"], messages=given["messages"]) as chat:
                read = chat.read().evaluated
                results = chat.invoke_many(["answerability", "jailbreak"])
                found.append({each.name: each for each in results} | {"read": read})
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    file = tmp_path_factory.mktemp("undisturbed") / "in.jsonl"
    file.write_bytes(as_bytes(thirty()))
    return process(file, *BOTH).lines


# What comes out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [("--jobs", "1"), (), ("--jobs", "16", "--n-ctx", "512")])
@pytest.mark.slow
def test_as_one_by_one_and_what_is_shared_read_once(
    run: Runner, alone: list[dict[str, Any]], jobs: tuple[str, ...]
) -> None:
    outcome = run(*BOTH, *jobs, given=thirty())
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.lines
    assert [line["line"] for line in lines] == list(range(1, 31))
    assert [line["id"] for line in lines] == [given["id"] for given in thirty()]
    for line, right in zip(lines, alone, strict=True):
        for name, result in line["results"].items():
            assert result["text"] == right[name].text
            for field, value in right[name].value.items():
                assert (
                    result["value"][field] == pytest.approx(value, abs=2e-3)
                    or value == (result["value"][field])
                )
        read = line["read"]
        assert read["reused"] + read["evaluated"] == right["read"]
        assert line["results"]["jailbreak"]["timings"]["reused"] == right["read"]
    _assert_read_once(lines)


def _assert_read_once(lines: list[dict[str, Any]]) -> None:
    """In each context, one conversation read the documents, and five only what was theirs."""
    for k in range(len(CONTEXTS)):
        reads = [line["read"] for line in lines if line["id"].endswith(f".{k}")]
        assert len(reads) == 6
        whole = [read for read in reads if read["reused"] == 0]
        assert len(whole) == 1
        others = [read for read in reads if read is not whole[0]]
        assert all(read["evaluated"] < 20 < 60 < read["reused"] for read in others)


def test_only_what_is_shared_is_read_in_turn(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two conversations read what is theirs at the same time: each waits for the other there."""
    sync, together = ag.Session.sync, threading.Barrier(2)
    lengths = list[int]()

    def slowly(session: ag.Session, tokens: Sequence[int], **how: Any) -> ag.Timings:
        lengths.append(len(tokens))
        if len(tokens) > lengths[0]:  # which was what both begin with
            together.wait(timeout=60)
        return sync(session, tokens, **how)

    monkeypatch.setattr(ag.Session, "sync", slowly)
    outcome = run(*JAILBREAK, "--jobs", "2", given=thirty()[:10:5])
    assert (outcome.status, len(outcome.lines)) == (0, 2)
    assert sum(length > lengths[0] for length in lengths) >= 2


@pytest.mark.slow
def test_beginnings_within_beginnings_are_read_once(run: Runner) -> None:
    system = {"role": "system", "content": "You answer visitors of a small town. " * 3}
    given = tuple({**each, "messages": [system, *each["messages"]]} for each in thirty())
    lines = run(*JAILBREAK, given=given).lines
    whole = [line for line in lines if line["read"]["reused"] == 0]
    assert len(whole) == 1
    lengths = {sum(line["read"][k] for k in ("reused", "evaluated")) for line in lines}
    total = sum(line["read"]["evaluated"] for line in lines)
    assert total < 5 * max(lengths) < 30 * min(lengths)


@pytest.mark.slow
def test_replies_of_many(run: Runner, alone: list[dict[str, Any]]) -> None:
    asked = ("--reply", "--max-tokens", "24", "--intrinsic", "uncertainty")
    lines = run(*asked, given=thirty()[:10]).lines
    options = ContextOptions(n_ctx=512, n_threads=1, n_pooled=0)
    with Model(demo.base_path(), adapters=demo.adapter_paths(), options=options) as model:
        from alora_gguf import GenerateOptions, Sampling

        likeliest = GenerateOptions(max_tokens=24, sampling=Sampling(temperature=0.0))
        for line, given in zip(lines, thirty(), strict=False):
            with model.chat(documents=given["documents"], messages=given["messages"]) as chat:
                reply = chat.reply(likeliest)
                assert line["reply"]["text"] == reply.text
                timings = line["reply"]["timings"]
                assert timings["reused"] + timings["evaluated"] == reply.timings.evaluated
                assert line["results"]["uncertainty"]["text"] == chat.invoke("uncertainty").text
    assert sum(line["reply"]["timings"]["reused"] == 0 for line in lines) == 5


def test_values_of_many(run: Runner) -> None:
    given = (HELLO, {"messages": []}, HELLO)
    outcome = run(*JAILBREAK, "--value", given=given)
    assert outcome.status == 1
    values = outcome.lines
    assert values[0]["jailbreak"] == pytest.approx(values[2]["jailbreak"], abs=1e-3)
    assert values[1] is None


@pytest.mark.parametrize(
    ("name", "more"), [("x.jsonl", ()), ("x.NDJSON", ()), ("x.txt", ("--jsonl",))]
)
def test_one_line_may_be_lines_too(
    run: Runner, tmp_path: Path, name: str, more: tuple[str, ...]
) -> None:
    file = tmp_path / name
    file.write_bytes(as_bytes((HELLO,)))
    assert run(file, *JAILBREAK, *more).lines[0]["line"] == 1
    file.write_bytes(b"\n")
    outcome = run(file, *JAILBREAK, *more)
    said = f"{file}: holds no conversations\n"
    assert (outcome.status, outcome.out, outcome.err) == (0, "", said)


# Bad ones among good ones ------------------------------------------------------------------------


def test_bad_lines_are_said_and_left_out(run: Runner) -> None:
    data = b"\n".join([
        as_bytes(HELLO), b"{nonsense", b"", as_bytes({"id": [4], "messages": "Hello!"}),
        as_bytes({**talk("x", ["The cafe opens. " * 600]), "id": 5}), b"[1, 2", b'"\xff"',
        as_bytes(HELLO["messages"]),
    ])  # fmt: skip
    outcome = run(*JAILBREAK, given=data)
    problems = {
        2: "is not JSON: Expecting property name enclosed in double quotes (column 2)",
        4: "messages: expected an array with at least one message",
        5: "is too long: its 2413 tokens and what is asked need 2440 cells, and the cache has "
        "2048, for which the model was trained; shorten it: --n-ctx 2560 makes room, but the model "
        "was not trained for so many",
        6: "is not JSON: Expecting ',' delimiter (column 6)",
        7: "is not UTF-8 (at byte 1)",
    }
    assert outcome.status == 1
    assert outcome.err == "".join(
        [f"Error: stdin:{line}: {problem}\n" for line, problem in problems.items()]
        + ["Error: 5 of 7 conversations failed; their lines say why\n"]
    )
    lines = {line["line"]: line for line in outcome.lines}
    assert list(lines) == [1, 2, 4, 5, 6, 7, 8]
    assert {k: line["error"] for k, line in lines.items() if "error" in line} == problems
    assert (lines[4]["id"], lines[5]["id"]) == ([4], 5)
    assert lines[1]["results"].keys() == {"jailbreak"} == lines[8]["results"].keys()


# Reruns ------------------------------------------------------------------------------------------


def test_what_was_done_is_not_done_again(run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    given = (*thirty()[:6], {"messages": []}, HELLO, HELLO)
    first = run(*JAILBREAK, "-o", out, given=given)
    assert (first.status, first.out) == (1, "")
    before = out.read_bytes()
    assert sorted(line["line"] for line in read_lines(before.decode())) == list(range(1, 10))
    again = run(*JAILBREAK, "-o", out, given=given)
    assert out.read_bytes() == before
    assert again.err == (
        f"8 of 9 are in {out} already\n"
        "Error: stdin:7: messages: expected an array with at least one message\n"
        "Error: 1 of 9 conversations failed; their lines say why\n"
    )
    run(*JAILBREAK, "-o", out, given=(HELLO, *given[:6], HELLO, HELLO))
    more = read_lines(out.read_text())[9:]
    assert [line["line"] for line in more] == [1]  # of three that are alike two were there


@pytest.mark.slow
def test_what_is_asked_otherwise_is_asked_anew(
    run: Runner, tmp_path: Path, alone: list[dict[str, Any]]
) -> None:
    out = tmp_path / "out.jsonl"
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(demo.adapter_path("jailbreak").read_bytes())
    contract = tmp_path / "io.yaml"
    contract.write_bytes(demo.io_yaml_path("jailbreak").read_bytes())
    base = ("-m", demo.base_path())

    def asks(*arguments: str | Path, given: object = (HELLO,)) -> int:
        before = len(read_lines(out.read_text())) if out.exists() else 0
        assert run(*arguments, "-o", out, given=given).status == 0
        return len(read_lines(out.read_text())) - before

    assert asks(*JAILBREAK) == 1
    assert asks(*JAILBREAK, "--jobs", "3", "--n-ctx", "512", given=HELLO) == 0
    assert asks(*base, "-a", f"jailbreak={copy}", *JAILBREAK) == 0  # the same by another path
    assert asks(*JAILBREAK, "--contract", f"jailbreak={contract}") == 0
    assert asks("--intrinsic", "uncertainty") == 1
    other = demo.adapter_path("query_rewrite")
    assert asks(*base, "-a", f"jailbreak={other}", *JAILBREAK,
                "--contract", f"jailbreak={contract}") == 1  # fmt: skip
    contract.write_text(contract.read_text().replace("24", "23"))
    assert asks(*JAILBREAK, "--contract", f"jailbreak={contract}") == 1
    assert asks(*JAILBREAK, "--reply", "--max-tokens", "3") == 1
    assert asks(*JAILBREAK, "--reply", "--max-tokens", "4") == 1
    assert asks(*JAILBREAK, given=({**HELLO, "id": 1},)) == 1
    assert asks(*JAILBREAK, given=({**HELLO, "documents": ["x"]},)) == 1


@pytest.mark.slow
def test_what_failed_is_tried_again(run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    given = (talk("x", ["The cafe opens. " * 600]),)
    assert run(*JAILBREAK, "-o", out, given=given).status == 1
    assert run(*JAILBREAK, "-o", out, "--n-ctx", "2560", given=given).status == 0
    assert ["error" in line for line in read_lines(out.read_text())] == [True, False]
    assert run(*JAILBREAK, "-o", out, given=given).status == 0


def test_every_torn_line_is_cut_off_or_completed(run: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run(*JAILBREAK, "--jobs", "1", "-o", out, given=(HELLO, talk("Hi!")))
    whole = out.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(len(whole)):
        out.write_bytes(whole[:end])
        AppendedFile(out).close()
        kept = 0 if end < first - 1 else first if end < len(whole) - 1 else len(whole)
        assert out.read_bytes() == whole[:kept], end
    out.write_bytes(whole[:-9])
    outcome = run(*JAILBREAK, "-o", out, given=(HELLO, talk("Hi!")))
    assert outcome.err == f"1 of 2 are in {out} already\n"
    again = [without_times(line) for line in read_lines(out.read_text())]
    assert again == [without_times(line) for line in read_lines(whole.decode())]


# Ends before the end -----------------------------------------------------------------------------


def _wait_for_lines(out: Path, n: int, running: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not out.exists() or out.read_bytes().count(b"\n") < n:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


def _same_set(out: Path, undisturbed: list[dict[str, Any]]) -> None:
    """All lines of an undisturbed run and none twice."""
    lines = sorted(read_lines(out.read_text()), key=lambda line: line["line"])
    assert list(map(without_times, lines)) == list(map(without_times, undisturbed))


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again(
    tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_bytes(as_bytes(thirty()))
    rng = random.Random(int(time.time()))
    done = 0
    for _ in range(3):
        running = start(given, *BOTH, "-o", out)
        _wait_for_lines(out, done + rng.randint(1, 6), running)
        time.sleep(rng.random() * 0.05)
        running.kill()
        running.communicate()
        done = out.read_bytes().count(b"\n")
    assert 3 <= done < 30
    last = process(given, *BOTH, "-o", out)
    assert (last.status, last.out) == (0, "")
    assert last.err == f"{done} of 30 are in {out} already\n"
    _same_set(out, undisturbed)


@pytest.mark.slow
def test_ctrl_c_and_run_again(
    run: Runner, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_bytes(as_bytes(thirty()))
    running = start(given, *BOTH, "-o", out)
    _wait_for_lines(out, 2, running)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=30)
    assert (running.returncode, said) == (130, ("", "\nInterrupted.\n"))
    assert 2 <= len(read_lines(out.read_text())) < 30
    assert run(given, *BOTH, "-o", out).status == 0
    _same_set(out, undisturbed)


@pytest.mark.slow
def test_ctrl_c_leaves_whole_lines_on_stdout(tmp_path: Path) -> None:
    given = tmp_path / "in.jsonl"
    given.write_bytes(as_bytes(thirty()))
    running = start(given, *BOTH)
    assert running.stdout is not None
    first = running.stdout.readline()
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, err) == (130, "\nInterrupted.\n")
    assert 1 <= len(read_lines(first + out)) < 30


@pytest.mark.slow
def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    given = tmp_path / "in.jsonl"
    given.write_bytes(as_bytes(thirty()))
    running = start(given, *JAILBREAK)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.readline()
    running.stdout.close()
    assert running.stderr.read() == ""
    assert running.wait(timeout=30) == 1


# Outputs that cannot be ---------------------------------------------------------------------------


def test_outputs_that_cannot_be(run: Runner, tmp_path: Path) -> None:
    def error(path: Path) -> str:
        outcome = run(*JAILBREAK, "-o", path, given=(HELLO,))
        assert outcome.status == 1
        return outcome.error

    out = tmp_path / "out.jsonl"
    way_out = "name another file for the output"
    assert error(tmp_path) == f"{tmp_path}: cannot be written: Is a directory; {way_out}"
    nowhere = tmp_path / "nowhere" / "out.jsonl"
    assert error(nowhere) == f"{nowhere}: cannot be written: No such file or directory; {way_out}"
    for text, line in {"dear diary": 1, "dear diary\n": 1, "{}\n": 1}.items():
        out.write_text(text)
        found = error(out)
        assert found == f"{out}:{line}: is not a line that an earlier run has written; {way_out}"
        assert out.read_text() == text
    out.unlink()
    file = AppendedFile(out)
    assert error(out) == f"{out}: another run is writing it; wait, or name another"
    file.close()
    full = Path("/dev/full")
    if full.exists():
        assert error(full) == f"{full}: cannot be written: No space left on device; {way_out}"


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
@pytest.mark.slow
def test_progress_is_for_terminals(tmp_path: Path) -> None:
    import pty

    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_bytes(as_bytes(thirty() * 2))
    ours, theirs = pty.openpty()
    # a fast machine has done it before a bar would be worth it
    at_once = "import alora_gguf.cli.progress as progress; progress._PATIENCE = 0"
    running = start(given, *BOTH, "-o", out, stderr=theirs, first=at_once)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # its other end is closed
            break
        shown += piece
        if not piece:
            break
    assert running.wait(timeout=60) == 0
    assert b"Asking" in shown
    assert b"60/60" in shown
    assert len(read_lines(out.read_text())) == 60
    os.close(ours)
