"""`alora-gguf run --ray` on a cluster of this machine, with two workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from alora_gguf.cli.running import cluster, work
from alora_gguf.cli.running.conversations import read_input
from alora_gguf.cli.running.plan import Plan

from alora_gguf import ModelError

cloudpickle = pytest.importorskip("ray.cloudpickle", reason="Ray is not installed: make test-ray")
ON_RAY: Final = ("--ray", "local", "--workers", "2", "--threads", "1")


def write(path: Path, n: int) -> Path:
    """`n` conversations, ten about each text, and one line that is none."""
    lines = [
        {
            "id": i,
            "messages": [{"role": "user", "content": f"When does number {i} open?"}],
            "documents": [{"text": f"Library {i // 10} of Bomel opens at nine. " * 8}],
        }
        for i in range(n)
    ]
    text = [json.dumps(line) for line in lines]
    path.write_text("\n".join([*text[: n // 2], '{"messages": 1}', *text[n // 2 :]]) + "\n")
    return path


def command(data: Path, out: Path, *more: str) -> list[str]:
    program = [sys.executable, "-m", "alora_gguf", "run", str(data), "-o", str(out)]
    return [*program, "--intrinsic", "jailbreak", *more]


def answered(path: Path) -> dict[Any, Any]:
    """Values by id, each once; None for the line that is no conversation."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    counts = Counter(line.get("id") for line in lines)
    assert counts.most_common(1)[0][1] == 1, "a line is there twice"
    return {
        line.get("id"): line["results"]["jailbreak"]["value"]["jailbreak"]
        if "results" in line
        else None
        for line in lines
    }


def test_the_same_answers_as_without_it_and_one_bad_line_spoils_nothing(tmp_path: Path) -> None:
    data = write(tmp_path / "talks.jsonl", 60)
    alone, shared = tmp_path / "alone.jsonl", tmp_path / "shared.jsonl"
    for out, more in ((alone, ("--threads", "1")), (shared, ON_RAY)):
        done = subprocess.run(command(data, out, *more), capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        assert "messages: expected an array" in done.stderr
    wanted, found = answered(alone), answered(shared)
    assert wanted.pop(None) is found.pop(None) is None
    assert found == pytest.approx(wanted, abs=1e-3)
    before = shared.read_bytes()  # a second run has nothing to ask
    again = subprocess.run(command(data, shared, *ON_RAY), capture_output=True, text=True)
    assert "60 of 61 are in" in again.stderr
    assert shared.read_bytes() == before


def running(process: subprocess.Popen[str], out: Path, n: int) -> None:
    """Waits until `n` lines are written."""
    for _ in range(600):
        if out.is_file() and out.read_bytes().count(b"\n") >= n:
            return
        assert process.poll() is None
        time.sleep(0.1)
    raise AssertionError(f"{n} lines were not written within a minute")


def workers(of: subprocess.Popen[str]) -> list[Any]:
    """Ray's processes that hold models."""
    children = psutil.Process(of.pid).children(recursive=True)
    return [each for each in children if "ray::Worker" in " ".join(each.cmdline())]


def test_what_a_killed_worker_had_is_asked_again_and_is_there_once(tmp_path: Path) -> None:
    data, out = write(tmp_path / "talks.jsonl", 2000), tmp_path / "out.jsonl"
    run = subprocess.Popen(command(data, out, *ON_RAY), stderr=subprocess.PIPE, text=True)
    running(run, out, 100)
    workers(run)[0].kill()
    _, said = run.communicate(timeout=300)
    assert "A worker died" in said
    assert run.returncode == 1  # because of the line that is no conversation
    assert {*answered(out)} == {None, *range(2000)}


def test_an_interrupt_ends_it_and_what_is_known_stays(tmp_path: Path) -> None:
    data, out = write(tmp_path / "talks.jsonl", 2000), tmp_path / "out.jsonl"
    run = subprocess.Popen(command(data, out, *ON_RAY), stderr=subprocess.PIPE, text=True)
    running(run, out, 100)
    there = workers(run)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in said
    assert len(answered(out)) >= 100
    _, alive = psutil.wait_procs(there, timeout=30)
    assert not alive


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--ray", "127.0.0.1:1"), "--ray 127.0.0.1:1: "),
        (("--ray", "local", "--workers", "1000"), "has room for"),
    ],
)
def test_no_such_cluster_is_one_sentence(tmp_path: Path, more: tuple[str, ...], said: str) -> None:
    data, out = write(tmp_path / "talks.jsonl", 3), tmp_path / "out.jsonl"
    done = subprocess.run(command(data, out, *more), capture_output=True, text=True, timeout=120)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


class Mortal(cluster.Worker):
    """Dies of one conversation."""

    def answer(self, places: Any, tasks: Any) -> Any:
        if any(task.entry.echo.get("id") == 7 for task in tasks):
            os._exit(1)
        return super().answer(places, tasks)


def test_a_conversation_of_which_workers_die_is_given_up_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not have this file
    monkeypatch.setattr(cluster, "Worker", Mortal)
    monkeypatch.setattr(cluster, "_PARTS", 2)
    plan = Plan.make(None, (), (), ("jailbreak",), None)
    data = write(tmp_path / "talks.jsonl", 40).read_bytes()
    entries, _ = read_input(data, "talks", ("jailbreak",), plan.template_text, lines=True)
    found = dict[Any, tuple[bool, str]]()

    def deliver(entry: Any, answer: work.Answer | None, problem: str) -> None:
        assert entry.line not in found
        found[entry.line] = answer is not None, problem

    with plan.tokenizer() as tokenizer:
        cluster.answer_all_on(
            cluster.Cluster("local", 2),
            plan,
            tokenizer,
            entries,
            work.Settings(n_threads=1),
            deliver,
        )
    failed = {line: problem for line, (well, problem) in found.items() if not well}
    assert len(found) == 41
    assert {*failed} == {8, 21}  # the eighth line has id 7; the 21st is no conversation
    assert "workers died while working on it" in failed[8]


def test_a_machine_without_the_base_is_one_sentence(tmp_path: Path) -> None:
    plan = Plan.make(None, (), (), ("jailbreak",), None)
    data = write(tmp_path / "talks.jsonl", 4).read_bytes()
    entries, _ = read_input(data, "talks", ("jailbreak",), plan.template_text, lines=True)
    with plan.tokenizer() as tokenizer, pytest.raises(ModelError, match=r"gone\.gguf"):
        cluster.answer_all_on(
            cluster.Cluster("local", 1),
            replace(plan, base=tmp_path / "gone.gguf"),
            tokenizer,
            entries,
            work.Settings(n_threads=1),
            lambda *_: None,
        )


class Short(cluster.Worker):
    """Dies as soon as it is to open the model."""

    def ready(self) -> None:
        os._exit(1)


def test_workers_that_never_live_are_not_tried_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(cluster, "Worker", Short)
    monkeypatch.setattr(cluster, "_IN_A_ROW", 3)
    plan = Plan.make(None, (), (), ("jailbreak",), None)
    data = write(tmp_path / "talks.jsonl", 4).read_bytes()
    entries, _ = read_input(data, "talks", ("jailbreak",), plan.template_text, lines=True)
    with plan.tokenizer() as tokenizer, pytest.raises(ModelError, match="4 workers died"):
        cluster.answer_all_on(
            cluster.Cluster("local", 1), plan, tokenizer, entries,
            work.Settings(n_threads=1), lambda *_: None,
        )  # fmt: skip
