"""Rounds of questions about contexts, as many as the time allows; every sample that is complete.

One round asks about every context, shortest first: the plain LoRA in an empty cache, then the aLoRA
and the base on the cells that the base has computed; in the next round it is the other way round.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from alora_gguf.cli.measure import median, timed

from alora_gguf import CancelledError, CancelToken, Invocation, __version__

from .results import Asked, AtContext, BenchResult, Decoding, Memory, Method, Together
from .subjects import ANSWER, LONG_ANSWER, N_FORKS, WARM, Subjects

if TYPE_CHECKING:
    from alora_gguf import Session, Timings

_ASKS: Final = 3  # in one round of those that take little
_ANSWERS: Final = 2  # likewise, of those whose speed is measured
_TICK: Final = 0.2  # seconds
_GROWTH: Final = 1.3  # reading takes n**1.3: linear in most of a model, quadratic in attention
_STEADY: Final = 1.5  # at most this much between the shortest time and the median
_USUAL: Final = 2048  # rows that need one context take the longest up to here


@dataclass(slots=True)
class _Asks:
    """What becomes an Asked."""

    reused: int = 0
    evaluated: int = 0
    first: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)

    def add(self, timings: Timings) -> None:
        self.reused, self.evaluated = timings.reused, timings.evaluated
        self.first.append(timings.first_token or timings.total)
        self.total.append(timings.total)

    def asked(self) -> Asked | None:
        if not self.total:
            return None
        return Asked(self.reused, self.evaluated, tuple(self.first), tuple(self.total))


@dataclass(slots=True)
class _Context:
    """What becomes an AtContext; and how long a round of it took last, for reading and the rest."""

    read: list[float] = field(default_factory=list)
    alora: _Asks = field(default_factory=_Asks)
    lora: _Asks = field(default_factory=_Asks)
    base: _Asks = field(default_factory=_Asks)
    reading: float = 0.0
    asking: float = 0.0


class Measuring:
    """Measures subjects in up to `rounds` rounds and up to `seconds`; result() is what there is."""

    def __init__(self, subjects: Subjects, *, rounds: int, seconds: int) -> None:
        self._subjects = subjects
        self._model = subjects.model
        self._n_rounds, self._seconds = rounds, seconds
        self._contexts = {n: _Context() for n in subjects.choice.contexts}
        self._left_out: list[int] = []
        self._at: int | None = None  # the context of the rows that need one
        self._at_once: dict[int, list[float]] = {n: [] for n in _counts(len(subjects.slots))}
        self._one_by_one: dict[int, list[float]] = {n: [] for n in self._at_once}
        self._decoded: dict[bool, list[float]] = {True: [], False: []}  # with the adapter?
        self._details = 0.0  # seconds that these rows took last
        self._memory: Memory | None = None
        self._cell_nbytes = 0.0
        self._warm = _Context()
        self._cancel = CancelToken()
        self._failure: BaseException | None = None
        self._started = self._ended = time.perf_counter()

    def run(self, progress: Callable[[int, int], None]) -> None:
        """Measures; on another thread, so that neither time nor Ctrl-C waits for a batch.

        `progress` is called with tenths of seconds, passed and allowed. Raises KeyboardInterrupt,
        and what asking raises.
        """
        worker = threading.Thread(target=self._work, name="bench", daemon=True)
        self._started = time.perf_counter()
        worker.start()
        try:
            while worker.is_alive():
                worker.join(_TICK)
                passed = self._passed()
                progress(int(10 * min(passed, self._seconds)), 10 * self._seconds)
                if passed > self._seconds:
                    self._cancel.cancel()
        finally:
            self._cancel.cancel()
            worker.join()
            self._ended = time.perf_counter()
        if self._failure is not None:
            raise self._failure

    def result(self, *, interrupted: bool = False) -> BenchResult:
        """All that was measured, once run() has ended in one way or another."""
        subjects = self._subjects
        choice = subjects.choice
        return BenchResult(
            version=__version__,
            base=choice.base,
            adapters=choice.adapters,
            method=Method(
                threads=subjects.threads,
                gpu_layers=subjects.gpu_layers,
                seed=subjects.seed,
                rounds=self._n_rounds,
                seconds=self._seconds,
                answer_tokens=ANSWER,
                asked=choice.asked.name,
            ),
            contexts=tuple(self._found_contexts()),
            together=tuple(self._found_together()),
            decoding=self._found_decoding(),
            memory=self._memory,
            notes=(*choice.notes, *self._notes(interrupted)),
            elapsed=self._ended - self._started,
            interrupted=interrupted,
        )

    def least(self) -> float:
        """Seconds that one round of the shortest context probably takes."""
        return self._estimate(min(self._contexts))

    # Rounds --------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._warm_up()
            for turn in range(self._n_rounds):
                for n in [n for n in self._contexts if n not in self._left_out]:
                    if self._fits(n) or (turn == 0 and n == min(self._contexts)):
                        self._round(n, cached_first=turn % 2 == 1)
                    elif turn == 0:
                        self._left_out = [m for m in self._contexts if m >= n]
                        break
        except CancelledError:
            pass
        except BaseException as error:
            self._failure = error

    def _fits(self, n: int) -> bool:
        details = self._details if n == self._at else 0.0
        return self._passed() + self._estimate(n) + details <= self._seconds

    def _estimate(self, n: int) -> float:
        """Seconds that a round of this context probably takes, by one of a shorter context."""
        known = {m: c for m, c in self._contexts.items() if m <= n and c.reading and c.asking}
        m, context = max(known.items(), key=lambda item: item[0], default=(WARM, self._warm))
        growth: float = max(1.0, n / m) ** _GROWTH
        return context.reading * growth + context.asking

    def _passed(self) -> float:
        return time.perf_counter() - self._started

    def _warm_up(self) -> None:
        """Everything once after a short context: weights come into memory, graphs are built; how
        long it takes then says what to expect.
        """
        self._ask_anew(self._subjects.plain, WARM, 2)
        with self._model.session() as session:
            read = session.sync(self._subjects.tokens[:WARM], cancel=self._cancel)
            self._weigh(session)
            self._ask_in_turns(session, self._warm, 1)
        self._warm.reading = 2 * read.total
        self._warm.asking = _ASKS * sum(self._warm.alora.total + self._warm.base.total)

    def _round(self, n: int, *, cached_first: bool) -> None:
        context = self._contexts[n]
        if cached_first:
            self._ask_cached(n, context)
            self._ask_plain(n, context)
        else:
            self._ask_plain(n, context)
            self._ask_cached(n, context)

    # One context ---------------------------------------------------------------------------------

    def _ask_plain(self, n: int, context: _Context) -> None:
        """The plain LoRA, which reads everything, in an empty cache."""
        context.lora.add(self._ask_anew(self._subjects.plain, n, ANSWER))

    def _ask_anew(self, adapter: str | None, n: int, max_tokens: int) -> Timings:
        subjects = self._subjects
        invocation = Invocation(
            adapter,
            prompt=(*subjects.tokens[:n], *subjects.question),
            max_tokens=max_tokens,
            sampling=subjects.sampling,
        )
        with self._model.session() as session:
            return session.invoke(invocation, cancel=self._cancel).timings

    def _ask_cached(self, n: int, context: _Context) -> None:
        """The aLoRA and the base, after the base has read the context."""
        with self._model.session() as session:
            read = session.sync(self._subjects.tokens[:n], cancel=self._cancel)
            context.read.append(read.total)
            context.asking, _ = timed(lambda: self._ask_in_turns(session, context, _ASKS))
            context.reading = context.lora.total[-1] + read.total  # it was asked before, once
            if self._is_for_details(n):
                self._at = n
                self._details, _ = timed(lambda: self._measure_details(session, n))

    def _ask_in_turns(self, session: Session, context: _Context, n: int) -> None:
        for _ in range(n):
            if self._subjects.asked is not None:
                context.alora.add(self._ask(session, self._subjects.asked, ANSWER))
            context.base.add(self._ask(session, None, ANSWER))

    def _invocation(self, slot: str | None, max_tokens: int) -> Invocation:
        subjects = self._subjects
        question = subjects.question if slot is None else subjects.questions[slot]
        return Invocation(slot, question, max_tokens=max_tokens, sampling=subjects.sampling)

    def _ask(self, session: Session, slot: str | None, max_tokens: int) -> Timings:
        verdict = session.invoke(self._invocation(slot, max_tokens), cancel=self._cancel)
        return verdict.timings

    # Rows that need one context ------------------------------------------------------------------

    def _is_for_details(self, n: int) -> bool:
        """Whether these rows are measured here: after the longest usual context for which there
        is time.
        """
        if self._at is not None:
            return n == self._at
        longer = [m for m in self._contexts if n < m <= _USUAL]
        return not longer or not self._fits(longer[0])

    def _measure_details(self, session: Session, n: int) -> None:
        if self._subjects.slots:
            self._measure_together(session)
            self._decode(lambda slot: self._ask(session, slot, LONG_ANSWER), self._subjects.asked)
            if self._memory is None and self._model.rewinds:
                self._memory = self._measure_memory(session, n)
        else:
            self._decode(lambda name: self._ask_anew(name, WARM, LONG_ANSWER), self._subjects.plain)

    def _measure_together(self, session: Session) -> None:
        slots = self._subjects.slots
        for n, samples in self._at_once.items():
            samples.append(self._time_together(session, slots[:n]))
        alone = [self._time_together(session, [slot]) for slot in slots]
        for n, samples in self._one_by_one.items():
            samples.append(sum(alone[:n]))

    def _time_together(self, session: Session, slots: Sequence[str]) -> float:
        invocations = [self._invocation(slot, ANSWER) for slot in slots]
        return timed(lambda: session.invoke_many(invocations, cancel=self._cancel))[0]

    def _decode(self, ask: Callable[[str | None], Timings], adapter: str | None) -> None:
        """In turns, so that what disturbs one side for a while is seen, or disturbs both."""
        for name in _ANSWERS * (adapter, None):
            speed = ask(name).tokens_per_second
            if speed is not None:
                self._decoded[name is not None].append(speed)

    def _measure_memory(self, session: Session, n: int) -> Memory:
        """Forks with a question and an answer each, all at the same time."""
        subjects = self._subjects
        with ExitStack() as stack:
            apart = 0
            for i, slot in enumerate(subjects.slots[:N_FORKS]):
                fork = stack.enter_context(session.fork())
                own = (*subjects.questions[slot], *subjects.tokens[1 : 1 + ANSWER])
                # the same weights in two slots would share cells, but not at different scales
                fork.append(own, adapter=slot, scale=1 - i / 64, cancel=self._cancel)
                apart += fork.cached
            used = self._model.cache_report().used
        return Memory(
            n_tokens=n,
            n_forks=N_FORKS,
            cells=used,
            cells_apart=apart,
            cell_nbytes=self._cell_nbytes,
        )

    def _weigh(self, session: Session) -> None:
        """What a cell takes, by the difference that more cells make."""
        whole, n = len(session.state()), len(session.tokens)
        with self._model.session() as half:
            half.sync(self._subjects.tokens[: n // 2], cancel=self._cancel)
            self._cell_nbytes = (whole - len(half.state())) / (n - n // 2)

    # Results -------------------------------------------------------------------------------------

    def _found_contexts(self) -> list[AtContext]:
        found = [
            AtContext(n, tuple(c.read), c.alora.asked(), c.lora.asked(), c.base.asked())
            for n, c in self._contexts.items()
        ]
        return [row for row in found if row.alora or row.lora or row.base]

    def _found_together(self) -> list[Together]:
        return [
            Together(self._at or 0, n, tuple(at_once), tuple(self._one_by_one[n]))
            for n, at_once in self._at_once.items()
            if at_once and self._one_by_one[n]
        ]

    def _found_decoding(self) -> Decoding | None:
        adapter, base = self._decoded[True], self._decoded[False]
        if not adapter or not base:
            return None
        n = self._at if self._subjects.slots else WARM
        return Decoding(n or 0, tuple(adapter), tuple(base))

    def _is_complete(self) -> bool:
        """Whether every row has a sample of every side, but for contexts that were left out."""
        return self._found_decoding() is not None and all(
            c.lora.total and c.base.total and (c.alora.total or not self._subjects.slots)
            for n, c in self._contexts.items()
            if n not in self._left_out
        )

    def _spread(self) -> float:
        """How far the median of some figure's samples is from the best of them, as a factor."""
        sides = [side for c in self._contexts.values() for side in (c.alora, c.lora, c.base)]
        figures = [side.first for side in sides] + [side.total for side in sides]
        figures += [*self._at_once.values(), *self._one_by_one.values()]
        figures += [[1 / speed for speed in speeds] for speeds in self._decoded.values()]
        return max((median(each) / min(each) for each in figures if each), default=1)

    def _notes(self, interrupted: bool) -> list[str]:
        notes = []
        if self._subjects.slots and not self._model.rewinds:
            notes.append("memory was not measured: this base's memory is more than cells")
        if (spread := self._spread()) > _STEADY:
            notes.append(
                f"times vary, medians are up to {spread:.1f} times the shortest; something else "
                "may be keeping this machine busy"
            )
        if not interrupted and any(len(c.lora.total) == 1 for c in self._contexts.values()):
            notes.append(
                "some figures are of one round, in which a disturbance would not be noticed; more "
                "--rounds and --time make them surer"
            )
        if self._left_out:
            lengths = ", ".join(map(str, self._left_out))
            first = self._left_out[0]
            notes.append(
                f"left out for lack of time: {lengths} tokens; a round of {first} takes about "
                f"{self._estimate(first):.0f} s, more than was left of --time {self._seconds}"
            )
        if interrupted:
            notes.append("interrupted: this is what had been measured")
        elif not self._is_complete():
            notes.append(f"the time was up before all was measured; --time was {self._seconds}")
        return notes


def _counts(n: int) -> list[int]:
    """How many to ask at once: powers of two, and all."""
    powers = [1 << i for i in range(n.bit_length()) if 1 << i < n]
    return [*powers, n] if n else []
