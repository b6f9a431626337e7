"""The same work on Ray: conversations that begin alike go to one worker, and each worker holds a
model. What a worker that died had not answered is asked again, of another one.

Only this process writes: a part's answers arrive together, and are delivered once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import click
from alora_gguf.cli.render import plural

import alora_gguf as ag

from .conversations import Entry
from .plan import Plan
from .work import (
    GLANCE,
    MIN_SHARED,
    Answer,
    Deliver,
    Order,
    Room,
    Settings,
    Task,
    ask_in_order,
    open_model,
    sized,
)

_CORES: Final = 4  # that a worker has, if nobody says otherwise and a machine has as many
_PARTS: Final = 16  # for each worker at least
_MOST: Final = 64  # conversations in a part, about: an interrupt loses a part of each worker's
_DEATHS: Final = 3  # of workers, after which a conversation is given up
_IN_A_ROW: Final = 20  # deaths without an answer, after which all is
_START: Final = 600.0  # seconds within which some worker has to be ready

_DIED: Final = object()
Result = tuple[int, Answer | None, str]
"""A conversation's place in the order, what came of it, and why nothing did."""


@dataclass(frozen=True)
class Cluster:
    """Where to work: `address` of a Ray cluster, "auto" for the one that this machine belongs to,
    "local" to start one here; and how many workers (None: one for each four cores).
    """

    address: str
    n_workers: int | None = None


@dataclass(frozen=True)
class Part:
    """Conversations for one worker, by their places in the order, and how many workers died while
    working on them.
    """

    places: Sequence[int]
    deaths: int = 0

    @property
    def is_hopeless(self) -> bool:
        """Whether one more death is enough: it is one conversation, and it is its doing."""
        return len(self.places) == 1 and self.deaths + 1 >= _DEATHS

    def again(self) -> list[Part]:
        """What is asked of other workers when one has died. The first time that may be anything;
        from the second on it may be one of the conversations, which halving finds.
        """
        deaths, half = self.deaths + 1, len(self.places) // 2
        if deaths == 1 or not half:
            return [Part(self.places, deaths)]
        return [Part(self.places[:half], 1), Part(self.places[half:], 1)]


def parts(order: Order, n: int) -> list[Part]:
    """About `n` parts of an order, with about as many tokens to read in each, cut where neighbours
    have little in common unless one gets half as long again; the longest first.
    """
    lengths = [len(task.size.tokens) for task in order.tasks]
    costs = [length - shared for length, shared in zip(lengths, order.shared, strict=True)]
    fair, cuts, since = sum(costs) / n, [0], 0
    for place, cost in enumerate(costs):
        if since >= fair * (0.75 if order.shared[place] < MIN_SHARED else 1.5):
            cuts.append(place)
            since = 0
        since += cost
    cuts.append(len(costs))
    found = [Part(range(a, b)) for a, b in pairwise(cuts) if a < b]
    return sorted(found, key=lambda part: -sum(costs[place] for place in part.places))


class Worker:
    """An actor's class: one model, asked about one part after another."""

    def __init__(self, version: str, plan: Plan, settings: Settings, room: Room) -> None:
        self._version, self._plan, self._settings, self._room = version, plan, settings, room
        self._model: Any = None

    def ready(self) -> None:
        """Opens the model. Raises InputError and ModelError, which name the machine."""
        host = socket.gethostname()
        if self._version != ag.__version__:
            raise ag.InputError(
                f"{host}: has alora-gguf {ag.__version__}, expected {self._version}; install the "
                "same release on every machine"
            )
        try:
            self._model = open_model(self._plan, self._settings, self._room)
        except ag.AloraError as error:
            raise ag.ModelError(f"{host}: {error}") from None

    def answer(self, places: Sequence[int], tasks: Sequence[Task]) -> list[Result]:
        """What came of some tasks."""
        found = list[Result]()
        at = {task.entry.line: place for place, task in zip(places, tasks, strict=True)}

        def deliver(entry: Entry, answer: Answer | None, problem: str) -> None:
            found.append((at[entry.line], answer, problem))

        room = replace(self._room, jobs=min(self._room.jobs, len(tasks)))
        ask_in_order(self._model, self._plan, Order(tasks), room, deliver)
        return found


