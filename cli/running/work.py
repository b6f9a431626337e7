"""From conversations to answers: sizes them, opens a model that has room for them, and asks, those
one after another that begin alike, several at a time.

What two or more begin with is read once, before the first of them, and held until the last has
begun; the engine's prefix cache serves the others from there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import accumulate, pairwise
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

from alora_gguf.cli.options import Attention, CacheType
from alora_gguf.cli.progress import Progress

import alora_gguf as ag

from .conversations import Conversation, Entry
from .plan import Plan

_ROWS: Final = 8  # tokens that a batch has at least while replies are written
_CELLS: Final = 4096  # that are enough, unless one conversation needs more
_STEP: Final = 256  # a cache has a multiple of this many cells
_SEQUENCES: Final = 256  # the most that llama.cpp has
_HELD: Final = 16  # beginnings at a time, each a sequence
MIN_SHARED: Final = 16  # tokens: fewer are read as fast as they are shared
_LONGEST: Final = 400  # characters of a problem
GLANCE: Final = 0.2  # seconds: where an interrupt cannot end waiting, it is seen after so long


@dataclass(frozen=True)
class Settings:
    """How to compute: cells of the cache (None: as many as are needed) and their types, threads,
    conversations at a time (None: so many that batches are worth while), layers on devices (all if
    negative), of RPC servers too, attention on the CPU, where beginnings are kept for other runs,
    and whether llama.cpp's log is shown.
    """

    n_ctx: int | None = None
    n_threads: int | None = None
    jobs: int | None = None
    n_gpu_layers: int = 0
    rpc: tuple[str, ...] = ()
    type_k: CacheType = "f16"
    type_v: CacheType = "f16"
    attention: Attention = "auto"
    prompt_cache: Path | None = None
    verbose: bool = False


@dataclass(frozen=True)
class Task:
    """A conversation to work on."""

    entry: Entry
    conversation: Conversation
    size: ag.ChatSize


@dataclass(frozen=True)
class Answer:
    """What came of a conversation.

    read     what reading it took, where no reply did that
    reply    text, finish_reason and timings; None if none was wanted
    results  of the intrinsics, in order
    """

    read: ag.Timings | None
    reply: dict[str, Any] | None
    results: tuple[ag.IntrinsicResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = {}
        if self.read is not None:
            found["read"] = asdict(self.read)
        if self.reply is not None:
            found["reply"] = self.reply
        if self.results:
            found["results"] = {each.label: each.to_dict() for each in self.results}
        return found

    def value(self) -> Any:
        """The value of a single intrinsic, those of several by name (null where there is none), or
        the reply's text where none was asked.
        """
        values = self.values()
        return values if len(values) > 1 else next(iter(values.values()), None)

    def values(self) -> dict[str, Any]:
        """Of each intrinsic, or of the reply where none was asked; None where there is no value."""
        if not self.results and self.reply is not None:
            return {"reply": self.reply["text"]}
        return {each.label: None if each.error else each.value for each in self.results}

    def problems(self) -> list[str]:
        """What is wrong with results, one sentence each."""
        return [f"{each.label}: {each.error}" for each in self.results if each.error is not None]


Deliver = Callable[[Entry, Answer | None, str], None]
"""Called with what came of an entry: an answer, or none and why."""
AnswerAll = Callable[[Plan, ag.Tokenizer, Iterable[Entry], Settings, Deliver], None]
"""answer_all(), here or somewhere else."""


def answer_all(
    plan: Plan,
    tokenizer: ag.Tokenizer,
    entries: Iterable[Entry],
    settings: Settings,
    deliver: Deliver,
) -> None:
    """Answers all entries; `deliver` is called once for each, in any order, on this thread. Raises
    ModelError and AdapterError where nothing can be asked, and what `deliver` raises.
    """
    tasks = list(sized(plan, tokenizer, entries, settings, deliver))
    if not tasks:
        return
    order = Order(tasks)
    room = Room.of(plan, order, settings)
    with Progress("Loading") as progress:
        model = open_model(plan, settings, room, progress.fraction)
    with model:
        ask_in_order(model, plan, order, room, deliver)


@dataclass(frozen=True)
class Room:
    """What a model needs for conversations: those at a time, cells of the cache, and sequences."""

    jobs: int
    n_ctx: int
    n_seq_max: int

    @classmethod
    def of(cls, plan: Plan, order: Order, settings: Settings) -> Room:
        """For an order's, by what settings leave open."""
        asked = max(1, len(plan.asks))
        jobs = min(settings.jobs or max(2, -(-_ROWS // asked)), len(order.tasks))
        n_seq_max = min(_SEQUENCES, jobs * (1 + asked) + _HELD)
        return cls(jobs, settings.n_ctx or order.cells(jobs), n_seq_max)


def open_model(
    plan: Plan,
    settings: Settings,
    room: Room,
    progress: Callable[[float], None] | None = None,
) -> ag.Model:
    """The plan's base with its adapters and contracts. Raises ModelError and AdapterError."""
    options = ag.ContextOptions(
        n_ctx=room.n_ctx,
        n_threads=settings.n_threads,
        attention=settings.attention,
        type_k=settings.type_k,
        type_v=settings.type_v,
        n_seq_max=room.n_seq_max,
        n_pooled=0,  # what is shared is known beforehand, and held while it is needed
        max_adapters=max(1, len(plan.adapters)),
    )
    model = ag.Model(
        plan.base,
        adapters=plan.adapters,
        options=options,
        n_gpu_layers=settings.n_gpu_layers,
        rpc=settings.rpc,
        special_tokens_in_text=plan.special_tokens_in_text,
        prompt_cache=settings.prompt_cache,
        verbose=settings.verbose,
        progress=progress,
    )
    try:
        for name, contract in plan.contracts.items():
            model.set_contract(name, contract)
    except BaseException:
        model.close()
        raise
    return model


def ask_in_order(model: ag.Model, plan: Plan, order: Order, room: Room, deliver: Deliver) -> None:
    """Asks all of an order; `deliver` as in answer_all()."""
    _Work(model, plan, order).run(room.jobs, deliver)


def _shortened(problem: str) -> str:
    """A message without the end of what it quotes at too great a length."""
    return problem if len(problem) <= _LONGEST else f"{problem[: _LONGEST - 1]}…"


def sized(
    plan: Plan,
    tokenizer: ag.Tokenizer,
    entries: Iterable[Entry],
    settings: Settings,
    deliver: Deliver,
) -> Iterator[Task]:
    """The tasks; what cannot be asked is delivered."""
    limit = settings.n_ctx or tokenizer.n_ctx_train
    for entry in entries:
        said, problem = entry.conversation, entry.problem
        if said is not None:
            try:
                size = tokenizer.size(
                    said.messages,
                    said.documents,
                    calls=plan.calls(said),
                    reply=plan.reply,
                    n_ctx=limit,
                )
            except ag.AloraError as error:
                problem = str(error)
            else:
                if limit is None or size.least <= limit:
                    yield Task(entry, said, size)
                    continue
                problem = _too_long(size, limit, tokenizer.n_ctx_train)
        deliver(entry, None, _shortened(problem))


def _too_long(size: ag.ChatSize, limit: int, trained: int | None) -> str:
    whose = "for which the model was trained" if limit == trained else "as --n-ctx says"
    way_out = f"--n-ctx {_rounded(size.least)} makes room"
    if trained is not None and size.least > trained:
        way_out = f"shorten it: {way_out}, but the model was not trained for so many"
    return (
        f"is too long: its {len(size.tokens)} tokens and what is asked need {size.least} cells, "
        f"and the cache has {limit}, {whose}; {way_out}"
    )


def _rounded(n: int) -> int:
    return -(-n // _STEP) * _STEP


class Order:
    """Conversations in the order of their tokens, so that those that begin alike are neighbours:
    groups that share nothing stay in the order they were given in.

    tasks       in that order
    shared      how many tokens each has in common with the one before it
    beginnings  how many tokens it is the first of two or more to begin with: the shortest first,
                and each by so much longer that reading it once is worth while
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        by_tokens = sorted(range(len(tasks)), key=lambda i: tasks[i].size.tokens)
        groups = list[list[int]]()
        for i in by_tokens:
            if not groups or tasks[groups[-1][-1]].size.shared(tasks[i].size) < MIN_SHARED:
                groups.append([])
            groups[-1].append(i)
        self.tasks = [tasks[i] for group in sorted(groups, key=min) for i in group]
        self.shared = [0, *(a.size.shared(b.size) for a, b in pairwise(self.tasks))]
        self.beginnings, read = list[list[int]](), list[int]()
        for place, shared in enumerate(self.shared):
            read = [end for end in read if end <= shared]  # what this one goes on from
            new = []
            for end in self._shared_from(place, read[-1] if read else 0):
                if end >= (read[-1] if read else 0) + MIN_SHARED:
                    read.append(end)
                    new.append(end)
            self.beginnings.append(new)

    def _shared_from(self, place: int, held: int) -> list[int]:
        """With how many tokens this one and those after it begin, where that is worth while."""
        least, found = len(self.tasks[place].size.tokens) - 1, set[int]()  # one is left to read
        for shared in self.shared[place + 1 :]:
            least = min(least, shared)
            if least < held + MIN_SHARED:
                break
            found.add(least)
        return sorted(found)

    def needed(self, places: Sequence[int]) -> int:
        """Cells that these conversations, in order, take together at most."""
        shared = (min(self.shared[a + 1 : b + 1]) for a, b in pairwise(places))
        return sum(self.tasks[place].size.most for place in places) - sum(shared)

    def cells(self, jobs: int) -> int:
        """Cells of a cache in which `jobs` conversations can be worked on at a time, if that takes
        no more than 4096; else as many of those as the longest conversation needs.
        """
        most = (task.size.most for task in self.tasks)
        sums = [0, *accumulate(a - b for a, b in zip(most, self.shared, strict=True))]
        windows = zip(sums, sums[min(jobs, len(self.tasks)) :], self.shared, strict=False)
        wanted = max(end - begin + shared for begin, end, shared in windows)
        longest = max(task.size.least for task in self.tasks)
        return _rounded(max(longest, min(wanted, _CELLS)))


class _Work:
    """What the threads share. `_turn` is held by the one that takes the next conversation and reads
    what others begin with, too, so that it is there for them; `_room` guards the numbers.
    """

    def __init__(self, model: ag.Model, plan: Plan, order: Order) -> None:
        self._model, self._plan, self._order = model, plan, order
        self._cancel = ag.CancelToken()
        self._turn, self._room = threading.Lock(), threading.Condition()
        self._left = iter(range(len(order.tasks)))
        self._at_work = list[int]()  # places
        self._reading = 0  # conversations that go on from what is held
        self._held = list[tuple[int, ag.Session]]()  # beginnings, each goes on from the one before

    def run(self, jobs: int, deliver: Deliver) -> None:
        """Works on all, up to `jobs` at a time; `deliver` is called on this thread. Raises what it
        raises, and ends what is under way then.
        """
        done = SimpleQueue[Future[tuple[Task, Answer | None, str]]]()
        pool = ThreadPoolExecutor(jobs, thread_name_prefix="run")
        left = len(self._order.tasks)
        try:
            for _ in range(left):
                pool.submit(self._next).add_done_callback(done.put)
            while left:
                with suppress(Empty):
                    task, answer, problem = done.get(timeout=GLANCE).result()
                    deliver(task.entry, answer, problem)
                    left -= 1
        finally:
            self._cancel.cancel()
            with self._room:
                self._room.notify_all()
            pool.shutdown(cancel_futures=True)
            self._release(0)

    # On each thread ------------------------------------------------------------------------------

    def _next(self) -> tuple[Task, Answer | None, str]:
        """One conversation, and why it has no answer; once more, alone, if it did not fit beside
        others.
        """
        place, spent = -1, list[ag.Timings]()
        try:
            try:
                with ExitStack() as turn:
                    turn.enter_context(self._turn)
                    place = next(self._left)
                    answer = self._answer(place, spent, turn)
            except ag.CacheFullError:
                with self._turn:
                    self._release(0)
                    answer = self._answer(place, spent)
        except (ag.CancelledError, ag.RpcError):  # which all others would say as well
            raise
        except ag.AloraError as error:
            return self._order.tasks[place], None, _shortened(str(error))
        return self._order.tasks[place], answer, ""

    def _answer(self, place: int, spent: list[ag.Timings], turn: ExitStack | None = None) -> Answer:
        """Asks what the plan says. `turn` is over when the conversation is read; without one, this
        thread keeps it, and nothing else is worked on. `spent` is what reading took so far. Raises
        what Chat does.
        """
        plan, cancel, task = self._plan, self._cancel, self._order.tasks[place]
        said, written = task.conversation, None
        with (
            self._room_for(place, alone=turn is None),
            self._model.chat(
                messages=said.messages, documents=said.documents, template=plan.template
            ) as chat,
        ):
            if plan.reader is None:
                spent.append(chat.recall(cancel=cancel))
            if turn is not None:
                self._hold_beginnings(place, spent)
            with self._room:
                self._reading += 1
            if turn is not None:
                turn.close()
            try:
                tokens = task.size.tokens
                spent.append(chat.session.sync(tokens, adapter=plan.reader, cancel=cancel))
            finally:
                with self._room:
                    self._reading -= 1
                    self._room.notify_all()
            if plan.reply is not None:
                reply = chat.reply(plan.reply, cancel=cancel)
                cancel.check()  # a cancelled reply ends where it is
                spent.append(reply.timings)
                written = {
                    "text": reply.text,
                    "finish_reason": reply.finish_reason,
                    "timings": asdict(reduce(ag.Timings.then, spent)),
                }
            read = reduce(ag.Timings.then, spent) if written is None else None
            calls = plan.calls(said)
            results = chat.invoke_many(calls, cancel=cancel) if calls else []
            return Answer(read, written, tuple(results))

    @contextmanager
    def _room_for(self, place: int, *, alone: bool) -> Iterator[None]:
        """Waits until the cache has room for this one too, or nothing else is worked on. Raises
        CancelledError.
        """

        def there() -> bool:
            if not self._at_work or self._cancel.cancelled:
                return True
            return not alone and self._order.needed([*self._at_work, place]) <= self._model.n_ctx

        with self._room:
            self._room.wait_for(there)
            self._cancel.check()
            self._at_work.append(place)
        try:
            yield
        finally:
            with self._room:
                self._at_work.remove(place)
                self._room.notify_all()

    def _hold_beginnings(self, place: int, spent: list[ag.Timings]) -> None:
        """Reads what this conversation is the first to begin with, and lets go of what it does not
        begin with: nor do those after it.
        """
        self._release(self._order.shared[place])
        tokens = self._order.tasks[place].size.tokens
        session: ag.Session | None = None
        with suppress(ag.CacheFullError):  # each reads it for itself then, or fails for itself
            for end in self._order.beginnings[place][: _HELD - len(self._held)]:
                session = self._model.session()
                read = session.sync(tokens[:end], adapter=self._plan.reader, cancel=self._cancel)
                spent.append(read)
                self._held.append((end, session))
                session = None
        if session is not None:
            session.close()

    def _release(self, end: int) -> None:
        """Lets go of the beginnings longer than `end` tokens, once nobody goes on from them."""
        if self._held and self._held[-1][0] > end:
            with self._room:
                self._room.wait_for(lambda: not self._reading)
        while self._held and self._held[-1][0] > end:
            self._held.pop()[1].close()
