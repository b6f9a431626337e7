"""Asks intrinsics about a conversation: contract, prompt, adapter, answer; all in one batch."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Protocol

from alora_gguf.engine.activation import Loaded, acting
from alora_gguf.errors import AloraError, ContractError, InputError, OutputError, SchemaError
from alora_gguf.generate.constraint import check_schema
from alora_gguf.generate.invoke import Verdict
from alora_gguf.intrinsics import Contract, Request, load_contract, rewrite, transform
from alora_gguf.intrinsics.contract import Outcome, contract_problem
from alora_gguf.intrinsics.reply import Further
from alora_gguf.messages import Document, Message
from alora_gguf.options import (
    AdapterLike,
    CancelToken,
    FinishReason,
    IntrinsicCall,
    Invocation,
    Sampling,
    Timings,
    TokenLogprob,
    TopLogprob,
    changed,
    check_int,
)
from alora_gguf.session import Session

from .prompt import Dialogue, texts_of
from .quoting import Quoting, leaves


class Contracts:
    """By the names of adapters; for any thread. `adapter` finds one, or raises UnknownAdapterError,
    naming those that there are.
    """

    def __init__(
        self,
        adapter: Callable[[str], Loaded],
        given: Mapping[str, Contract] | None = None,
    ) -> None:
        """`given` are contracts other than those in the adapters' files."""
        self.adapter = adapter
        # of whose weights: None: any
        self._known: dict[str, tuple[str | None, Contract]]
        self._known = {name: (None, contract) for name, contract in (given or {}).items()}

    def acting(self, adapter: AdapterLike) -> Loaded:
        """What has that name; several at once as if they had one. Raises UnknownAdapterError,
        InputError.
        """
        return acting(adapter, self.adapter)

    def of(self, name: str) -> Contract:
        """What set() gave, or else what is in the adapter's file. Raises UnknownAdapterError,
        ContractError if there is none or it is malformed.
        """
        file = self.adapter(name)
        given = self._known.get(name)
        if given is None or given[0] not in (None, file.identity):
            given = self._known[name] = (file.identity, usable(Contract.of_adapter(file)))
        return given[1]

    def check(self, adapters: Mapping[str, Loaded]) -> None:
        """Logs why contracts in the files of `adapters` cannot be used; the adapters themselves can
        be, and some have none.
        """
        for name, file in adapters.items():
            if file.io_yaml is not None and (problem := contract_problem(self.of, name)):
                logging.getLogger("alora_gguf").warning("%s", problem)

    def set(self, name: str, contract: Contract | str | os.PathLike[str]) -> None:
        """Gives an adapter another contract until forget(). Raises UnknownAdapterError,
        ContractError.
        """
        _ = self.adapter(name)
        found = contract if isinstance(contract, Contract) else load_contract(contract)
        self._known[name] = (None, usable(found))

    def forget(self, name: str) -> None:
        """Drops what set() gave; for an adapter that is unloaded."""
        self._known.pop(name, None)


def usable(contract: Contract) -> Contract:
    """The contract. Raises ContractError if its schema cannot constrain the replies of any model,
    which reading it does not find out: it does without a grammar compiler.
    """
    try:
        if contract.response_format is not None:
            check_schema(contract.response_format)
    except SchemaError as error:
        raise ContractError(f"{contract.source}: field response_format: {error}") from error
    return contract


MAX_SPELLINGS: Final = 100
"""The most alternatives to a token among which those are looked for that begin a category; under a
schema a category has at most one for each of its characters, so these are nearly always all.
"""
MAX_READ: Final = 32
"""The most beginnings, of one reply, that are read to tell categories apart which begin alike;
those that were drafted are known already.
"""
_END: Final = TopLogprob(-1, "", 0.0)
MAX_TOKENS: Final = 512
"""The most tokens of a reply where neither contract nor caller sets a limit."""