def answer_all_on(
    cluster: Cluster,
    plan: Plan,
    tokenizer: ag.Tokenizer,
    entries: Iterable[Entry],
    settings: Settings,
    deliver: Deliver,
) -> None:
    """work.answer_all() on a cluster, whose machines have the files of `plan` under the same paths.
    A conversation that three workers died on is delivered as such. Raises InputError if there is no
    such cluster, or no room on it.
    """
    tasks = list(sized(plan, tokenizer, entries, settings, deliver))
    if not tasks:
        return
    order = Order(tasks)
    adapters = {name: path.resolve() for name, path in plan.adapters.items()}
    plan = replace(plan, base=plan.base.resolve(), adapters=adapters)
    if settings.prompt_cache is not None:
        settings = replace(settings, prompt_cache=settings.prompt_cache.resolve())
    with _connected(cluster, verbose=settings.verbose) as ray:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        n, n_threads = _shares(cluster, machines, settings)
        settings = replace(settings, n_threads=n_threads)
        needs = {"num_cpus": n_threads, "num_gpus": int(settings.n_gpu_layers != 0)}
        arguments = ag.__version__, plan, settings, Room.of(plan, order, settings)
        workers = _Workers(ray, needs, arguments)
        try:
            workers.work(order, min(n, len(tasks)), deliver)
        finally:
            workers.close()


