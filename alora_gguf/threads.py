"""How many threads compute: a core each, of those that nobody else wants."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_GLANCES: Final = 5  # at what is running: what is over in a moment is no load
_BETWEEN: Final = 0.003  # seconds between two of them
_WINDOW: Final = 0.2  # seconds between two looks at processors' times, which are counted by 10 ms
_TOO_LONG: Final = 5.0
_AT_WORK: Final = 0.5  # of a core that this process has had: a long batch, and no rest
_NOTHING: Final = 0.25  # of a core: a desktop's own hum, and what counting by ticks is off by
_CALM: Final = 2  # looks that have to find more cores free, one after the other
_TICKS: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def default_threads() -> int:
    """most_threads(), less what others compute at the moment: all threads wait for the one that has
    no core to itself, which makes them ten times as slow.
    """
    return max(1, min(most_threads(), (os.cpu_count() or 1) - _busy()))


def most_threads() -> int:
    """One thread per physical core this process may use: a second thread per core gains nothing.
    A container's quota of CPU time counts too.
    """
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {tuple(_words(Path(topology.format(cpu)))) or cpu for cpu in _allowed()}
    return max(1, min(len(cores), math.ceil(_cpu_quota() or len(cores))))


def _allowed() -> list[int]:
    """The processors that this process may run on."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return [*range(os.cpu_count() or 1)]


def _busy(loadavg: Path = Path("/proc/loadavg")) -> int:
    """How many other threads of this machine have been computing for a moment; 0 where nothing says
    so. Linux's average over a minute would count a program that is over, such as our last one.
    """
    seen = []
    for i in range(_GLANCES):
        if i:
            time.sleep(_BETWEEN)
        running, _, _ = (*_words(loadavg), "", "", "", "")[3].partition("/")
        if not running.isdecimal():
            return 0
        seen.append(int(running) - 1)  # without this one
    return max(0, min(seen))


def _cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that this process's cgroups allow it; None if they do not say."""
    quotas = []
    for line in _words(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2) if line.count(":") > 1 else ("", "-", "")
        mount = root / "sys/fs/cgroup"
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = (mount / "cpu" if controllers else mount) / path.strip("/")
        while group.is_relative_to(mount):  # a limit of any parent's holds too
            # of version 2, then of version 1
            found = _words(group / "cpu.max") or [
                *_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")
            ]  # fmt: skip
            if len(found) == 2 and all(word.isdecimal() and int(word) for word in found):
                quotas.append(int(found[0]) / int(found[1]))
            group = group.parent
    return min(quotas, default=None)


def _words(file: Path) -> list[str]:
    """What a file says; nothing if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError:
        return []


class FreeCores:
    """How many threads to compute with while other programs come and go: so many that each has a
    processor of its own, at least one, at most `most`. By what Linux counts of each processor's
    time, less this process's own, whoever in it computes; elsewhere, or where nothing is counted,
    always as many as at the beginning.
    """

    def __init__(
        self,
        most: int,
        now: int,
        *,
        stat: Path = Path("/proc/stat"),
        clock: Callable[[], float] = time.monotonic,
        own: Callable[[], float] = time.process_time,
    ) -> None:
        """Begins with `now` threads. `clock` and `own`, this process's CPU time, are in seconds."""
        self.most, self._now = most, min(now, most)
        self._stat, self._clock, self._own = stat, clock, own
        self._names = {f"cpu{number}" for number in _allowed()}
        self._calm = 0
        self._look()

    def __call__(self) -> int:
        """How many now. Looks only now and then, so that it can be asked before every batch."""
        waited = self._clock() - self._looked
        if waited < _WINDOW or self._busy is None:
            return self._now
        busy, own = self._busy, self._used
        now = self._look()
        rested = self._used - own < _AT_WORK * waited
        if now is None or (rested and waited > _TOO_LONG):  # what was long ago says nothing
            return self._now
        others = max(0.0, (now - busy) - (self._used - own)) / waited
        # others that have to share a core with us get less of it than they want
        free = min(self.most, max(1, len(self._names) - math.ceil(others - _NOTHING)))
        self._calm = self._calm + 1 if free > self._now else 0
        if free < self._now or self._calm >= _CALM:
            self._now, self._calm = free, 0
        return self._now

    def _look(self) -> float | None:
        self._looked, self._used = self._clock(), self._own()
        self._busy = self._busy_seconds()
        return self._busy

    def _busy_seconds(self) -> float | None:
        """What the allowed processors have computed in all, for anybody; None if nothing says."""
        ticks, found = 0, False
        try:
            lines = self._stat.read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        for name, *counts in (line.split() for line in lines if line.startswith("cpu")):
            if name in self._names and len(counts) > 7 and all(map(str.isdecimal, counts)):
                user, nice, system, _idle, _wait, interrupts, soft, stolen = map(int, counts[:8])
                ticks += user + nice + system + interrupts + soft + stolen
                found = True
        return ticks / _TICKS if found else None
