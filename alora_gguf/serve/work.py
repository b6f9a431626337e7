"""Requests at work: each on a thread of its own, so many at a time, a bounded line behind them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final

import alora_gguf as ag

from .errors import BusyError, TooLongError

_END: Final = object()
_GLANCE: Final = 0.1  # seconds after which who waits looks whether its client is gone


class Job:
    """One request at work. What its thread tells comes out of it on the event loop."""

    def __init__(self, watch: Callable[[object], None]) -> None:
        """`watch` sees what it tells, on the thread that does."""
        self._watch = watch
        self.cancel: Final = ag.CancelToken()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[object] = asyncio.Queue()
        self._begun = asyncio.Event()
        self._first: object = None
        self._error: BaseException | None = None
        self._future: Future[None] | None = None
        self.answered = False  # whether a part of the answer was told

    def tell(self, event: object) -> None:
        """Hands an event on; from any thread. Who reads slowly holds up nobody: a reply's text is
        bounded by its tokens, and waits here.
        """
        self._watch(event)
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._put, event)

    def _put(self, event: object) -> None:
        if not self._begun.is_set():
            self._first = event
            self._begun.set()
        self._events.put_nowait(event)

    async def begun(self) -> None:
        """Waits until the first event is there. Raises what the work raised before it."""
        await self._begun.wait()
        if self._first is _END and self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[object]:
        """The events. Raises what the work raised."""
        while (event := await self._events.get()) is not _END:
            yield event
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Nobody wants it any more: cancels it, or takes it out of the line. Idempotent."""
        self.cancel.cancel()
        if self._future is not None:
            self._future.cancel()

    def _run(self, work: Callable[[Job], None]) -> None:
        try:
            self.cancel.check()
            work(self)
        except BaseException as error:
            self._error = error
        self.tell(_END)


class Desk:
    """Takes jobs: `n_parallel` run at a time, and `n_waiting` may wait."""

    def __init__(self, n_parallel: int, n_waiting: int) -> None:
        """`watch` may be set to what sees all that jobs tell."""
        self.watch: Callable[[object], None] = lambda _: None
        self.n_parallel, self.n_waiting = n_parallel, n_waiting
        self._threads = ThreadPoolExecutor(n_parallel, thread_name_prefix="alora_gguf-serve")
        self._jobs: set[Job] = set()
        self._running = self._begun = self._ended = 0
        self._stuck: list[Job] = []  # those that found the cache full, and hold nothing of it
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    @property
    def running(self) -> int:
        """Jobs at work."""
        return self._running

    @property
    def waiting(self) -> int:
        """Jobs in line."""
        return max(0, len(self._jobs) - self._running)

    def start(self, work: Callable[[Job], None], over: Callable[[], None]) -> Job:
        """Begins `work`, or puts it in line; `over` is called when it has ended, begun or not.
        Raises BusyError if the line is full.
        """
        job = Job(self.watch)
        with self._lock:
            if len(self._jobs) >= self.n_parallel + self.n_waiting:
                raise BusyError(
                    f"{self._running} requests are being answered and {self.waiting} wait, as many "
                    "as this server takes; try again in a moment"
                )
            self._jobs.add(job)

        def run() -> None:
            with self._lock:
                self._running += 1
                self._begun += 1
            try:
                job._run(work)
            finally:
                with self._lock:
                    self._running -= 1
                    self._ended += 1
                    self._changed.notify_all()

        def ended(_: object) -> None:
            over()
            with self._lock:
                self._jobs.discard(job)
                self._changed.notify_all()

        job._future = self._threads.submit(run)
        job._future.add_done_callback(ended)
        return job

    def patiently(self, job: Job, work: Callable[[], None]) -> None:
        """Does a job's work, which may find the cache full of others' conversations: then again
        when one of them has ended, unless the job has told a part of its answer. Raises
        TooLongError where it is full of this job's alone.
        """
        while True:
            others, ended = self._others(), self._ended
            try:
                work()
                return
            except ag.CacheFullError as error:
                if job.answered:
                    raise
                if others == self._others() == (0, self._begun):
                    raise TooLongError(str(error)) from error
            self._wait_for_others(job, ended)
            job.cancel.check()

    def _others(self) -> tuple[int, int]:
        """How many jobs hold cells beside the caller's, at most; and how many ever began."""
        with self._lock:
            return self._running - len(self._stuck) - 1, self._begun

    def _wait_for_others(self, job: Job, ended: int) -> None:
        """Until more than `ended` jobs have. If all found the cache full, they take turns."""
        with self._lock:
            self._stuck.append(job)
            self._changed.notify_all()
            while not (
                job.cancel.cancelled
                or ended != self._ended
                or (len(self._stuck) == self._running and self._stuck[0] is job)
            ):
                self._changed.wait(_GLANCE)
            self._stuck.remove(job)

    def wait_idle(self, seconds: float) -> bool:
        """Waits until nothing is at work or in line; says whether that came in time."""
        with self._lock:
            return self._changed.wait_for(lambda: not self._jobs, seconds)

    def cancel_all(self) -> None:
        """Cancels all jobs."""
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            job.stop()

    def close(self) -> None:
        """Cancels all jobs and waits for them."""
        self.cancel_all()
        self._threads.shutdown()