@dataclass(frozen=True)
class IntrinsicResult:
    """An intrinsic's answer.

    name           of the intrinsic
    text           what the model replied, before the contract's transformations
    logprobs       the tokens, with their alternatives, whose probabilities went into the value
    finish_reason  "stop", or "length" if the reply was cut off
    timings        how many tokens were reused, read and sampled, and why not more were reused
    error          what is wrong with the reply, None if the contract's rules made a value of it
    alias          of the call, if it had one
    """

    name: str
    text: str
    logprobs: tuple[TokenLogprob, ...] = field(repr=False)
    finish_reason: FinishReason
    timings: Timings
    error: OutputError | None
    _value: Any = field(repr=False)
    alias: str | None = None

    @property
    def label(self) -> str:
        """What to call it: the call's alias, or else the intrinsic's name."""
        return self.name if self.alias is None else self.alias

    @property
    def value(self) -> Any:
        """The answer: what JSON can hold. Raises `error` if there is one."""
        if self.error is not None:
            raise self.error
        return self._value

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of it: `value`, or what is wrong as `error`, and all but log-
        probabilities and names.
        """
        said = {"error": str(self.error)} if self.error else {"value": self.value}
        more = {"text": self.text, "finish_reason": self.finish_reason}
        return {**said, **more, "timings": asdict(self.timings)}

    def __str__(self) -> str:
        return self.text


def as_call(call: str | IntrinsicCall, arguments: Mapping[str, str] | None = None) -> IntrinsicCall:
    """`call`, or a call of that name, with `arguments`. Raises InputError for anything else."""
    if isinstance(call, str):
        return IntrinsicCall(call, arguments or {})
    if not isinstance(call, IntrinsicCall):
        raise InputError(f"expected an intrinsic's name or an IntrinsicCall, got {call!r}")
    if arguments is None:
        return call
    if call.arguments:
        raise InputError("arguments were given twice: in the call and beside it")
    return replace(call, arguments=arguments)


def as_calls(calls: Sequence[str | IntrinsicCall]) -> list[IntrinsicCall]:
    """Calls that are asked together. Raises InputError, also for two that have one alias: nothing
    would tell their results apart.
    """
    asked = [as_call(each) for each in calls]
    aliases = [each.alias for each in asked if each.alias is not None]
    if twice := [each for i, each in enumerate(aliases) if each in aliases[:i]]:
        raise InputError(f"two calls have the alias '{twice[0]}'; give each its own")
    return asked


def changed_call(
    contracts: Contracts, call: IntrinsicCall, changes: Mapping[str, Any]
) -> IntrinsicCall:
    """`call` with `changes` by names of its fields or of Sampling's; those change what the contract
    says. Raises InputError, UnknownAdapterError, ContractError.
    """

    def sampling(call: IntrinsicCall) -> Sampling:
        contract = contracts.of(call.name)
        return call.sampling or sampling_of(contract, limit_of(contract, call))

    return changed(call, changes, "Chat.invoke()", sampling)


def limit_of(contract: Contract, call: IntrinsicCall) -> int:
    """The most tokens of a call's reply."""
    return call.max_tokens or contract.max_tokens or MAX_TOKENS


class Alongside(threading.Thread):
    """Intrinsics that are asked about a conversation while something else is done with it, whose
    first batch they share. `results` become known one by one; an intrinsic that cannot be asked
    does not keep the others from it.
    """

    def __init__(
        self,
        contracts: Contracts,
        session: Session,
        dialogue: Dialogue,
        calls: Sequence[IntrinsicCall],
        cancel: CancelToken,
    ) -> None:
        """Begins. The session holds the dialogue; the other's first batch has to follow."""
        super().__init__(name="alora_gguf-intrinsics", daemon=True)
        self.results = tuple(Future[IntrinsicResult]() for _ in calls)
        self._contracts, self._dialogue, self._calls = contracts, dialogue, calls
        self._cancel, self._fork = cancel, session.fork()
        self._barrier = session._runtime.engine.scheduler.barrier(2, cancel)
        self.start()

    def go_on(self) -> None:
        """The other's first batch need not be waited for any more."""
        self._barrier.open()

    def run(self) -> None:
        """Asks; whoever waits for a result raises what could not be done."""
        try:
            with self._fork:
                self._ask()
        except BaseException as error:
            for each in self.results:
                if not each.done():
                    each.set_exception(error)
        finally:
            self._barrier.leave()

    def _ask(self) -> None:
        started = time.perf_counter()
        pairs = zip(map(self._question, self._calls, self.results), self.results, strict=True)
        asked = [(question, result) for question, result in pairs if question is not None]
        prepared = time.perf_counter() - started

        late = []

        def over(index: int, verdict: Verdict) -> None:
            question, result = asked[index]
            if question.outcome(verdict).unread:
                late.append((question, verdict, result))
            else:
                result.set_result(question.result(verdict, prepared))

        invocations = [question.invocation for question, _ in asked]
        self._fork.invoke_many(invocations, on_verdict=over, cancel=self._cancel)
        told = tell_apart(
            [(question, verdict) for question, verdict, _ in late],
            lambda more: self._fork.invoke_many(more, cancel=self._cancel),
        )
        for (question, verdict, result), further in zip(late, told, strict=True):
            result.set_result(question.result(verdict, prepared, further))

    def _question(self, call: IntrinsicCall, result: Future[IntrinsicResult]) -> Question | None:
        try:
            return Question.about(self._contracts, self._dialogue, call)
        except AloraError as error:
            result.set_exception(error)
            return None


