"""The same work on Ray: conversations that begin alike go to one worker, and each worker holds a
model. What a worker that died had not answered is asked again, of another one.

Only this process writes: a part's answers arrive together, and are delivered once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import click
from alora_gguf.cli.progress import Progress
from alora_gguf.cli.render import plural

import alora_gguf as ag

from .conversations import Entry
from .plan import Plan
from .work import (
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

_CORES: Final = 4  # that a worker has, if nobody says otherwise
_PARTS: Final = 16  # for each worker: what one that dies has to be asked again is so much less
_DEATHS: Final = 3  # of workers, after which a conversation is given up
_GLANCE: Final = 0.2  # seconds after which an interrupt is seen

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
    """Conversations for one worker, by their places in the order, and how many died of them."""

    places: Sequence[int]
    deaths: int = 0

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
        host = socket.gethostname()
        if version != ag.__version__:
            raise ag.InputError(
                f"{host}: has alora-gguf {ag.__version__}, expected {version}; install the same "
                "release on every machine"
            )
        try:
            self._model = open_model(plan, settings, room)
        except ag.AloraError as error:
            raise ag.ModelError(f"{host}: {error}") from None
        self._plan, self._room = plan, room

    def ready(self) -> None:
        """Returns when the model is open."""

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
    A conversation of which three workers died is delivered as such. Raises InputError if there is
    no cluster, or none that could work.
    """
    tasks = list(sized(plan, tokenizer, entries, settings, deliver))
    if not tasks:
        return
    order = Order(tasks)
    adapters = {name: path.resolve() for name, path in plan.adapters.items()}
    plan = replace(plan, base=plan.base.resolve(), adapters=adapters)
    with _connected(cluster) as ray:
        cores = int(ray.cluster_resources().get("CPU", 0))
        n = cluster.n_workers or max(1, cores // (settings.n_threads or _CORES))
        settings = replace(settings, n_threads=settings.n_threads or max(1, cores // n))
        if n * (settings.n_threads or 1) > cores:
            raise ag.InputError(
                f"--ray {cluster.address}: has {plural(cores, 'core')}, and "
                f"{plural(n, 'worker')} of {plural(settings.n_threads or 1, 'thread')} need more; "
                "give fewer --workers or --threads"
            )
        room = Room.of(plan, order, settings)
        workers = _Workers(ray, (ag.__version__, plan, settings, room), settings.n_threads or 1)
        try:
            workers.work(order, min(n, len(tasks)), deliver)
        finally:
            workers.close()


class _Workers:
    """Those that are at work, and what each works on."""

    def __init__(self, ray: Any, arguments: tuple[Any, ...], n_threads: int) -> None:
        self._ray, self._arguments = ray, arguments
        self._class = ray.remote(num_cpus=n_threads, max_restarts=0)(Worker)
        self._alive = list[Any]()

    def work(self, order: Order, n: int, deliver: Deliver) -> None:
        """Answers an order with `n` workers. Raises what `deliver` raises, and ModelError where a
        worker cannot open the model.
        """
        ray, tasks = self._ray, order.tasks
        with Progress("Loading"):
            idle = deque(self._new() for _ in range(n))
            self._get([worker.ready.remote() for worker in idle])
        todo = deque(parts(order, n * _PARTS))
        at_work = dict[Any, tuple[Any, Part]]()
        while todo or at_work:
            while todo and idle:
                worker, part = idle.popleft(), todo.popleft()
                asked = worker.answer.remote(part.places, [tasks[i] for i in part.places])
                at_work[asked] = worker, part
            for asked in ray.wait([*at_work], timeout=_GLANCE)[0]:
                worker, part = at_work.pop(asked)
                try:
                    (results,) = self._get([asked])
                except ray.exceptions.RayActorError:
                    self._alive.remove(worker)
                    worker = self._new()
                    todo.extendleft(self._again(part, tasks, deliver))
                else:
                    for place, answer, problem in results:
                        deliver(tasks[place].entry, answer, problem)
                idle.append(worker)

    def _again(self, part: Part, tasks: Sequence[Task], deliver: Deliver) -> list[Part]:
        """What is asked again of a part that its worker did not survive."""
        if len(part.places) == 1 and part.deaths + 1 == _DEATHS:
            problem = f"{_DEATHS} workers that were asked about it died; the cluster's log says why"
            deliver(tasks[part.places[0]].entry, None, problem)
            return []
        n = plural(len(part.places), "conversation")
        click.echo(f"A worker died; {n} that it had are asked again", err=True)
        return part.again()

    def _new(self) -> Any:
        self._alive.append(self._class.remote(*self._arguments))
        return self._alive[-1]

    def _get(self, asked: Sequence[Any]) -> list[Any]:
        """What was asked for. Raises the worker's own error instead of Ray's around it."""
        ray = self._ray
        try:
            found: list[Any] = ray.get(list(asked))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ag.AloraError):
                raise error.cause from None
            raise
        except ray.exceptions.ActorDiedError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, ag.AloraError):
                raise cause from None
            raise
        return found

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._alive:
            with contextlib.suppress(Exception):
                self._ray.kill(worker)
        self._alive.clear()


@contextlib.contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected."""
    try:
        import ray
    except ModuleNotFoundError:
        raise ag.InputError(
            "--ray needs Ray, which is not installed: pip install 'alora-gguf[ray]'"
        ) from None
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of GPUs
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
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
