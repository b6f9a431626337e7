"""Asks typed questions about a conversation: each order of a question's options is a fork of the
conversation's cells, all of them in one batch, with the intrinsics that are asked beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from alora_gguf.decide.answers import (
    Answer,
    Decision,
    FailedAnswer,
    PredicateAnswer,
    Usage,
    choice_answer,
    score_answer,
)
from alora_gguf.decide.prompts import Prompt, described, n_options, prompts
from alora_gguf.decide.questions import Choice, Predicate, Question, option_text
from alora_gguf.decide.readout import MAX_SPELLINGS, averaged, schema, weigh
from alora_gguf.engine.special import SpecialTokens
from alora_gguf.errors import FieldError, InputError
from alora_gguf.generate.invoke import Verdict
from alora_gguf.generate.sampling import usual_tokens
from alora_gguf.gguf.decisions import overridden, temperature_of
from alora_gguf.intrinsics import Request
from alora_gguf.intrinsics.contract import Outcome
from alora_gguf.intrinsics.decision import Categories
from alora_gguf.intrinsics.reply import Further
from alora_gguf.messages import Document, Message
from alora_gguf.options import CancelToken, IntrinsicCall, Invocation, Timings
from alora_gguf.session import Session

from .asking import Contracts, tell_apart
from .asking import Question as AskedIntrinsic
from .prompt import ChatTemplate, Dialogue, texts_of
from .quoting import Quoting, leaves


@dataclass(frozen=True, slots=True)
class Deciding:
    """How questions are asked.

    template      writes the questions of a base that was made for decisions; None: the chat's does
    state         what they are about, as that template gets it
    temperatures  of the base's file, by question type
    given         the call's own
    orders        how many orders a question's options are asked in; None: by their number
    """

    template: ChatTemplate | None = None
    state: Any = None
    temperatures: Mapping[str, float] = field(default_factory=dict)
    given: Mapping[str, float] = field(default_factory=dict)
    orders: int | None = None


@dataclass(frozen=True, slots=True)
class _Order:
    """A question in one order of its options, and what the session is asked."""

    prompt: Prompt
    invocation: Invocation

    def outcome(self, verdict: Verdict, further: Further | None = None) -> Outcome:
        """Nothing but what has to be read further."""
        return Outcome(None, unread=tuple(self.weigh(verdict, further)[1]))

    def weigh(
        self, verdict: Verdict, further: Further | None = None
    ) -> tuple[list[float], list[tuple[int, ...]]]:
        """Log-probabilities of the labels, and what was not read further."""
        said, known = verdict.tokens, dict(further or {})
        for i, each in enumerate(verdict.logprobs or ()):
            known[said[:i]] = each.top
        return weigh(self.prompt, known)


@dataclass(frozen=True, slots=True)
class _Typed:
    """A typed question, its orders, and what its options' log-probabilities are divided by."""

    question: Question
    orders: tuple[_Order, ...]
    temperature: float

    def answer(self, found: Sequence[tuple[Verdict, Further]]) -> Answer:
        """What the verdicts of all orders come to."""
        weighed = [
            (order.prompt, order.weigh(*each)[0])
            for order, each in zip(self.orders, found, strict=True)
        ]
        question, timings = self.question, _together([each.timings for each, _ in found])
        shares = averaged(weighed, n_options(question), self.temperature)
        if isinstance(question, Predicate):
            return PredicateAnswer(shares[0], timings=timings)
        if isinstance(question, Choice):
            return choice_answer(tuple(question.options), shares, timings)
        return score_answer(question.levels, shares, timings)


@dataclass(frozen=True, slots=True)
class _Intrinsic:
    """An intrinsic whose answer is a decision."""

    categories: Categories
    orders: tuple[AskedIntrinsic, ...]

    def answer(self, found: Sequence[tuple[Verdict, Further]]) -> Answer:
        """What the verdict comes to."""
        (verdict, further), asked = found[0], self.orders[0]
        result = asked.result(verdict, 0.0, further)
        if result.error is not None:
            return FailedAnswer(result.error, timings=result.timings)
        shares = asked.outcome(verdict, further).shares[self.categories.place]
        if self.categories.yes is not None:
            return PredicateAnswer(shares[self.categories.yes], timings=result.timings)
        return choice_answer(self.categories.names, shares, result.timings)