def ask_all(
    contracts: Contracts,
    session: Session,
    dialogue: Dialogue,
    calls: Sequence[IntrinsicCall],
    cancel: CancelToken | None = None,
) -> list[IntrinsicResult]:
    """Asks all of `calls` about the dialogue at once, on forks of the session's cells.

    Raises what Session.invoke_many() does; UnknownAdapterError, ContractError and InputError before
    anything is read.
    """
    started = time.perf_counter()
    questions = [Question.about(contracts, dialogue, call) for call in calls]
    prepared = time.perf_counter() - started

    def ask(invocations: Sequence[Invocation]) -> Sequence[Verdict]:
        return session.invoke_many(invocations, cancel=cancel)

    verdicts = ask([each.invocation for each in questions])
    pairs = list(zip(questions, verdicts, strict=True))
    told = tell_apart(pairs, ask)
    return [
        question.result(verdict, prepared, further)
        for (question, verdict), further in zip(pairs, told, strict=True)
    ]


class Unsettled(Protocol):
    """What was asked and may have to be read further: an intrinsic, or a question's options."""

    @property
    def invocation(self) -> Invocation:
        """What the session was asked."""

    def outcome(self, verdict: Verdict, further: Further | None = None) -> Outcome:
        """What a verdict comes to; `unread` says what else has to be known."""


def tell_apart(
    asked: Sequence[tuple[Unsettled, Verdict]],
    ask: Callable[[Sequence[Invocation]], Sequence[Verdict]],
) -> list[Further]:
    """For each verdict, what can come next where categories of its contract begin alike: `ask` is
    asked until they part, or for MAX_READ beginnings.
    """
    known: list[dict[tuple[int, ...], Sequence[TopLogprob]]]
    known = [dict(verdict.further) for _, verdict in asked]
    while True:
        wanted = [
            (further, path, replace(question.invocation, begun=path, max_tokens=1))
            for (question, verdict), further in zip(asked, known, strict=True)
            for path in question.outcome(verdict, further).unread[
                : MAX_READ + len(verdict.further) - len(further)
            ]
        ]
        if not wanted:
            return list(known)
        verdicts = ask([each for *_, each in wanted])
        for (further, path, _), verdict in zip(wanted, verdicts, strict=True):
            entries = (*(verdict.logprobs or ()), *([verdict.end] if verdict.end else []))
            # nothing was sampled where the reply had to end
            further[path] = entries[len(path)].top if len(entries) > len(path) else (_END,)


def judged(contract: Contract, messages: Sequence[Message]) -> int:
    """How many of the messages what it judges is the last of: an answer, or what it does not say,
    all; a question, those up to the user's last one.
    """
    if contract.judges == "question":
        for n in range(len(messages), 0, -1):
            if messages[n - 1].role == "user":
                return n
    return len(messages)


