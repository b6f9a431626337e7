"""How an adapter and its base are asked about one example, and how what they say is read."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import alora_gguf as ag
from alora_gguf.decide.prompts import n_options, prompts
from alora_gguf.errors import InputError
from alora_gguf.intrinsics import Contract, rewrite
from alora_gguf.intrinsics.decision import Categories
from alora_gguf.messages import Message, documents_as_text, in_messages

from .data import Example

_SPARE: Final = 16  # tokens of a reply beyond the longest right one, for other words
_SHORT: Final = 2  # characters of a token, at the least that is usual


@dataclass(frozen=True, slots=True)
class Said:
    """What was answered to one example.

    value    a category's index, a text, or what JSON can hold; None if it could not be read
    shares   the probabilities of the categories, where the answer is one
    seconds  that it took, with the conversation read before
    read     tokens that were computed for it
    reused   tokens that the cache held
    """

    value: Any
    shares: tuple[float, ...] = ()
    seconds: float = 0.0
    read: int = 0
    reused: int = 0


class Asking(ABC):
    """Asks the adapter `name` and the base. `right()` is an example's answer as values have it;
    `question` is what the base is asked, None for what the contract says.
    """

    kind: str

    def __init__(self, model: ag.Model, name: str, question: str | None, longest: int) -> None:
        self.model, self.name = model, name
        self.contract = model.contract(name)
        self._question = question
        self._limit = longest // _SHORT + _SPARE
        with model.chat(messages=["?"]) as chat:
            self._alternates = _refuses(chat, Message("user", "?"))

    @abstractmethod
    def right(self, example: Example) -> Any:
        """What is right to answer. Raises InputError for what the contract excludes."""

    @abstractmethod
    def adapter(self, chat: ag.Chat, example: Example, cancel: ag.CancelToken | None) -> Said:
        """What the adapter says about the chat."""

    @abstractmethod
    def base(self, chat: ag.Chat, example: Example, cancel: ag.CancelToken | None) -> Said:
        """What the base says when it is asked."""

    @abstractmethod
    def shown(self, example: Example, index: int) -> tuple[str, str]:
        """What the base is asked about an example that is shown to it, and what is right to say."""

    def asks(self, example: Example) -> str:
        """What the base is asked in: the question, or the contract's own instruction."""
        if self._question is not None:
            return self._question
        if self.contract.instruction is not None:
            asked = rewrite(self.contract, example.messages, example.documents, example.arguments)
            return asked.messages[-1].content
        return _default_question(self.contract)

    def turns(self, shots: Sequence[Example], example: Example) -> list[Message]:
        """The conversation behind those of `shots`, each with the question and its answer; their
        documents stand in their first messages of the user, as one chat has no two sets of them.
        """
        said: list[Message] = []
        for i, shot in enumerate(shots):
            text, answer = self.shown(shot, i)
            said += self._asked(_inlined(shot), text)
            said.append(Message("assistant", answer))
        return said + _inlined(example)

    def _asked(self, messages: Sequence[Message], text: str) -> list[Message]:
        """The messages and a question: the next one of the user, or the end of the last one where
        the template wants turns to alternate.
        """
        if not (self._alternates and messages and messages[-1].role == "user"):
            return [*messages, Message("user", text)]
        *others, last = messages
        return [*others, Message("user", f"{last.content}\n\n{text}")]


def asking(
    model: ag.Model, name: str, question: str | None = None, examples: Sequence[Example] = ()
) -> Asking:
    """How the adapter's contract is asked; where it sets no limit, the base may say half as much
    again as the longest answer of `examples`. Raises UnknownAdapterError, ContractError.
    """
    longest = max((len(_text(each.answer)) for each in examples), default=0)
    contract = model.contract(name)
    if contract.choices or contract.needs_logprobs:
        return Deciding(model, name, question, longest)
    return Writing(model, name, question, longest)


class Deciding(Asking):
    """An answer that is one of some categories, each with a probability."""

    kind = "decision"

    def __init__(self, model: ag.Model, name: str, question: str | None, longest: int) -> None:
        super().__init__(model, name, question, longest)
        self._categories = Categories.of(self.contract)
        names, yes = self._categories.names, self._categories.yes
        # the second of two is yes, as what figures.confidences() is about
        order = list(range(len(names)))
        self._order = [1 - yes, yes] if yes is not None else order
        self.names = tuple(_text(names[i]) for i in self._order)
        self.temperature_kind = "choice" if yes is None else "noul"

    def right(self, example: Example) -> int:
        """The index of the category, which stands alone or in a reply as the contract has it."""
        value = example.answer
        if _text(value) not in self.names:
            for step in self._categories.place:
                value = value.get(step) if isinstance(value, Mapping) else None
        if _text(value) not in self.names:
            raise InputError(
                f"the example of line {example.line}: its answer is {_text(example.answer)!r:.60}, "
                f"expected one of {', '.join(self.names)}"
            )
        return self.names.index(_text(value))

    def adapter(self, chat: ag.Chat, example: Example, cancel: ag.CancelToken | None) -> Said:
        """Its probabilities, whatever temperature its file has; where it writes something before
        the category, after that.
        """
        call = ag.IntrinsicCall(self.name, example.arguments)
        even = {self.temperature_kind: 1.0}
        return self._decided(chat.decide({"asked": call}, temperature=even, cancel=cancel))

    def base(self, chat: ag.Chat, example: Example, cancel: ag.CancelToken | None) -> Said:
        """Its probabilities of the same categories, as a typed question's options."""
        return self._decided(chat.decide({"asked": self._typed(example)}, cancel=cancel))

    def shown(self, example: Example, index: int) -> tuple[str, str]:
        """The question with its options, and the label of the right one."""
        question = self._typed(example)
        orders = prompts(question, n_options(question), lambda _: True)
        # each in another order, so that no place is more often right
        prompt = orders[index % len(orders)]
        right = self.names[self.right(example)]
        options = [_text(option) for option in question.options]
        if isinstance(question, ag.Predicate):
            options = list(reversed(self.names))
        label = prompt.labels[[options[i] for i in prompt.indices].index(right)]
        return prompt.text, label

    def _typed(self, example: Example) -> ag.Predicate | ag.Choice:
        asks = self.asks(example)
        if self._categories.yes is None:
            return ag.Choice(asks, dict.fromkeys(self.names))
        no, yes = self.names
        if (yes.casefold(), no.casefold()) in (("yes", "no"), ("true", "false")):
            return ag.Predicate(asks)
        return ag.Predicate(asks, true=yes, false=no)

    def _decided(self, decision: ag.Decision) -> Said:
        answer = decision["asked"]
        took = (decision.timings.total, answer.timings.evaluated, answer.timings.reused)
        shares: tuple[float, ...]
        if isinstance(answer, ag.PredicateAnswer):
            shares = (1 - answer.probability, answer.probability)
        elif isinstance(answer, ag.ChoiceAnswer):
            by_name = {_text(name): share for name, share in answer.probabilities.items()}
            shares = tuple(by_name[name] for name in self.names)
        else:
            even = (1 / len(self.names),) * len(self.names)
            return Said(None, even, *took)
        return Said(max(range(len(shares)), key=shares.__getitem__), shares, *took)


