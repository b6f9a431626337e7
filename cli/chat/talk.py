"""A chat as people lead it in a terminal: turns, what watches them, settings. Shows nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from alora_gguf.cli.render import plural
from alora_gguf.cli.verdicts import Good

import alora_gguf as ag

from .asking import Beside, Turn, Verdict, Watched, answered, ask_each, unasked, withheld_by
from .room import check_documents, moved, needed, newest

if TYPE_CHECKING:
    from .view import View


@dataclass(slots=True)
class Talk:
    """One conversation and its settings. Every method leaves it as it was when it raises.

    turns   those that were made here and are still there, the latest last
    reused  how many of the chat's tokens were in the cache before it was last read
    reopen  opens the same base once more, with other ContextOptions or adapters
    drop_oldest  whether the oldest turns go where the cache has no room for the next one
    steering     the vectors that act on replies, and their scales
    """

    model: ag.Model
    chat: ag.Chat
    options: ag.GenerateOptions = field(default_factory=ag.GenerateOptions)
    watched: list[Watched] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    reused: int = 0
    reopen: Callable[..., ag.Model] | None = None
    drop_oldest: bool = False
    steering: dict[str, float] = field(default_factory=dict)

    @property
    def replying(self) -> ag.GenerateOptions:
        """How replies are made: the options, with the vectors beside what else computes them."""
        if not self.steering:
            return self.options
        by = self.options.adapter
        one = {} if by is None else {by: 1.0} if isinstance(by, str) else by
        return replace(self.options, adapter={**one, **self.steering})

    # Turns ---------------------------------------------------------------------------------------

    def say(self, text: str, view: View, cancel: ag.CancelToken, *, instead: bool = False) -> Turn:
        """A whole turn, perhaps `instead` of the last one. Intrinsics that judge the question are
        asked while the reply begins, in the same batches; where one of them is a guard, nothing is
        shown before all guards are passed.

        Raises what Chat.say() does; CancelledError only if there is nothing of a reply yet.
        """
        if not text.strip():
            raise ag.InputError("there is nothing to say in an empty message")
        if instead:
            self._check_turns(1)
        if self.drop_oldest:
            self._drop_oldest(text, view, cancel, instead=instead)
        with self._draft(instead=instead) as draft:
            turn = self._reply(draft, text, view, cancel)
            if turn.withheld is None:
                self._go_on_with(draft, turn.timings.reused)
        if turn.withheld is not None:
            return turn
        if instead:
            del self.turns[-1:]
        turn = self._judged(turn, view, cancel)
        self.turns.append(turn)
        return turn

    @contextlib.contextmanager
    def _draft(self, *, instead: bool) -> Iterator[ag.Chat]:
        """A fork of the conversation, which is closed unless it becomes the conversation. One
        `instead` of the last turn may have the room of all cells that it does not share: else both
        would have to fit into the cache. What gave way is read again where it was for nothing.
        """
        draft = self.chat.fork()
        try:
            if instead:
                draft.rewind(1)
                self.chat.session.release(draft.session.cached)
            yield draft
        finally:
            if self.chat is not draft:
                draft.close()
                if instead:
                    with contextlib.suppress(ag.AloraError):  # the next call will say so
                        self.chat.read()

    def _reply(self, draft: ag.Chat, text: str, view: View, cancel: ag.CancelToken) -> Turn:
        asked = [each for each in self.watched if each.place == "question"]
        guards = ", ".join(each.call.label for each in asked if each.is_guard)
        with view.waiting(f"waiting for {guards or 'the reply'}"):
            reply = draft.say(
                text,
                self.replying,
                stream=True,
                intrinsics=[each.call for each in asked],
                cancel=cancel,
                progress=view.reading,
            )
            try:
                beside = list(zip(asked, reply.intrinsics, strict=True))
                withheld = _show(reply, [pair for pair in beside if pair[0].is_guard], view.piece)
                if withheld is None:
                    view.reply_over(reply.text)
                verdicts = tuple(self._beside(beside, view))
            except BaseException:
                cancel.cancel()
                wait(reply.intrinsics)
                raise
        reason = "full" if reply.finish_reason == "error" else reply.finish_reason or "closed"
        if withheld is not None:
            return Turn(text, "", "withheld", reply.timings, verdicts, withheld)
        return Turn(text, reply.text, reason, reply.timings, verdicts)

    def _beside(self, asked: Sequence[Beside], view: View) -> Iterator[Verdict]:
        """What intrinsics say that were asked beside the reply, guards or not."""
        if not asked:
            return
        with view.waiting(_asking([each for each, _ in asked if not each.is_guard])):
            yield from (_known(*each) for each in asked)

    def _judged(self, turn: Turn, view: View, cancel: ag.CancelToken) -> Turn:
        """The turn with what intrinsics say of the answer."""
        asked = [each for each in self.watched if each.place == "answer"]
        if not asked or turn.finish_reason not in ("stop", "length"):
            return turn
        try:
            with view.waiting(_asking(asked)):
                n = len(self.chat.messages)  # NAME@answer counts, whatever the contract says
                calls = [replace(each.call, upto=n) for each in asked]
                verdicts = ask_each(self.chat, calls, cancel)
        except ag.CancelledError:  # the turn is there, and stays
            verdicts = unasked(asked)
        return replace(turn, verdicts=(*turn.verdicts, *verdicts))

    def last_said(self) -> str:
        """What the user said last. Raises InputError."""
        self._check_turns(1)
        return next(each.content for each in reversed(self.chat.messages) if each.role == "user")

    def rewind(self, turns: int) -> None:
        """Takes back the last turns. Raises InputError if there are not so many."""
        self.chat.rewind(self._check_turns(turns))
        del self.turns[max(0, len(self.turns) - turns) :]
        self.reused = self.chat.session.cached

    def clear(self) -> None:
        """Takes back all that was said."""
        system = self.chat.messages[: self.chat.system is not None]
        self.reused = self.chat.replace(system).reused
        self.turns.clear()

    def resize(self, n_ctx: int, view: View, cancel: ag.CancelToken) -> tuple[int, ag.Timings]:
        """Goes on in a KV cache of `n_ctx` cells, without the oldest turns if they do not fit.
        Returns how many those were, and what reading the rest took, if it was read. Raises what
        Model() does.
        """
        old, said = self.model, self.chat.messages
        kept = newest(self.chat, said, n_ctx - self._ahead(n_ctx))
        least = needed(self.chat, kept if _turns_in(kept) else [*kept, ag.Message("user", "?")])
        if least >= n_ctx:
            raise ag.InputError(f"/ctx {n_ctx}: is too small for the {least} tokens that stay")
        adapters = {name: file.path for name, file in old.adapters.items() if file.path}
        reopen = self.reopen or partial(ag.Model, old.path, n_threads=old.n_threads)
        model = reopen(adapters=adapters, n_ctx=n_ctx)
        try:
            for name, contract in intrinsics_of(old).items():
                model.set_contract(name, contract)
            chat = moved(self.chat, kept, model)
            timings = chat.replace(kept, cancel=cancel, progress=view.reading)
        except BaseException:
            model.close()
            raise
        self._go_on_with(chat, timings.reused)
        self.model = model
        old.close()
        self._forget(kept)
        return _turns_in(said) - _turns_in(kept), timings

    def _drop_oldest(self, text: str, view: View, cancel: ag.CancelToken, *, instead: bool) -> None:
        """Makes room for what is going to be said, perhaps `instead` of the last turn."""
        said, n_ctx = self.chat.messages, self.model.n_ctx
        starts = [i for i, message in enumerate(said) if message.role == "user"]
        last = starts[-1] if instead else len(said)
        wanted = [*said[:last], ag.Message("user", text)]
        if not starts or needed(self.chat, wanted) + self._ahead(n_ctx) <= n_ctx:
            return
        # what is left is re-read, so half of the cache is made free: the next time comes later
        kept = newest(self.chat, wanted, n_ctx // 2)
        if dropped := _turns_in(wanted) - _turns_in(kept):
            left = [*kept[:-1], *said[last:]]
            timings = self.change(view.reading, cancel, messages=left)
            self._forget(left)
            view.note(
                f"dropped the oldest {plural(dropped, 'turn')} to make room; "
                f"{plural(timings.evaluated, 'token')} re-read"
            )

    def _forget(self, left: Sequence[ag.Message]) -> None:
        """Only turns that are left can be shown."""
        del self.turns[: max(0, len(self.turns) - _turns_in(left))]

    def _ahead(self, n_ctx: int) -> int:
        """Cells that are left to the next reply."""
        return min(self.options.max_tokens, n_ctx // 4)

    def _check_turns(self, turns: int) -> int:
        there = _turns_in(self.chat.messages)
        if not there:
            raise ag.InputError("nothing was said yet")
        if turns > there:
            are = "is" if there == 1 else "are"
            raise ag.InputError(f"there {are} only {plural(there, 'turn')}")
        return turns

    # The ground it stands on ---------------------------------------------------------------------

    def change(
        self,
        on_reading: Callable[[int, int], None],
        cancel: ag.CancelToken | None,
        *,
        messages: Sequence[ag.Message] | None = None,
        documents: Sequence[ag.Document] | None = None,
    ) -> ag.Timings:
        """Changes documents or the system message. What was said is re-read, which is what the
        timings are of; where nothing was, it is only made sure that the template takes them.
        Raises what Chat.replace() does, and InputError for documents that have no room.
        """
        if documents:
            check_documents(self.chat, documents, "/ctx")
        self.chat.fork().close()  # its cells stay while nobody needs their room: for a change back
        read = partial(self.chat.replace, messages, documents, cancel=cancel, progress=on_reading)
        try:
            try:
                timings = read()
            except ag.CacheFullError:  # beside what there is, which may give way
                self.chat.session.release(0)
                timings = read()
        except BaseException:
            with contextlib.suppress(ag.AloraError):  # the next call will say so
                self.chat.read()
            raise
        self.reused = timings.reused
        return timings

    def replace_chat(self, chat: ag.Chat) -> None:
        """Goes on with another conversation, which was not read but restored."""
        self._go_on_with(chat, chat.session.cached)
        self.turns.clear()

    def close(self) -> None:
        """Ends the conversation."""
        self.chat.close()

    def _go_on_with(self, chat: ag.Chat, reused: int) -> None:
        self.chat.close()
        self.chat, self.reused = chat, reused

    # Asking --------------------------------------------------------------------------------------

    def ask(
        self,
        calls: Iterable[str | ag.IntrinsicCall],
        cancel: ag.CancelToken | None = None,
    ) -> list[Verdict]:
        """Asks intrinsics about the last question or answer, whichever they judge, in one batch;
        one that cannot be asked does not keep the others from it. Raises CancelledError, InputError
        if nothing was said.
        """
        self._check_turns(1)
        asked = [ag.IntrinsicCall(each) if isinstance(each, str) else each for each in calls]
        return ask_each(self.chat, asked, cancel)

    def good_of(self, name: str) -> Good | None:
        """Which end of an intrinsic's number is the good one, if its contract says so."""
        contract = intrinsics_of(self.model).get(name)
        return None if contract is None else contract.good


