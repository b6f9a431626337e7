"""How many threads compute, while others come and go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf import threads
from alora_gguf.threads import FreeCores
from tests.support import inside
from tests.support.files import Files


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            },
            2.0,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/x\n0::/\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            0.5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "junk"}, None),
    ],
)
def test_a_containers_quota_of_cpu_time(
    files: dict[str, str], cpus: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert threads._cpu_quota(tmp_path) == cpus


@pytest.mark.parametrize(
    ("looks", "busy"),
    [
        (["4/93"] * 5, 3),
        (["4/93", "1/93", "4/93", "4/93", "4/93"], 0),  # over in a moment
        (["0/0"] * 5, 0),
        (["junk"], 0),
    ],
)
def test_what_others_compute(
    looks: list[str], busy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert threads._busy(tmp_path / "none") == 0
    loadavg, left = tmp_path / "loadavg", iter(looks)
    read = threads._words
    monkeypatch.setattr(threads, "_words", lambda _: f"1.2 1.0 0.8 {next(left)} 7".split())
    assert threads._busy(loadavg) == busy
    monkeypatch.setattr(threads, "_words", read)
    loadavg.write_text("1.00 0.50 0.20 3/80 77\n")
    assert threads._busy(loadavg) == 2


def test_no_more_threads_than_others_leave_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_busy", lambda: 0)
    free = threads.default_threads()
    monkeypatch.setattr(threads, "_busy", lambda: (os.cpu_count() or 1) - 1)
    assert threads.default_threads() == 1
    monkeypatch.setattr(threads, "_busy", lambda: 1000)
    assert 1 == threads.default_threads() <= free


def test_no_more_threads_than_the_quota_pays_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_cpu_quota", lambda: 0.5)
    assert threads.default_threads() == 1


# While others come and go -------------------------------------------------------------------------


class Machine:
    """Processors' times as Linux counts them, of which this process is given some."""

    def __init__(self, path: Path, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.n = path, n
        self.seconds, self.own, self.others = 100.0, 7.0, 50.0
        monkeypatch.setattr(threads, "_allowed", lambda: list(range(n)))
        self.write()

    def write(self) -> None:
        ticks = round((self.own + self.others) * threads._TICKS)
        lines = [f"cpu{i} {ticks if i == 0 else 0} 0 0 9 9 0 0 0 0 0" for i in range(self.n)]
        self.path.write_text("\n".join(["cpu 1 2 3", *lines, "cpu77 5 5 5 5 5 5 5 5", "intr 3"]))

    def cores(self, most: int, now: int) -> FreeCores:
        return FreeCores(
            most, now, stat=self.path, clock=lambda: self.seconds, own=lambda: self.own
        )

    def wait(self, own: float, others: float, seconds: float = 0.25) -> None:
        """Time passes, in which this process and others have so many cores."""
        self.seconds += seconds
        self.own += own * seconds
        self.others += others * seconds
        self.write()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "stat", 4, monkeypatch)


def test_cores_that_others_want_are_left_to_them(machine: Machine) -> None:
    cores = machine.cores(4, 4)
    machine.wait(own=4, others=0.1)  # a desktop's hum
    assert cores() == 4
    machine.wait(own=3.4, others=0.6)  # shares a core with one of ours
    assert cores() == 3
    machine.wait(own=3, others=1.0)
    assert cores() == 3
    machine.wait(own=1.5, others=2.5)
    assert cores() == 1
    machine.wait(own=0.5, others=3.5)
    assert cores() == 1  # never none


def test_they_are_taken_again_when_others_are_done_for_good(machine: Machine) -> None:
    cores = machine.cores(4, 1)
    machine.wait(own=1, others=3)
    assert cores() == 1
    machine.wait(own=1, others=0)
    assert cores() == 1  # perhaps for a moment
    machine.wait(own=1, others=3)
    assert cores() == 1
    machine.wait(own=1, others=1)
    assert cores() == 1
    machine.wait(own=1, others=3)
    assert cores() == 1
    machine.wait(own=1, others=1)
    assert cores() == 1
    machine.wait(own=1, others=1)
    assert cores() == 3
    machine.wait(own=0, others=0)
    assert cores() == 3
    machine.wait(own=0, others=0)
    assert cores() == 4
    machine.wait(own=0, others=0)
    assert cores() == 4


def test_it_looks_now_and_then(machine: Machine) -> None:
    cores = machine.cores(4, 4)
    machine.wait(own=0, others=4, seconds=0.1)
    assert cores() == 4
    machine.wait(own=0, others=4, seconds=0.15)
    assert cores() == 1
    machine.wait(own=0, others=0, seconds=60.0)  # nothing was asked for a minute
    assert cores() == 1
    machine.wait(own=1, others=0, seconds=20.0)  # one long batch, all the while
    assert cores() == 1
    machine.wait(own=1, others=0, seconds=20.0)
    assert cores() == 4


@pytest.mark.parametrize("text", ["", "junk", "cpu0 1 2 x 4 5 6 7 8", "cpu0 1 2"])
def test_where_nothing_is_counted_nothing_changes(
    text: str, tmp_path: Path, machine: Machine
) -> None:
    for stat in (tmp_path / "none", tmp_path / "other"):
        (tmp_path / "other").write_text(text)
        cores = FreeCores(4, 3, stat=stat, clock=lambda: machine.seconds)
        machine.wait(own=0, others=4)
        assert cores() == 3


def test_this_machines_own_count() -> None:
    """What this process computes itself is not taken for others'."""
    cores = FreeCores(1000, 1000)
    if cores._busy is None:
        pytest.skip("this system counts no processors' times")
    before = cores._busy
    end = os.times().elapsed + 0.05
    while os.times().elapsed < end:
        pass
    cores._look()
    assert before <= cores._busy < before + 60 * (os.cpu_count() or 1)


# In a model --------------------------------------------------------------------------------------


def n_threads(model: ag.Model) -> int:
    engine = inside.engine(model)
    return int(engine.native.llama.llama_n_threads(engine.ctx))


def test_a_model_computes_with_the_cores_that_are_free(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with more than its graphs were built for; what it computes is the same."""
    monkeypatch.setattr("alora_gguf.engine.loading.most_threads", lambda: 4)
    monkeypatch.setattr("alora_gguf.engine.llama_context.default_threads", lambda: 1)
    free = iter([1, 1, 3, 4, 2, *[4] * 1000])
    monkeypatch.setattr(FreeCores, "__call__", lambda _: next(free))
    used = []
    with ag.Model(files.base, adapters={"sure": files.alora}, n_ctx=1024) as model:
        assert model.n_threads == 4
        rows = []
        for _ in range(12):
            with model.session() as session:
                session.append([*range(10, 60), *files.invocation], adapter="sure")
                used.append(n_threads(model))
                rows.append(inside.last_logits(session).copy())
            inside.give_back(model)
    assert used[:5] == [1, 1, 3, 4, 2]
    for row in rows:
        assert np.array_equal(row, rows[0])


@pytest.mark.parametrize("given", [{"n_threads": 2}, {"attention": "upstream"}])
def test_a_number_that_was_given_stays(
    given: dict[str, Any], files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alora_gguf.engine.loading.default_threads", lambda: 2)
    monkeypatch.setattr(FreeCores, "__call__", lambda _: 1)
    with ag.Model(files.base, n_ctx=256, **given) as model, model.session() as session:
        session.append([1, 2, 3])
        assert n_threads(model) == model.n_threads == 2