class Writing(Asking):
    """An answer that is text, an object with nothing but a text, or any other JSON."""

    def __init__(self, model: ag.Model, name: str, question: str | None, longest: int) -> None:
        super().__init__(model, name, question, longest)
        schema = self.contract.response_format
        self._field = _only_text(schema)
        self._structured = schema is not None and self._field is None
        self.kind = "json" if self._structured else "text"

    def right(self, example: Example) -> Any:
        """The text, or the value."""
        found = self._read(example.answer)
        if found is None or not (self._structured or isinstance(found, str)):
            raise InputError(
                f"the example of line {example.line}: its answer is {_text(example.answer)!r:.60}, "
                f"expected {'what JSON can hold' if self._structured else 'text'}"
            )
        return found

    def adapter(self, chat: ag.Chat, example: Example, cancel: ag.CancelToken | None) -> Said:
        """What its reply says."""
        call = ag.IntrinsicCall(self.name, example.arguments)
        result = chat.invoke(call, cancel=cancel)
        return self._said(result.text, result.timings)

    def base(self, chat: ag.Chat, example: Example, cancel: ag.CancelToken | None) -> Said:
        """Its likeliest reply: in words, or in the contract's form where that is more than one."""
        read = chat.replace(self._asked(chat.messages, self.asks(example)), cancel=cancel)
        reply = chat.reply(
            max_tokens=self.contract.max_tokens or self._limit,
            temperature=0.0,
            schema=self.contract.response_format if self._structured else None,
            cancel=cancel,
        )
        said, took = self._said(reply.text, reply.timings), reply.timings
        n_read, seconds = read.evaluated + took.evaluated, read.total + took.total
        return replace(said, seconds=seconds, read=n_read, reused=read.reused)

    def shown(self, example: Example, index: int) -> tuple[str, str]:  # noqa: ARG002
        """The question, and the answer."""
        return self.asks(example), _text(self.right(example))

    def _said(self, text: str, took: ag.Timings) -> Said:
        return Said(self._read(text), (), took.total, took.evaluated, took.reused)

    def _read(self, answer: Any) -> Any:
        """A text, or a value; None for what is neither. What a base says in words, where an object
        with a text is wanted, is that text.
        """
        if not self._structured and self._field is None:
            return answer.strip() if isinstance(answer, str) else None
        try:
            value = json.loads(answer) if isinstance(answer, str) else answer
        except (ValueError, RecursionError):
            return None if self._structured else answer.strip()
        if self._field is None:
            return value
        return value.get(self._field) if isinstance(value, Mapping) else answer


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _fields(schema: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    """Those that objects can have, and what the schema says of them."""
    found = (schema or {}).get("properties")
    pairs = found.items() if isinstance(found, Mapping) else ()
    return [(name, about if isinstance(about, Mapping) else {}) for name, about in pairs]


def _only_text(schema: Mapping[str, Any] | None) -> str | None:
    """The field of objects that have nothing but a text."""
    (name, about), *others = _fields(schema) or [("", {})]
    return name if about.get("type") == "string" and not others else None


def _default_question(contract: Contract) -> str:
    """What the schema says of its last field, where verdicts stand, or else that field's name."""
    name, about = [(contract.name or "answer", {}), *_fields(contract.response_format)][-1]
    return str(about.get("description") or f"{name.replace('_', ' ').capitalize()}?")


def _inlined(example: Example) -> list[Message]:
    """The messages, with instructions and documents in the user's first."""
    said = [each.content for each in example.messages if each.role == "system"]
    if example.documents:
        said.append(documents_as_text(example.documents))
    turns = [each for each in example.messages if each.role != "system"]
    if not said:
        return turns
    return in_messages(turns, "\n\n".join(said), "user", lambda each: each, lambda each, _: each)


def _refuses(chat: ag.Chat, message: Message) -> bool:
    try:
        chat.check(message)
    except InputError:
        return True
    return False