def contract_of(model: ag.Model, name: str) -> ag.Contract | None:
    """An adapter's contract; None if it has none. Raises ContractError for one that is broken."""
    try:
        return model.contract(name)
    except ag.ContractError as error:
        if model.adapter(name).io_yaml is None:
            return None
        raise ag.ContractError(f"{error}; or give it another: /contract {name}=FILE") from error


def intrinsics_of(model: ag.Model) -> dict[str, ag.Contract]:
    """The loaded adapters that have a contract."""
    found = {}
    for name in model.adapters:
        with contextlib.suppress(ag.ContractError):
            found[name] = model.contract(name)
    return found


def _turns_in(messages: Sequence[ag.Message]) -> int:
    return sum(message.role == "user" for message in messages)


def _asking(watched: Sequence[Watched]) -> str:
    return f"asking {', '.join(each.call.label for each in watched)}"


def _pieces(reply: ag.Reply) -> Iterator[str]:
    """The reply as it comes, to where the cache is full. Raises CancelledError if it was cancelled
    before there was anything of it.
    """
    try:
        yield from reply
    except ag.CacheFullError:
        if not reply.text:
            raise
    if reply.finish_reason == "cancelled" and not reply.text:
        raise ag.CancelledError("the reply was cancelled before it began")


def _show(
    reply: ag.Reply, guards: Sequence[Beside], on_piece: Callable[[str], None]
) -> Verdict | None:
    """Shows the reply from when all guards let it pass; returns what the one says that does not."""
    held: list[str] = []
    for piece in _pieces(reply):
        held.append(piece)
        if all(future.done() for _, future in guards):
            if withheld_by(guards) is not None:
                break
            on_piece("".join(held))
            held.clear()
    reply.close()
    withheld = withheld_by(guards)
    if held and withheld is None:
        on_piece("".join(held))
    return withheld


def _known(watched: Watched, future: Future[ag.IntrinsicResult]) -> Verdict:
    """What an intrinsic said, or that it was stopped."""
    try:
        return answered(watched.call, future.result)
    except ag.CancelledError:
        return unasked([watched])[0]
