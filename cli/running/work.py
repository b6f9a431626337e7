"""Works on conversations, several at a time on one model, whose calls share batches: what several
begin with is read once and forked by each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Final

from alora_gguf.chat.chat import Chat
from alora_gguf.errors import AloraError, CancelledError
from alora_gguf.model import Model
from alora_gguf.options import CancelToken, Timings
from alora_gguf.session import Session

from .answers import Answer, answer
from .beginnings import Beginning, Order
from .measure import Task
from .plan import Plan

_GLANCE: Final = 0.2  # seconds: where an interrupt cannot end waiting, it is seen after so long


@dataclass(frozen=True)
class Outcome:
    """What came of a task: an answer, or what went wrong."""

    task: Task
    answer: Answer | None
    problem: str = ""


@dataclass(slots=True)
class _Trunk:
    """A beginning's session.

    forks    conversations and longer beginnings that are still to go on from it
    working  conversations that are not over
    counted  whether the room counts its cells
    opened   whether it was read, or could not be
    """

    forks: int = 0
    working: int = 0
    counted: bool = False
    opened: bool = False
    session: Session | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


def work(
    model: Model,
    plan: Plan,
    tasks: Sequence[Task],
    order: Order,
    *,
    jobs: int,
    deliver: Callable[[Outcome], None],
) -> None:
    """Works on all tasks, up to `jobs` at a time; `deliver` is called on this thread with each that
    is over. Raises what it raises, and ends what is under way then.
    """
    workers = _Workers(model, plan, tasks, order)
    threads = [
        threading.Thread(target=workers.run, name=f"run-{i}", daemon=True)
        for i in range(min(jobs, len(tasks)))
    ]
    left = len(tasks)
    try:
        for thread in threads:
            thread.start()
        while left:
            outcome = workers.next_outcome()
            if outcome is not None:
                left -= 1
                deliver(outcome)
    finally:
        workers.stop()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


class _Workers:
    """What the threads share. `_turn` is held by the one that takes the next task and waits for
    room, so that none overtakes; `_room` guards all numbers.
    """

    def __init__(self, model: Model, plan: Plan, tasks: Sequence[Task], order: Order) -> None:
        self._model, self._plan, self._tasks, self._order = model, plan, tasks, order
        self._cancel = CancelToken()
        self._results = SimpleQueue[Outcome | BaseException]()
        self._turn, self._room = threading.Lock(), threading.Condition()
        self._left = iter(order.order)
        self._cells = 0  # that tasks under way need, and the beginnings that they go on from
        self._running = 0
        self._trunks = dict[Beginning, _Trunk]()
        for number in order.order:
            path = order.path(number)
            for at, beginning in enumerate(path):
                if beginning not in self._trunks:
                    self._trunks[beginning] = _Trunk()
                    if at:
                        self._trunks[path[at - 1]].forks += 1
                self._trunks[beginning].working += 1
            if path:
                self._trunks[path[-1]].forks += 1

    # On the main thread --------------------------------------------------------------------------

    def next_outcome(self) -> Outcome | None:
        """The next one; None after a while. Raises what ended a thread."""
        try:
            found = self._results.get(timeout=_GLANCE)
        except Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        return found

    def stop(self) -> None:
        """Ends all threads soon."""
        self._cancel.cancel()
        with self._room:
            self._room.notify_all()

    # On each thread ------------------------------------------------------------------------------

    def run(self) -> None:
        """Works until there is nothing left."""
        try:
            while (number := self._take()) is not None:
                task = self._tasks[number]
                try:
                    outcome = Outcome(task, self._answer(number))
                except CancelledError:
                    return
                except AloraError as error:
                    outcome = Outcome(task, None, str(error))
                finally:
                    self._leave(number)
                self._results.put(outcome)
        except BaseException as error:  # the main thread says it
            self._results.put(error)

    def _take(self) -> int | None:
        """The next task, when there is room for it; None if there is none or all ends."""
        with self._turn:
            number = next(self._left, None)
            if number is None or self._stopped():
                return None
            with self._room:
                trunks = [(each, self._trunks[each]) for each in self._order.path(number)]
                need = self._own(number)
                need += sum(each.own for each, trunk in trunks if not trunk.counted)
                while self._running and self._cells + need > self._model.n_ctx:
                    self._room.wait()
                    if self._stopped():
                        return None
                for _, trunk in trunks:
                    trunk.counted = True
                self._cells += need
                self._running += 1
                return number

    def _stopped(self) -> bool:
        return self._cancel.cancelled

    def _leave(self, number: int) -> None:
        """Gives a task's room back."""
        with self._room:
            self._cells -= self._own(number)
            for beginning in self._order.path(number):
                trunk = self._trunks[beginning]
                trunk.working -= 1
                if not trunk.working:
                    self._cells -= beginning.own
            self._running -= 1
            self._room.notify_all()

    def _own(self, number: int) -> int:
        """Cells that a task needs beyond what it goes on from."""
        beginning = self._order.beginnings[number]
        shared = 0 if beginning is None else beginning.end
        return min(self._tasks[number].most, self._model.n_ctx) - shared

    def _answer(self, number: int) -> Answer:
        conversation = self._tasks[number].conversation
        session, before = self._session(number)
        try:
            chat = Chat(
                session,
                self._model._contracts,
                self._model._chat_template(self._plan.template),
                messages=conversation.messages,
                documents=conversation.documents,
            )
            return answer(chat, conversation, self._plan, before, self._cancel)
        finally:
            session.close()

    # Beginnings ----------------------------------------------------------------------------------

    def _session(self, number: int) -> tuple[Session, Timings]:
        """A session that holds what the task shares with others, and what it took to read that if
        nobody had.
        """
        before, parent = Timings(), None
        for beginning in self._order.path(number):
            trunk = self._trunks[beginning]
            with trunk.lock:
                if not trunk.opened:
                    before = self._open(trunk, beginning, parent, before)
            parent = trunk
        session = self._fork(parent)
        return session, before

    def _open(
        self, trunk: _Trunk, beginning: Beginning, parent: _Trunk | None, before: Timings
    ) -> Timings:
        """Reads a beginning; returns what that and what came `before` it took."""
        session = None
        try:
            session = self._fork(parent)
            tokens = self._tasks[beginning.example].tokens[: beginning.end].tolist()
            read = session.sync(tokens, adapter=self._plan.reader, cancel=self._cancel)
            trunk.session = session
        except CancelledError:
            raise
        except AloraError:  # each reads it for itself then, or fails for itself
            read = Timings()
        finally:
            trunk.opened = True
            if session is not None and trunk.session is None:
                session.close()
        return Timings(evaluated=before.evaluated + read.evaluated, total=before.total + read.total)

    def _fork(self, trunk: _Trunk | None) -> Session:
        """A session that goes on from a trunk, which is closed after the last one."""
        if trunk is None:
            return self._model.session()
        with trunk.lock:
            trunk.forks -= 1
            parent = trunk.session
            if parent is None:
                return self._model.session()
            try:
                return parent.fork()
            finally:
                if not trunk.forks:
                    parent.close()
