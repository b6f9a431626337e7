"""Asking about one conversation, and what comes of it as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from alora_gguf.chat.asking import IntrinsicResult
from alora_gguf.chat.chat import Chat
from alora_gguf.options import CancelToken, IntrinsicCall, Timings

from .conversations import Conversation
from .plan import Plan


@dataclass(frozen=True)
class Written:
    """A reply of the assistant's."""

    text: str
    finish_reason: str
    timings: Timings


@dataclass(frozen=True)
class Answer:
    """What came of a conversation.

    read     what reading it took, where no reply did that
    reply    None if none was wanted
    results  of the intrinsics, in order
    """

    read: Timings | None
    reply: Written | None
    results: tuple[IntrinsicResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = {}
        if self.read is not None:
            found["read"] = asdict(self.read)
        if self.reply is not None:
            found["reply"] = asdict(self.reply)
        if self.results:
            found["results"] = {each.name: _result(each) for each in self.results}
        return found

    def value(self) -> Any:
        """The value of a single intrinsic, those of several by name (null where there is none), or
        the reply's text where none was asked.
        """
        values = {each.name: None if each.error else each.value for each in self.results}
        if not values:
            return None if self.reply is None else self.reply.text
        return values if len(values) > 1 else next(iter(values.values()))

    def problems(self) -> Iterator[str]:
        """What is wrong with results, one sentence each."""
        for each in self.results:
            if each.error is not None:
                yield f"{each.name}: {each.error}"


def _result(result: IntrinsicResult) -> dict[str, Any]:
    first = {"error": str(result.error)} if result.error else {"value": result.value}
    return {
        **first,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "timings": asdict(result.timings),
    }


def answer(
    chat: Chat, conversation: Conversation, plan: Plan, before: Timings, cancel: CancelToken
) -> Answer:
    """Asks what the plan says. `before` is what it took already to read the conversation's
    beginning, which the chat holds. Raises what Chat's methods do.
    """
    read = written = None
    if plan.reply is None:
        read = _with(before, chat.read(cancel=cancel))
    else:
        reply = chat.reply(plan.reply, cancel=cancel)
        cancel.check()  # a cancelled reply ends where it is
        timings = _with(before, reply.timings)
        written = Written(reply.text, reply.finish_reason or "stop", timings)
    calls = [
        IntrinsicCall(each.name, conversation.arguments_of(each.name)) for each in plan.intrinsics
    ]
    results = chat.invoke_many(calls, cancel=cancel) if calls else []
    return Answer(read, written, tuple(results))


def _with(before: Timings, timings: Timings) -> Timings:
    """One reading that began earlier: what was read then is what is reused now."""
    first = timings.first_token
    return replace(
        timings,
        reused=max(0, timings.reused - before.evaluated),
        evaluated=timings.evaluated + before.evaluated,
        first_token=None if first is None else first + before.total,
        total=timings.total + before.total,
    )