def decide(
    contracts: Contracts,
    session: Session,
    dialogue: Dialogue,
    questions: Mapping[str, Question | IntrinsicCall],
    how: Deciding,
    read: Timings,
    cancel: CancelToken | None = None,
) -> Decision:
    """Asks all questions about the dialogue at once, on forks of the session's cells; `read` is
    what it took to read the conversation.

    Raises what Session.invoke_many() does; UnknownAdapterError, ContractError and InputError before
    anything is read.
    """
    started = time.perf_counter()
    writer = _Writer(contracts, dialogue, how)
    asked = {name: writer.question(name, each) for name, each in questions.items()}
    orders = [order for each in asked.values() for order in each.orders]
    verdicts: list[Verdict] = []

    def ask(invocations: Sequence[Invocation]) -> Sequence[Verdict]:
        found = session.invoke_many(invocations, cancel=cancel)
        verdicts.extend(found)
        return found

    pairs = list(zip(orders, ask([each.invocation for each in orders]), strict=True))
    told = tell_apart(pairs, ask)
    found = iter([(verdict, more) for (_, verdict), more in zip(pairs, told, strict=True)])
    answers = {
        name: each.answer([next(found) for _ in each.orders]) for name, each in asked.items()
    }
    spent = [each.timings for each in verdicts]
    usage = Usage(
        read=read.evaluated + sum(each.evaluated for each in spent),
        reused=read.reused,
        kept=read.evaluated,
        written=sum(
            verdict.timings.generated
            for order, verdict in pairs
            if isinstance(order, AskedIntrinsic)
        ),
    )
    total = read.total + time.perf_counter() - started
    note = next((each.reuse_note for each in (read, *spent) if each.reuse_note), "")
    timings = Timings(usage.reused, usage.read, usage.written, None, total, note)
    return Decision(answers, usage, timings)


def _together(timings: Sequence[Timings]) -> Timings:
    """What the orders of a question took: what all reused, and what they read."""
    return Timings(
        reused=min(each.reused for each in timings),
        evaluated=sum(each.evaluated for each in timings),
        first_token=max((each.first_token or 0.0) for each in timings),
        total=max(each.total for each in timings),
        reuse_note=next((each.reuse_note for each in timings if each.reuse_note), ""),
    )


_MAX_TOKENS: Final = 2  # with what may be drafted: a blank, and the label behind it
_PROBE: Final = Message("user", "?")