def _shares(
    cluster: Cluster, machines: Sequence[Mapping[str, float]], settings: Settings
) -> tuple[int, int]:
    """How many workers, and threads of each, for machines with so many cores ("CPU") and GPUs.
    Raises InputError if they have no room for those that are wanted.
    """
    cores = [int(each.get("CPU", 0)) for each in machines]
    gpus = [int(each.get("GPU", 0)) for each in machines]

    def places(n_threads: int) -> int:
        """That many workers have room: each is on one machine."""
        if settings.n_gpu_layers:
            return sum(min(c // n_threads, g) for c, g in zip(cores, gpus, strict=True))
        return sum(c // n_threads for c in cores)

    most = max([1, *cores])
    n_threads, wanted = settings.n_threads, cluster.n_workers
    if n_threads is None and wanted is None:
        n_threads = min(_CORES, most)
    elif n_threads is None:
        n_threads = next((t for t in range(most, 1, -1) if places(t) >= (wanted or 1)), 1)
    found = places(n_threads)
    if found < (wanted or 1):
        what = "a GPU and " if settings.n_gpu_layers else ""
        raise ag.InputError(
            f"--ray {cluster.address}: has room for {plural(found, 'worker')} with {what}"
            f"{plural(n_threads, 'core')} each, and {wanted or 1} were asked for; give fewer "
            "--workers or --threads"
        )
    return wanted or found, n_threads


class _Workers:
    """Those that there are, and what each does: it starts, is idle, or works on a part."""

    def __init__(self, ray: Any, needs: Mapping[str, int], arguments: tuple[Any, ...]) -> None:
        self._ray, self._arguments = ray, arguments
        self._class = ray.remote(max_restarts=0, **needs)(Worker)
        self._alive = list[Any]()
        self._starting = dict[Any, Any]()
        self._idle = deque[Any]()
        self._at_work = dict[Any, tuple[Any, Part]]()
        self._todo = deque[Part]()
        self._in_a_row = 0  # deaths since the last answer

    def work(self, order: Order, n: int, deliver: Deliver) -> None:
        """Answers an order with `n` workers. Raises what `deliver` raises, ModelError where a
        worker cannot open the model or all die, and InputError where none gets to work.
        """
        tasks, began = order.tasks, time.monotonic()
        self._todo.extend(parts(order, max(n * _PARTS, len(tasks) // _MOST)))
        for _ in range(n):
            self._start()
        while self._todo or self._at_work:
            while self._todo and self._idle:
                worker, part = self._idle.popleft(), self._todo.popleft()
                asked = worker.answer.remote(part.places, [tasks[i] for i in part.places])
                self._at_work[asked] = worker, part
            asked_for = [*self._starting, *self._at_work]
            for asked in self._ray.wait(asked_for, timeout=GLANCE)[0]:
                if asked in self._starting:
                    self._has_started(asked)
                else:
                    self._has_worked(asked, tasks, deliver)
            if len(self._starting) == n and time.monotonic() - began > _START:
                raise ag.InputError(
                    f"no worker was ready within {_START / 60:.0f} minutes: others use the cores "
                    "of the cluster; wait, or give fewer --threads"
                )

    def _start(self) -> None:
        worker = self._class.remote(*self._arguments)
        self._alive.append(worker)
        self._starting[worker.ready.remote()] = worker

    def _has_started(self, asked: Any) -> None:
        worker = self._starting.pop(asked)
        if self._outcome(asked, worker) is not _DIED:
            self._idle.append(worker)

    def _has_worked(self, asked: Any, tasks: Sequence[Task], deliver: Deliver) -> None:
        worker, part = self._at_work.pop(asked)
        results = self._outcome(asked, worker)
        if results is not _DIED:
            self._in_a_row = 0
            self._idle.append(worker)
            for place, answer, problem in results:
                deliver(tasks[place].entry, answer, problem)
        elif part.is_hopeless:
            problem = f"{_DEATHS} workers died while working on it; the cluster's log says why"
            deliver(tasks[part.places[0]].entry, None, problem)
        else:
            n = plural(len(part.places), "conversation")
            click.echo(f"A worker died; its {n} will be asked again", err=True)
            self._todo.extendleft(part.again())

    def _outcome(self, asked: Any, worker: Any) -> Any:
        """What a worker answered, or _DIED, and another one starts. Raises the worker's own error
        instead of Ray's around it, and ModelError after too many deaths.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(asked)
        except errors.RayTaskError as error:
            if isinstance(error.cause, ag.AloraError):
                raise error.cause from None
            raise
        except (
            errors.RayError
        ) as error:  # it died, or its machine did, or took what it knew with it
            self._in_a_row += 1
            if self._in_a_row > _IN_A_ROW:
                said = str(error).strip().splitlines() or [type(error).__name__]
                raise ag.ModelError(
                    f"{self._in_a_row} workers died, one after another, without an answer; the "
                    f"last one: {said[-1].strip()}"
                ) from error
        self._end(worker)
        self._start()
        return _DIED

    def _end(self, worker: Any) -> None:
        self._alive.remove(worker)
        with contextlib.suppress(Exception):
            self._ray.kill(worker)

    def close(self) -> None:
        """Ends the workers."""
        for worker in [*self._alive]:
            self._end(worker)


@contextlib.contextmanager
def _connected(cluster: Cluster, *, verbose: bool) -> Iterator[Any]:
    """Ray, connected; `verbose` shows what workers write."""
    try:
        import ray
    except ModuleNotFoundError:
        raise ag.InputError(
            "--ray needs Ray, which is not installed: pip install 'alora-gguf[ray]'"
        ) from None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of GPUs
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": verbose}
    if cluster.address == "local":
        options["include_dashboard"] = False
    try:
        _answers(cluster.address)
        ray.init(address=cluster.address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ag.InputError(
            f"--ray {cluster.address}: {str(error).strip().partition(chr(10))[0]}; expected the "
            "address of a cluster, such as 10.0.0.1:6379, auto, or local to start one here"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Raises OSError where nobody listens: Ray would end this process then."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
