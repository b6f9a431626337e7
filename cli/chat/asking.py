"""Asks intrinsics: those that were asked for, and those that watch, while a reply begins."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from alora_gguf import CancelledError, CancelToken, Chat, IntrinsicCall, IntrinsicResult
from alora_gguf.engine.scheduler import Barrier
from alora_gguf.errors import AloraError

from .watching import Watched


@dataclass(frozen=True, slots=True)
class Failed:
    """An intrinsic that could not be asked, and why."""

    name: str
    error: AloraError


Verdict = IntrinsicResult | Failed


def ask_each(
    chat: Chat, calls: Sequence[IntrinsicCall], cancel: CancelToken | None
) -> list[Verdict]:
    """Asks all in one batch; one that cannot be asked does not keep the others from it. Raises
    CancelledError.
    """
    if len(calls) > 1:
        try:
            return list(chat.invoke_many(calls, cancel=cancel))
        except CancelledError:
            raise
        except AloraError:
            pass  # one of them is at fault: each alone
    return [_ask_one(chat, call, cancel) for call in calls]


def _ask_one(chat: Chat, call: IntrinsicCall, cancel: CancelToken | None) -> Verdict:
    try:
        return chat.invoke(call, cancel=cancel)
    except CancelledError:
        raise
    except AloraError as error:
        return Failed(call.name, error)


def unasked(watched: Sequence[Watched]) -> list[Verdict]:
    """What there is of those that were stopped before they answered."""
    return [Failed(each.name, CancelledError("stopped before it answered")) for each in watched]


class Asking:
    """Watching intrinsics that are asked about what the user said while the reply begins: guards in
    one thread, so that they keep it waiting no longer than they need, and the others in another.
    """

    def __init__(self, chat: Chat, watched: Sequence[Watched], cancel: CancelToken) -> None:
        """`chat` ends with what the user said, and may go on. The reply's first decode has to
        follow: all of these share a batch.
        """
        self._watched = watched
        self.guards = [each for each in watched if each.is_guard]
        groups = [self.guards, [each for each in watched if not each.is_guard]]
        self._gate = chat.model._runtime.engine.scheduler.barrier(
            sum(map(bool, groups)) + 1, cancel
        )
        self._calls: list[_Call] = []
        try:
            for group in filter(None, groups):
                self._calls.append(_Call(chat.fork(), group, cancel, self._gate))
            for call in self._calls:
                call.start()
        except BaseException:
            self._gate.open()
            for call in self._calls:
                call.chat.close()
            raise

    def reply_begins(self) -> None:
        """Nobody has to wait for the reply any more, begun or failed."""
        self._gate.open()

    @property
    def guards_spoke(self) -> bool:
        """Whether all guards have answered, or failed to."""
        return not (self.guards and self._calls[0].is_alive())

    def stopped_by(self) -> Verdict | None:
        """The first guard's verdict that lets no reply pass, once all have spoken. Raises
        CancelledError.
        """
        verdicts = self._calls[0].wait() if self.guards else []
        for guard, verdict in zip(self.guards, verdicts, strict=True):
            if not _lets_pass(guard, verdict):
                return verdict
        return None

    def verdicts(self) -> tuple[Verdict, ...]:
        """All of them in order; of others than guards that were cancelled, that they were."""
        found: dict[int, Verdict] = {}
        for call in self._calls:
            try:
                verdicts = call.wait()
            except CancelledError:
                verdicts = unasked(call.watched)
            found.update(zip(map(id, call.watched), verdicts, strict=True))
        return tuple(found[id(each)] for each in self._watched)

    def join(self) -> None:
        """Waits for the end, whatever it is."""
        self._gate.open()
        for call in self._calls:
            call.join()


def _lets_pass(guard: Watched, verdict: Verdict) -> bool:
    if isinstance(verdict, Failed) or verdict.error is not None:
        return False
    return guard.passes(verdict.value)


class _Call(threading.Thread):
    """Asks a group of intrinsics about a chat, which is closed then."""

    def __init__(
        self, chat: Chat, watched: Sequence[Watched], cancel: CancelToken, gate: Barrier
    ) -> None:
        super().__init__(daemon=True)
        self.chat, self.watched = chat, watched
        self._cancel, self._gate = cancel, gate
        self._found: list[Verdict] | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        calls = [IntrinsicCall(each.name) for each in self.watched]
        try:
            self._found = ask_each(self.chat, calls, self._cancel)
        except BaseException as error:  # the one who waits raises it
            self._error = error
        finally:
            self._gate.leave()
            self.chat.close()

    def wait(self) -> list[Verdict]:
        """The answers. Raises what asking raised."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._found or []