class _Writer:
    """Makes prompts of questions about one conversation."""

    def __init__(self, contracts: Contracts, dialogue: Dialogue, how: Deciding) -> None:
        self._contracts, self._dialogue, self._how = contracts, dialogue, how
        vocab = dialogue.vocab
        self._is_token: Callable[[str], bool] = lambda text: len(
            vocab.tokenize(text, add_special=False, parse_special=False)
        ) == 1  # fmt: skip
        self._folds = how.template is None and self._refuses_another_message()

    def question(self, name: str, question: Question | IntrinsicCall) -> _Typed | _Intrinsic:
        """A question worked out. Raises UnknownAdapterError, ContractError, InputError."""
        if isinstance(question, IntrinsicCall):
            contract = self._contracts.of(question.name)
            try:
                categories = Categories.of(contract)
            except InputError as error:
                why = str(error).removeprefix(f"{contract.source}: its ")
                raise FieldError(("questions", name), f"is an intrinsic whose {why}") from error
            known = Contracts(self._contracts.adapter, {question.name: categories.contract})
            asked = AskedIntrinsic.about(known, self._dialogue, question)
            chosen = overridden(asked.temperatures, self._how.given)
            return _Intrinsic(categories, (replace(asked, temperatures=chosen),))
        invocation: tuple[int, ...] = ()
        temperatures = [self._how.temperatures]
        if question.adapter is not None:
            file = self._contracts.acting(question.adapter)
            invocation, temperatures = file.invocation, [file.temperatures, *temperatures]
        lettered = self._how.template is not None
        orders = tuple(
            _Order(
                prompt,
                Invocation(
                    question.adapter,
                    prompt=self._tokens(name, question, prompt, invocation),
                    scale=question.scale,
                    max_tokens=_MAX_TOKENS,
                    schema=schema(prompt.labels),
                    logprobs=MAX_SPELLINGS,
                    drafts=self._drafts(prompt.labels),
                ),
            )
            for prompt in prompts(question, self._how.orders, self._is_token, lettered=lettered)
        )
        return _Typed(question, orders, self._temperature(question, temperatures))

    def _drafts(self, labels: Sequence[str]) -> list[list[int]]:
        """How an answer may begin that is not told from others yet: with a blank, and where labels
        are several tokens with their first letter.
        """
        vocab = self._dialogue.vocab
        blank = usual_tokens(b" ", vocab)
        found = [blank] if len(blank) == 1 else []
        if any(map(self._is_token, labels)):
            return found
        for first in dict.fromkeys(label[0] for label in labels):
            letter, after = (usual_tokens(each.encode(), vocab) for each in (first, f" {first}"))
            found += [each for each in (letter, after, [*blank, *letter]) if each]
        return found

    def _temperature(self, question: Question, files: Sequence[Mapping[str, float]]) -> float:
        if question.temperature is not None:
            return question.temperature
        n = n_options(question)
        for known in (self._how.given, *files):
            found = temperature_of(known, question.type, n)
            if found is not None:
                return found
        return 1.0

    def _tokens(
        self, name: str, question: Question, prompt: Prompt, invocation: tuple[int, ...]
    ) -> tuple[int, ...]:
        if self._how.template is not None:
            return self._by_template(self._how.template, name, question, prompt)
        dialogue = self._dialogue
        messages, documents = self._asking(dialogue.messages, prompt.text), dialogue.documents
        said = (*texts_of(dialogue.messages, documents), prompt.text)
        quotes = Quoting.of((), dialogue.template.markers).splitting(invocation, dialogue.vocab)

        def signed(quoting: Quoting) -> tuple[tuple[Message, ...], tuple[Document, ...]]:
            split = quoting.splitting(invocation, dialogue.vocab)
            # what is folded into the last message must not begin the adapter there
            marked = tuple(map((split if self._folds else quoting).message, dialogue.messages))
            return (
                self._asking(marked, split.text(prompt.text)),
                tuple(map(quoting.document, documents)),
            )

        return dialogue.question(
            Request(messages, documents),
            {},
            invocation=invocation,
            instructed=True,
            signed=signed,
            quotes=quotes.marks_any(said),
        )

    def _asking(self, messages: Sequence[Message], text: str) -> tuple[Message, ...]:
        """The messages and the question: the user's next message, or the end of the last one."""
        if not self._folds:
            return (*messages, Message("user", text))
        *others, last = messages
        return (*others, replace(last, content=f"{last.content}\n\n{text}"))

    def _refuses_another_message(self) -> bool:
        """Whether the template wants turns to alternate, and the user had the last one."""
        dialogue = self._dialogue
        messages = dialogue.messages
        if not messages or messages[-1].role != "user":
            return False
        try:
            dialogue.template.render(
                (*messages, _PROBE),
                dialogue.documents,
                dialogue.arguments,
                prompt=True,
                now=dialogue.now,
            )
        except InputError:
            return True
        return False

    # Bases that were made for decisions ----------------------------------------------------------

    def _by_template(
        self, template: ChatTemplate, name: str, question: Question, prompt: Prompt
    ) -> tuple[int, ...]:
        """The prompt that the base's own template for decisions writes."""
        options = described(question)
        variables = {
            "id": name,
            "type": question.type,
            "instructions": question.instructions or "",
            "state": self._how.state,
            "options": [
                {
                    "key": option_text(options[i][0]),
                    "label": label,
                    "description": options[i][1] or None,
                }
                for label, i in zip(prompt.labels, prompt.indices, strict=True)
            ],
            "images": [],
        }
        variables["questions"] = [
            {each: variables[each] for each in ("id", "type", "instructions", "options")}
        ]
        vocab, now = self._dialogue.vocab, self._dialogue.now
        text = template.render((), (), variables, prompt=True, now=now)
        vocab.check_fits(text)
        said = list(leaves(variables))
        quoting = Quoting.of((text, *said), template.markers)
        if template.special_tokens_in_text or not quoting.marks_any(said):
            return tuple(vocab.tokenize(text, add_special=False, parse_special=True))
        marks = quoting.places(
            text,
            lambda q: template.render((), (), q.json(variables), prompt=True, now=now),
            said,
        )
        return SpecialTokens.of(vocab).tokenize(text, marks)