@dataclass(frozen=True, slots=True)
class Question:
    """A call worked out: what its contract asks for, and what a session can be asked."""

    call: IntrinsicCall
    contract: Contract
    request: Request
    invocation: Invocation
    temperatures: Mapping[str, float] = field(default_factory=dict)  # of the adapter's file
    change: str = ""  # what the contract changes of the text that the cells are of

    @classmethod
    def about(cls, contracts: Contracts, dialogue: Dialogue, call: IntrinsicCall) -> Question:
        """A question about a conversation."""
        contract = contracts.of(call.name)
        upto = call.upto
        if upto is None:
            upto = judged(contract, dialogue.messages)
        check_int(upto, "upto", 0, len(dialogue.messages))
        dialogue = replace(dialogue, messages=dialogue.messages[:upto])
        request = rewrite(contract, dialogue.messages, dialogue.documents, call.arguments)
        invocation = contracts.adapter(call.name).invocation

        said = (*texts_of(dialogue.messages, dialogue.documents), *leaves(call.arguments))
        quote = Quoting.of((), dialogue.template.markers).splitting(invocation, dialogue.vocab)
        quotes = quote.marks_any(said)

        def signed(quoting: Quoting) -> tuple[tuple[Message, ...], tuple[Document, ...]]:
            messages = tuple(map(quoting.message, dialogue.messages))
            documents = tuple(map(quoting.document, dialogue.documents))
            quote = quoting.splitting(invocation, dialogue.vocab).text
            asked = rewrite(contract, messages, documents, call.arguments, quote=quote)
            return asked.messages, asked.documents

        prompt = dialogue.question(
            request,
            contract.chat_template_kwargs,
            invocation=invocation,
            instructed=contract.instruction is not None,
            opened=contract.parameter("add_generation_prompt") is not False,
            signed=signed,
            quotes=quotes,
        )
        question = cls._of(contracts, request, call, prompt)
        held = dialogue.transcript.tokens
        if not invocation or prompt[: len(held)] == held:
            return question
        if contract.moves_documents and dialogue.documents:
            change = "its contract puts the documents before the conversation"
        else:
            change = "its contract numbers sentences there" if contract.tags_history else ""
        return replace(question, change=change)

    @classmethod
    def after(cls, contracts: Contracts, prompt: Sequence[int], call: IntrinsicCall) -> Question:
        """A question after a prompt in tokens, which the adapter's invocation follows unless it is
        there. Raises InputError for contracts that change or add messages.
        """
        contract = contracts.of(call.name)
        if contract.instruction is not None or contract.tags_history or contract.moves_documents:
            raise InputError(
                f"{contract.source}: its instruction or its changes need a conversation in "
                "messages, not a prompt; use create_chat_completion()"
            )
        return cls._of(contracts, rewrite(contract, (), (), call.arguments), call, prompt)

    @classmethod
    def _of(
        cls, contracts: Contracts, request: Request, call: IntrinsicCall, prompt: Sequence[int]
    ) -> Question:
        contract, file = contracts.of(call.name), contracts.adapter(call.name)
        limit = limit_of(contract, call)
        invocation = Invocation(
            call.name,
            prompt=prompt,
            scale=call.scale,
            max_tokens=limit,
            sampling=call.sampling or sampling_of(contract, limit),
            schema=request.response_format,
            logprobs=MAX_SPELLINGS if request.want_logprobs else None,
            stop=contract.stop if call.stop is None else call.stop,
        )
        return cls(call, contract, request, invocation, file.temperatures)

    def outcome(self, verdict: Verdict, further: Further | None = None) -> Outcome:
        """What the contract makes of a verdict; nothing if it is not what the contract says."""
        try:
            return self._transformed(verdict, further)
        except OutputError:
            return Outcome(None)

    def _transformed(self, verdict: Verdict, further: Further | None) -> Outcome:
        logprobs = verdict.logprobs
        if logprobs is not None and verdict.end is not None:
            logprobs = (*logprobs, verdict.end)
        try:
            return transform(
                self.contract,
                verdict.text,
                logprobs,
                self.request,
                max_tokens=self.invocation.max_tokens,
                further=further,
                temperatures=self.temperatures,
            )
        except InputError:  # a stop string ended it within a token
            raise OutputError(
                f"{self.contract.source}: the reply was ended by a stop string within a token, so "
                "that its probabilities are not known; choose other stop strings"
            ) from None

    def result(
        self, verdict: Verdict, prepared: float, further: Further | None = None
    ) -> IntrinsicResult:
        """The answer that a verdict comes to, which took `prepared` seconds more."""
        timings = verdict.timings
        first, note = timings.first_token, timings.reuse_note
        outcome, error = Outcome(None), None
        try:
            outcome = self._transformed(verdict, further)
        except OutputError as problem:
            error = problem
        return IntrinsicResult(
            name=self.call.name,
            text=verdict.text,
            logprobs=outcome.used,
            finish_reason=verdict.finish_reason,
            timings=replace(
                timings,
                first_token=None if first is None else first + prepared,
                total=timings.total + prepared,
                reuse_note=f"{note}: {self.change}" if note and self.change else note,
            ),
            error=error,
            _value=outcome.value,
            alias=self.call.alias,
        )


_NO_EFFECT: Final = {
    "temperature": 0.0,
    "top_k": -1,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repeat_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "seed": None,
}


def sampling_of(
    contract: Contract, limit: int, otherwise: Mapping[str, float] | None = None
) -> Sampling:
    """The contract's parameters for a reply of at most `limit` tokens, all of which its penalties
    count; `otherwise` are those, by Sampling's names, where it does not say. What neither says has
    no effect.
    """
    values: dict[str, Any] = {**_NO_EFFECT, **(otherwise or {})}
    for name in _NO_EFFECT:
        said = contract.parameter("repetition_penalty" if name == "repeat_penalty" else name)
        values[name] = values[name] if said is None else said
    return Sampling(**values, repeat_last_n=limit)
