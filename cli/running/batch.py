"""From conversations to answers: measures them, opens a model that has room for them, asks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from alora_gguf.cli.progress import Progress

from alora_gguf.chat.tokenizer import Tokenizer
from alora_gguf.errors import AloraError
from alora_gguf.model import Model
from alora_gguf.options import ContextOptions

from .answers import Answer
from .beginnings import Order, in_order
from .conversations import Entry
from .measure import Task, measure
from .plan import Plan
from .work import Outcome, work

_ROWS: Final = 8  # tokens that a batch has at least while replies are written
_CELLS: Final = 4096  # that are enough, unless one conversation needs more
_STEP: Final = 256  # a cache has a multiple of this many cells
_SEQUENCES: Final = 256  # the most that llama.cpp has
_LONGEST: Final = 400  # characters of a problem

Deliver = Callable[[Entry, Answer | None, str], None]
"""Called with what came of an entry: an answer, or none and why."""


@dataclass(frozen=True)
class Settings:
    """How to compute: cells of the cache (None: as many as are needed), threads, conversations at a
    time (None: so many that batches are worth while), layers on the GPU (all if negative), and
    whether llama.cpp's log is shown.
    """

    n_ctx: int | None = None
    n_threads: int | None = None
    jobs: int | None = None
    n_gpu_layers: int = 0
    verbose: bool = False

    def at_a_time(self, plan: Plan) -> int:
        """Conversations at a time."""
        return self.jobs or max(2, -(-_ROWS // max(1, len(plan.intrinsics))))


def answer_all(plan: Plan, entries: Iterable[Entry], settings: Settings, deliver: Deliver) -> None:
    """Answers all entries; `deliver` is called once for each, in any order, on this thread. Raises
    ModelError and AdapterError where nothing can be asked, and what `deliver` raises.
    """
    tasks = _measured(plan, entries, settings, deliver)
    if not tasks:
        return
    order = in_order([task.tokens for task in tasks])

    def over(outcome: Outcome) -> None:
        deliver(outcome.task.entry, outcome.answer, shortened(outcome.problem))

    jobs = min(settings.at_a_time(plan), len(tasks))
    n_ctx = settings.n_ctx or cells(tasks, order, jobs)
    options = ContextOptions(
        n_ctx=n_ctx,
        n_threads=settings.n_threads,
        n_seq_max=_sequences(plan, order, jobs),
        n_pooled=0,  # what is shared is known beforehand, and kept while it is needed
        max_adapters=max(1, len(plan.adapters)),
    )
    with _loaded(plan, options, settings) as model:
        for each in plan.intrinsics:
            model.set_contract(each.name, each.contract)
        work(model, plan, tasks, order, jobs=jobs, deliver=over)


def _loaded(plan: Plan, options: ContextOptions, settings: Settings) -> Model:
    with Progress("Loading") as progress:
        return Model(
            plan.base,
            adapters=plan.adapters,
            options=options,
            n_gpu_layers=settings.n_gpu_layers,
            verbose=settings.verbose,
            progress=progress.fraction,
        )


def _measured(
    plan: Plan, entries: Iterable[Entry], settings: Settings, deliver: Deliver
) -> list[Task]:
    """The tasks; what cannot be asked is delivered."""
    tasks = []
    with Tokenizer(plan.base, plan.template) as tokenizer:
        limit = settings.n_ctx or tokenizer.n_trained
        for entry in entries:
            if entry.conversation is None:
                deliver(entry, None, shortened(entry.problem))
                continue
            try:
                task = measure(tokenizer, plan, entry, entry.conversation)
            except AloraError as error:
                deliver(entry, None, shortened(str(error)))
                continue
            if limit is not None and task.least > limit:
                deliver(entry, None, _too_long(task, limit, given=settings.n_ctx is not None))
            else:
                tasks.append(task)
    return tasks


def _too_long(task: Task, limit: int, *, given: bool) -> str:
    whose = "as --n-ctx says" if given else "for which the model was trained"
    return (
        f"is too long: its {len(task.tokens)} tokens and what is asked need {task.least} cells, "
        f"and the cache has {limit}, {whose}; --n-ctx {_rounded(task.least)} makes room"
    )


def shortened(problem: str) -> str:
    """A message without the end of what it quotes at too great a length."""
    return problem if len(problem) <= _LONGEST else f"{problem[: _LONGEST - 1]}…"


def cells(tasks: Sequence[Task], order: Order, jobs: int) -> int:
    """Cells of a cache in which `jobs` conversations can be worked on at a time, if that takes no
    more than 4096; else as many of those as the longest conversation needs.
    """
    longest, wanted = max(task.least for task in tasks), 0
    for first in range(max(1, len(tasks) - jobs + 1)):
        numbers = list(islice(order.order, first, first + jobs))
        need = sum(each.own for each in {each for n in numbers for each in order.path(n)})
        for number in numbers:
            beginning = order.beginnings[number]
            need += tasks[number].most - (0 if beginning is None else beginning.end)
        wanted = max(wanted, need)
    return _rounded(max(longest, min(wanted, _CELLS)))


def _rounded(n: int) -> int:
    return -(-n // _STEP) * _STEP


def _sequences(plan: Plan, order: Order, jobs: int) -> int:
    """Each conversation has one, each of its intrinsics one; those that are shared come on top."""
    return min(_SEQUENCES, jobs * (2 + len(plan.intrinsics)) + order.most_open())
