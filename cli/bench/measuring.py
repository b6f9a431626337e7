"""Rounds of questions about contexts, as many as the time allows; every sample that is complete.

One round asks about every context, shortest first: the plain LoRA in an empty cache, then the aLoRA
and the base on the cells that the base has computed; in the next round it is the other way round.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Final

import alora_gguf as ag

from .result import SIDES, Result, add_ratios, at_context
from .subjects import ANSWER, LONG_ANSWER, N_FORKS, WARM, Subjects

_ASKS: Final = 3  # in one round of those that take little
_ANSWERS: Final = 2  # likewise, of those whose speed is measured
_TICK: Final = 0.2  # seconds
_GROWTH: Final = 1.3  # reading takes n**1.3: linear in most of a model, quadratic in attention
_STEADY: Final = 1.5  # at most this much between the shortest time and the median
_USUAL: Final = 2048  # rows that need one context take the longest up to here


class Measuring:
    """Measures subjects in up to `rounds` rounds and up to `seconds`."""

    def __init__(self, subjects: Subjects, *, rounds: int, seconds: int) -> None:
        self._subjects, self._model = subjects, subjects.model
        self._n_rounds, self._seconds = rounds, seconds
        self._contexts = {n: at_context(n) for n in subjects.choice.contexts}
        self._together: list[Result] = [
            {"n_tokens": 0, "n_adapters": n, "at_once": [], "one_by_one": []}
            for n in sorted({1, 2, 4, 8, len(subjects.slots)} if subjects.slots else ())
        ]
        self._decoding: Result = {"n_tokens": WARM, "adapter": [], "base": []}
        self._memory: Result | None = None
        self._cell_nbytes = 0.0
        self._took = {WARM: (0.0, 0.0)}  # seconds of a context's last round: reading, asking
        self._left_out: list[int] = []
        self._at: int | None = None  # the context of the rows that need one
        self._details = 0.0  # seconds that these rows took last
        self._cancel = ag.CancelToken()
        self._failure: BaseException | None = None
        self._started = time.perf_counter()

    def run(self, progress: Callable[[int, int], None]) -> Result:
        """All that could be measured; on another thread, so that neither time nor Ctrl-C waits for
        a batch. After Ctrl-C that is what there was.

        `progress` is called with tenths of seconds, passed and allowed. Raises KeyboardInterrupt
        and InputError if nothing was measured, and what asking raises.
        """
        worker = threading.Thread(target=self._work, name="bench", daemon=True)
        self._started = time.perf_counter()
        interrupted = False
        worker.start()
        try:
            while worker.is_alive():
                worker.join(_TICK)
                passed = self._passed()
                progress(int(10 * min(passed, self._seconds)), 10 * self._seconds)
                if passed > self._seconds:
                    self._cancel.cancel()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self._cancel.cancel()
            worker.join()
        if self._failure is not None and not interrupted:
            raise self._failure
        result = self._result(time.perf_counter() - self._started, interrupted)
        if result["contexts"]:
            return result
        if interrupted:
            raise KeyboardInterrupt
        least = self._estimate(min(self._contexts))
        takes = f", a round of the shortest context takes about {least:.0f} s" if least else ""
        raise ag.InputError(
            f"--time {self._seconds}: nothing could be measured in that time{takes}; give more "
            "--time, or shorter --contexts"
        )

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
        except ag.CancelledError:
            pass
        except BaseException as error:
            self._failure = error

    def _fits(self, n: int) -> bool:
        details = self._details if n == self._at else 0.0
        return self._passed() + self._estimate(n) + details <= self._seconds

    def _estimate(self, n: int) -> float:
        """Seconds that a round of this context probably takes, by one of a shorter context."""
        m = max((m for m in self._took if m <= n), default=WARM)
        reading, asking = self._took[m]
        growth: float = max(1.0, n / m) ** _GROWTH
        return reading * growth + asking

    def _passed(self) -> float:
        return time.perf_counter() - self._started

    def _warm_up(self) -> None:
        """Everything once after a short context: weights come into memory, graphs are built; how
        long it takes then says what to expect.
        """
        self._ask_anew(self._subjects.plain, WARM, 2)
        warm = at_context(WARM)
        with self._model.session() as session:
            read = session.sync(self._subjects.tokens[:WARM], cancel=self._cancel)
            self._weigh(session)
            self._ask_in_turns(session, warm, 1)
        asked = [total for way in ("alora", "base") if warm[way] for total in warm[way]["total"]]
        self._took[WARM] = 2 * read.total, _ASKS * sum(asked)

    def _round(self, n: int, *, cached_first: bool) -> None:
        sides = [self._ask_plain, self._ask_cached]
        for ask in reversed(sides) if cached_first else sides:
            ask(self._contexts[n])

    # One context ---------------------------------------------------------------------------------

    def _ask_plain(self, context: Result) -> None:
        """The plain LoRA, which reads everything, in an empty cache."""
        _add(context, "lora", self._ask_anew(self._subjects.plain, context["n_tokens"], ANSWER))

    def _ask_anew(self, adapter: str | None, n: int, max_tokens: int) -> ag.Timings:
        prompt = (*self._subjects.tokens[:n], *self._subjects.question)
        sampling = self._subjects.sampling
        invocation = ag.Invocation(adapter, prompt=prompt, max_tokens=max_tokens, sampling=sampling)
        with self._model.session() as session:
            return session.invoke(invocation, cancel=self._cancel).timings

    def _ask_cached(self, context: Result) -> None:
        """The aLoRA and the base, after the base has read the context."""
        n = context["n_tokens"]
        with self._model.session() as session:
            read = session.sync(self._subjects.tokens[:n], cancel=self._cancel)
            context["read"].append(read.total)
            asked = self._passed()
            self._ask_in_turns(session, context, _ASKS)
            before = context["lora"]["total"][-1]  # in this round or the last
            self._took[n] = before + read.total, self._passed() - asked
            if self._is_for_details(n):
                self._at, begun = n, self._passed()
                self._measure_details(session, n)
                self._details = self._passed() - begun

    def _ask_in_turns(self, session: ag.Session, context: Result, n: int) -> None:
        for _ in range(n):
            for slot in list(self._subjects.slots)[:1]:
                _add(context, "alora", self._ask(session, slot, ANSWER))
            _add(context, "base", self._ask(session, None, ANSWER))

    def _invocation(self, slot: str | None, max_tokens: int) -> ag.Invocation:
        subjects = self._subjects
        question = subjects.question if slot is None else subjects.slots[slot]
        return ag.Invocation(slot, question, max_tokens=max_tokens, sampling=subjects.sampling)

    def _ask(self, session: ag.Session, slot: str | None, max_tokens: int) -> ag.Timings:
        return session.invoke(self._invocation(slot, max_tokens), cancel=self._cancel).timings

    # Rows that need one context ------------------------------------------------------------------

    def _is_for_details(self, n: int) -> bool:
        """Whether these rows are measured here: after the longest usual context for which there
        is time.
        """
        if self._at is not None:
            return n == self._at
        longer = [m for m in self._contexts if n < m <= _USUAL]
        return not longer or not self._fits(longer[0])

    def _measure_details(self, session: ag.Session, n: int) -> None:
        slots = list(self._subjects.slots)
        if not slots:
            self._decode(lambda name: self._ask_anew(name, WARM, LONG_ANSWER), self._subjects.plain)
            return
        for row in self._together:
            row["at_once"].append(self._time_together(session, slots[: row["n_adapters"]]))
        alone = [self._time_together(session, [slot]) for slot in slots]
        for row in (*self._together, self._decoding):
            row["n_tokens"] = n
        for row in self._together:
            row["one_by_one"].append(sum(alone[: row["n_adapters"]]))
        self._decode(lambda slot: self._ask(session, slot, LONG_ANSWER), slots[0])
        if self._memory is None and self._model.rewinds:
            self._memory = self._measure_memory(session, n)

    def _time_together(self, session: ag.Session, slots: Sequence[str]) -> float:
        invocations = [self._invocation(slot, ANSWER) for slot in slots]
        started = time.perf_counter()
        session.invoke_many(invocations, cancel=self._cancel)
        return time.perf_counter() - started

    def _decode(self, ask: Callable[[str | None], ag.Timings], adapter: str) -> None:
        """In turns, so that what disturbs one side for a while is seen, or disturbs both."""
        for name, side in _ANSWERS * ((adapter, "adapter"), (None, "base")):
            speed = ask(name).tokens_per_second
            if speed is not None:
                self._decoding[side].append(speed)

    def _measure_memory(self, session: ag.Session, n: int) -> Result:
        """Cells of forks with a question and an answer each, all at the same time; and what as many
        contexts of their own would take.
        """
        apart = 0
        with ExitStack() as stack:
            for i, (slot, question) in enumerate([*self._subjects.slots.items()][:N_FORKS]):
                fork = stack.enter_context(session.fork())
                own = (*question, *self._subjects.tokens[1 : 1 + ANSWER])
                # the same weights in two slots would share cells, but not at different scales
                fork.append(own, adapter=slot, scale=1 - i / 64, cancel=self._cancel)
                apart += fork.cached
            used = self._model.cache_report().used
        counts = {"n_tokens": n, "n_forks": N_FORKS, "cells": used, "cells_apart": apart}
        return {**counts, "cell_nbytes": self._cell_nbytes}

    def _weigh(self, session: ag.Session) -> None:
        """What a cell takes, by the difference that more cells make."""
        whole, n = len(session.state()), len(session.tokens)
        with self._model.session() as half:
            half.sync(self._subjects.tokens[: n // 2], cancel=self._cancel)
            self._cell_nbytes = (whole - len(half.state())) / (n - n // 2)

    # Results -------------------------------------------------------------------------------------

    def _result(self, elapsed: float, interrupted: bool) -> Result:
        """All that was measured, once the worker has ended in one way or another."""
        choice = self._subjects.choice
        method = {"rounds": self._n_rounds, "seconds": self._seconds, "answer_tokens": ANSWER}
        return add_ratios({
            "version": ag.__version__,
            "base": choice.base,
            "adapters": choice.adapters,
            "method": {**self._subjects.method, **method, "asked": choice.asked["name"]},
            "contexts": [row for row in self._contexts.values() if _asked(row)],
            "together": [row for row in self._together if row["at_once"] and row["one_by_one"]],
            "decoding": self._decoding if self._has_decoded() else None,
            "memory": self._memory,
            "notes": [*choice.notes, *self._notes(interrupted)],
            "elapsed": elapsed,
            "interrupted": interrupted,
        })  # fmt: skip

    def _has_decoded(self) -> bool:
        return bool(self._decoding["adapter"] and self._decoding["base"])

    def _is_complete(self) -> bool:
        """Whether every row has a sample of every side, but for contexts that were left out."""
        n_sides = 3 if self._subjects.slots else 2
        rows = [row for n, row in self._contexts.items() if n not in self._left_out]
        return self._has_decoded() and all(len(_asked(row)) == n_sides for row in rows)

    def _spread(self) -> float:
        """How far the median of some figure's samples is from the best of them, as a factor."""
        sides = [side for row in self._contexts.values() for side in _asked(row)]
        figures = [side[what] for side in sides for what in ("first_token", "total")]
        figures += [row[how] for row in self._together for how in ("at_once", "one_by_one")]
        figures += [[1 / s for s in self._decoding[side]] for side in ("adapter", "base")]
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
        if not interrupted and any(
            row["lora"] and len(row["lora"]["total"]) == 1 for row in self._contexts.values()
        ):
            notes.append(
                "some figures are of one round, in which a disturbance would not be noticed; more "
                "--rounds and --time make them surer"
            )
        if self._left_out:
            lengths, first = ", ".join(map(str, self._left_out)), self._left_out[0]
            notes.append(
                f"left out for lack of time: {lengths} tokens; a round of {first} takes about "
                f"{self._estimate(first):.0f} s, more than was left of --time {self._seconds}"
            )
        if interrupted:
            notes.append("interrupted: this is what had been measured")
        elif not self._is_complete():
            notes.append(f"the time was up before all was measured; --time was {self._seconds}")
        return notes


def _add(row: Result, way: str, timings: ag.Timings) -> None:
    """Notes one question that was asked about a context."""
    side = row[way] = row[way] or {"first_token": [], "total": []}
    side |= {"reused": timings.reused, "evaluated": timings.evaluated}
    side["first_token"].append(timings.first_token or timings.total)
    side["total"].append(timings.total)


def _asked(row: Result) -> list[Result]:
    """The sides that were asked about a context."""
    return [row[way] for way in SIDES if row[way]]
