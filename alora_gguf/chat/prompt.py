"""How a conversation is written: by the chat template, turn by turn as it grows, and as the prompt
that an intrinsic is asked with.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from alora_gguf.engine.special import Markers, Marks, SpecialTokens
from alora_gguf.engine.tokens import Vocabulary, common, find_last
from alora_gguf.errors import InputError, InvocationNotFoundError, ModelError
from alora_gguf.generate.calls import CallForm
from alora_gguf.messages import (
    Document,
    Message,
    Place,
    documents_as_text,
    in_messages,
    mentions,
)

from . import manner
from .quoting import Quoting, differ_at, leaves, since, until

if TYPE_CHECKING:
    from alora_gguf.intrinsics import Request

OURS: Final = frozenset(
    {
        "add_generation_prompt", "bos_token", "documents", "eos_token", "function_call",
        "functions", "messages", "raise_exception", "strftime_now", "tool_choice", "tools",
    }
)  # fmt: skip
"""Names that a template gets from us, so that a caller's arguments cannot set them."""


_LONG: Final = 64
"""Characters before a seam that are looked at: more than a control token has."""

_WORDS: Final = 1000
"""Characters of a template's own message that are shown: a screen, not a scrollback of them."""

_KNOWN: Final = 8
"""Texts of a template whose tokens are kept for conversations that begin like them, as those of a
server's clients do, who send all of a conversation with each request.
"""

_Key = tuple[bool, tuple[Message, ...], tuple[Document, ...], dict[str, object], datetime | None]


def present() -> datetime:
    """The local date and time."""
    return datetime.fromtimestamp(time.time())


class ChatTemplate:
    """A Jinja chat template, rendered in a sandbox and under limits; for any thread."""

    def __init__(
        self, source: str, vocab: Vocabulary, name: str, *, special_tokens_in_text: bool = False
    ) -> None:
        """`source` is the template, `name` stands for it in messages; with
        `special_tokens_in_text` control tokens in what is said are control tokens. Raises
        ModelError for one that cannot be parsed.
        """
        # after the native library, which it would look for elsewhere
        from jinja2 import TemplateError

        from .limits import Formatter, at

        self._at = at
        self.source, self.name = source, name
        self.special_tokens_in_text = special_tokens_in_text
        self._vocab = vocab
        self._latest: deque[tuple[_Key, str]] = deque(maxlen=4)
        self._tokenized: deque[Transcript] = deque(maxlen=_KNOWN)
        bos, eos = vocab.special_text("bos"), vocab.special_text("eos")
        try:
            self._formatters: dict[bool, Any] = {
                prompt: Formatter(source, eos, bos, add_generation_prompt=prompt)
                for prompt in (True, False)
            }
        # what is nested too deeply is for Jinja's parser or for Python's
        except (TemplateError, RecursionError, SyntaxError, MemoryError, ValueError) as error:
            raise ModelError(
                f"{name}: the chat template cannot be parsed: {_shown(error)}; pass another as "
                "template="
            ) from error
        if source and "{{" not in source and "{%" not in source:
            raise ModelError(
                f"{name}: expected the source of a Jinja template, got {source[:40]!r}, which "
                "writes the same for any conversation"
            )

    @cached_property
    def markers(self) -> Markers:
        """The texts that conversations are built of."""
        return SpecialTokens.of(self._vocab).markers(self.source)

    def check_arguments(self, arguments: Mapping[str, object], what: str) -> None:
        """Raises InputError for arguments that the template has no use for, or gets from us."""
        self.check_ours(arguments, what)
        for name in arguments:
            if not self.uses(name):
                raise InputError(f"{what}: {self.name}: the chat template has no use for {name!r}")

    def check_ours(self, arguments: Mapping[str, object], what: str) -> None:
        """Raises InputError for arguments that the template gets from us."""
        for name in arguments:
            if name in OURS:
                raise InputError(f"{what} cannot set {name!r}: it is set for every conversation")

    def uses(self, name: str) -> bool:
        """Whether the template mentions a variable."""
        return mentions(self.source, name)

    @cached_property
    def place(self) -> Place:
        """Where documents stand."""
        return "template" if self.uses("documents") else self._seat

    @cached_property
    def _seat(self) -> Place:
        """Where stands what the template has no place for."""
        word = "<place of documents>"
        probe = [{"role": "system", "content": word}, {"role": "user", "content": "?"}]
        try:
            return "system" if word in self._probe(probe, None) else "user"
        except InputError:  # it wants no system message
            return "user"

    @property
    def keeps_reasoning(self) -> bool:
        """Whether the template takes thinking apart from what is said."""
        return self.uses("reasoning_content")

    @cached_property
    def thinking(self) -> tuple[str, str]:
        """How the base's thinking begins and ends."""
        return manner.thinking_of(self._probe, self.source, self._vocab)

    @cached_property
    def call_form(self) -> CallForm:
        """How the base writes calls of tools."""
        return manner.call_form(self._probe, self.source, self._vocab)

    @cached_property
    def _writes_calls(self) -> tuple[bool, bool]:
        return manner.writes_calls(self._probe)

    @cached_property
    def _takes_answers(self) -> bool:
        return manner.takes_answers(self._probe)

    @cached_property
    def writes_tools(self) -> bool:
        """Whether the template writes which tools there are; else a message does."""
        return self.uses("tools") and manner.writes_tools(self._probe)

    def _probe(self, said: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        return self._write(said, {"tools": tools}, prompt=False, now=present())

    def render(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document],
        arguments: Mapping[str, object],
        *,
        prompt: bool,
        now: datetime | None = None,
    ) -> str:
        """The conversation as text, in which it is `now` (None: the present); with `prompt` it
        ends with what begins the assistant's turn.

        Documents that the template has no use for stand in a message. Raises InputError, with the
        template's own words, if it refuses the messages.
        """
        now = now or present()
        when = now if "strftime_now" in self.source else None
        key = (prompt, tuple(messages), tuple(documents), deepcopy(dict(arguments)), when)
        for known, text in tuple(self._latest):
            if known == key:
                return text
        given: dict[str, Any] = dict(arguments)
        beside = list[str]()
        if documents and self.place == "template":
            given["documents"] = [document.fields() for document in documents]
        elif documents:
            beside.append(documents_as_text(documents))
        if given.get("tools") and not self.writes_tools:
            beside.insert(0, manner.tools_as_text(given.pop("tools"), self.call_form))
        if beside:
            text = "\n\n".join(beside)
            messages = in_messages(messages, text, self._seat, lambda m: m, lambda m, _: m)
        written = self._write(self._fields(messages), given, prompt=prompt, now=now)
        self._latest.append((key, written))
        return written

    def _fields(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Messages as the template can take them: what it has no place for stands in them."""
        as_text = False
        if any(message.tool_calls for message in messages):
            writes, as_text = self._writes_calls
            if not writes:
                form = self.call_form
                messages = [
                    manner.calls_in_text(each, form) if each.tool_calls else each
                    for each in messages
                ]
        if any(message.role == "tool" for message in messages) and not self._takes_answers:
            messages = manner.answers_in_text(messages)
        return [manner.said(each, as_text=as_text) for each in messages]

    def _write(
        self,
        said: Sequence[dict[str, Any]],
        given: Mapping[str, object],
        *,
        prompt: bool,
        now: datetime,
    ) -> str:
        try:
            with self._at(now):
                written: str = self._formatters[prompt](messages=list(said), **given).prompt
        except Exception as error:  # a template may do, and fail at, anything
            raise InputError(
                f"{self.name}: the chat template refused the conversation: {_shown(error)}"
            ) from error
        return written

    def transcript(self, text: str, marks: Marks) -> Transcript:
        """The transcript of `text` as its tokenizer alone makes it, from the tokens of the one that
        begins most like it among those that were made before.
        """
        known = tuple(self._tokenized)
        nearest = max(known, key=lambda each: common(each.text, text), default=Transcript())
        made = nearest.become(text, self._vocab, marks)
        if made is not nearest:
            self._tokenized.append(made)
        return made


def _shown(error: BaseException) -> str:
    """A template's own words, which steer no terminal."""
    text = str(error) or type(error).__name__
    text = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text[: _WORDS + 1])
    return text if len(text) <= _WORDS else f"{text[:_WORDS]}…"


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation's text, and the tokens that a model has read or written for it. The tokens of
    what the model wrote need not be those that its tokenizer would make of the text.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    marks: Marks = ()  # where the text only quotes control tokens

    def become(self, text: str, vocab: Vocabulary, marks: Marks = ()) -> Transcript:
        """The transcript of `text`. Our tokens stay as they are up to a seam that no token can
        reach over: the last control token (of theirs or of `text`) before the two differ, or the
        end of `text`. What follows there is tokenized again.

        Like transformers' apply_chat_template(), it adds no token that the template does not write.
        """
        changed = differ_at(self.marks, marks)
        if text == self.text and changed is None:
            return self
        same = common(self.text, text)
        same = same if changed is None else min(same, changed)
        n, end = len(self.tokens), len(self.text)  # so many tokens spell so many characters
        while n:
            if end <= same:
                rest = _tokens(text[end:], vocab, since(marks, end))
                if not rest or _begins_anew(text[:end], rest[0], vocab, marks):
                    return Transcript(text, (*self.tokens[:n], *rest), marks)
            last, n = n, n - 1
            while n and not vocab.is_special(self.tokens[n]):
                n -= 1
            part = vocab.detokenize(self.tokens[n:last], special=True)
            if not self.text.endswith(part, 0, end):
                break  # the tokens do not spell the text
            end -= len(part)
        return Transcript(text, _tokens(text, vocab, marks), marks)


def _begins_anew(before: str, token: int, vocab: Vocabulary, marks: Marks) -> bool:
    """Whether no token can reach from the text `before` into that of `token`: the tokenizer looks
    for control tokens first, and takes the longest.
    """
    if not vocab.is_special(token):
        return False
    seam = before[-_LONG:] + vocab.detokenize([token], special=True)
    marks = since(until(marks, len(before)), max(0, len(before) - _LONG))
    return _tokens(seam, vocab, marks)[-1] == token


def _tokens(text: str, vocab: Vocabulary, marks: Marks) -> tuple[int, ...]:
    vocab.check_fits(text)
    if marks:
        return SpecialTokens.of(vocab).tokenize(text, marks)
    return tuple(vocab.tokenize(text, add_special=False, parse_special=True)) if text else ()


_Talk = tuple[tuple[Message, ...], tuple[Document, ...]]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation as prompts are made of it.

    template    writes it
    vocab       of the model
    messages    what was said
    documents   what it is about
    arguments   further variables of the template
    transcript  what a session holds of it
    now         the date that the template writes
    signed      messages and documents with the control tokens marked that are only quoted in
                them; None: any that are in them
    quotes      whether there can be any
    """

    template: ChatTemplate
    vocab: Vocabulary
    messages: tuple[Message, ...]
    documents: tuple[Document, ...] = ()
    arguments: Mapping[str, object] = field(default_factory=dict)
    transcript: Transcript = field(default_factory=Transcript)
    now: datetime = field(default_factory=present)
    signed: Callable[[Quoting], _Talk] | None = None
    quotes: bool = True

    def written(self, *, prompt: bool) -> Transcript:
        """All of it; with `prompt` it ends with what begins the assistant's turn."""
        text = self._render((self.messages, self.documents), prompt=prompt)
        marks = self._marks(text, prompt=prompt)
        if not self.transcript.tokens:
            return self.template.transcript(text, marks)
        return self.transcript.become(text, self.vocab, marks)

    def _marks(self, text: str, *, prompt: bool) -> Marks:
        """Where `text`, all of it, only quotes control tokens."""
        if self.template.special_tokens_in_text or not self.quotes:
            return ()
        tools = list(leaves(self.arguments.get("tools")))
        said = texts_of(self.messages, self.documents)
        quoting = Quoting.of((text, *said, *tools), self.template.markers)
        quoted = quoting.marks_any(tools)
        if self.signed is None and not quoted and not quoting.marks_any(said):
            return ()
        messages, documents = self._signed(quoting)
        if not quoted and (messages, documents) == (self.messages, self.documents):
            return ()

        def render(quoting: Quoting) -> str:
            return self._render(self._signed(quoting), prompt=prompt, quoting=quoting)

        signed = map(quoting.text, tools) if quoted else ()
        return quoting.places(text, render, [*texts_of(messages, documents), *signed])

    def _render(self, said: _Talk, *, prompt: bool, quoting: Quoting | None = None) -> str:
        arguments = self.arguments
        if quoting is not None and arguments.get("tools"):
            arguments = {**arguments, "tools": quoting.value(arguments["tools"])}
        return self.template.render(*said, arguments, prompt=prompt, now=self.now)

    def _signed(self, quoting: Quoting) -> _Talk:
        if self.signed is not None:
            return self.signed(quoting)
        return tuple(map(quoting.message, self.messages)), tuple(
            map(quoting.document, self.documents)
        )

    def reply_prompt(self, invocation: tuple[int, ...]) -> Transcript:
        """What a reply follows, by the base (no `invocation`) or an adapter: its invocation takes
        the place of what begins the assistant's turn, unless it is in the last turn already.
        """
        whole = self.written(prompt=True)
        if not invocation:
            return whole
        asked = self
        if not self.template.special_tokens_in_text:
            splits = lambda q: self._signed(q.splitting(invocation, self.vocab))  # noqa: E731
            asked = replace(self, signed=splits)
        unquoted = asked.written(prompt=True)
        if _occurs_after(unquoted, invocation, asked._before_last()):
            return unquoted
        return _followed_by(self.written(prompt=False), invocation, self.vocab)

    def question(
        self,
        request: Request,
        arguments: Mapping[str, object],
        *,
        invocation: tuple[int, ...],
        instructed: bool,
        opened: bool = True,
        signed: Callable[[Quoting], _Talk] | None = None,
        quotes: bool = True,
    ) -> tuple[int, ...]:
        """The prompt of a contract's `request` to an adapter, made of marked texts with `signed`
        where the conversation `quotes` control tokens; what begins the assistant's turn is part of
        it if that is `opened`.

        Its invocation is looked for in what follows the conversation: the instruction (if it was
        `instructed`) and what begins the assistant's turn. Where it is missing there,

        - one that begins with a control token, such as a role of its own, takes the place of what
          begins the assistant's turn;
        - one of ordinary text begins the instruction, or is all of it.

        Raises InvocationNotFoundError where the template does not write it.
        """
        self.template.check_ours(arguments, "the contract's chat_template_kwargs")
        messages = request.messages
        asked = replace(
            self,
            messages=messages,
            documents=request.documents,
            arguments={**self.arguments, **arguments},
            signed=signed,
            quotes=quotes,
        )
        whole = asked.written(prompt=opened)
        if not invocation:
            return whole.tokens
        before = asked._before_last() if instructed else asked.written(prompt=False)
        if _occurs_after(whole, invocation, before):
            return whole.tokens
        if self.vocab.is_special(invocation[0]):
            return _followed_by(asked.written(prompt=False), invocation, self.vocab).tokens
        words = self.vocab.detokenize(invocation, special=True).strip()
        if not instructed or words not in asked._unquoted():
            asked = asked._asking(words, instructed=instructed)
            whole = asked.written(prompt=opened)
        if _occurs_after(whole, invocation, before):
            return whole.tokens
        return self._spliced(whole, words, invocation, before)

    def _unquoted(self) -> str:
        """What the last message says, and does not only quote."""
        if self.template.special_tokens_in_text:
            return self.messages[-1].content
        texts = texts_of(self.messages, self.documents)
        return self._signed(Quoting.of(texts, self.template.markers))[0][-1].content

    def _asking(self, words: str, *, instructed: bool) -> Dialogue:
        """The same with `words` before the last message, or as the last."""

        def asks(messages: tuple[Message, ...]) -> tuple[Message, ...]:
            said = messages[-1].content if instructed else ""
            conversation = messages[:-1] if instructed else messages
            return (*conversation, Message("user", f"{words} {said}".strip()))

        def signed(quoting: Quoting) -> _Talk:
            messages, documents = self._signed(quoting)
            return asks(messages), documents

        return replace(self, messages=asks(self.messages), signed=signed)

    def _before_last(self) -> Transcript:
        """The same conversation with another last message: what the two have in common is not of
        that message. Without one, a template might refuse it, or write what is before otherwise.
        """
        *others, last = self.messages
        word = "-" if last.content.startswith(".") else "."
        other = replace(last, content=word, tool_calls=(), reasoning="")

        def signed(quoting: Quoting) -> _Talk:
            messages, documents = self._signed(quoting)
            return (*messages[:-1], other), documents

        return replace(self, messages=(*others, other), signed=signed).written(prompt=True)

    def beginning(self) -> tuple[int, ...]:
        """The tokens of instructions, tools and documents: what is the same whatever the user says
        first. Empty where the template refuses such a conversation.
        """
        n = next((i for i, m in enumerate(self.messages) if m.role != "system"), None)
        kept = self.messages[:n]

        def written(word: str) -> tuple[int, ...]:
            def signed(quoting: Quoting) -> _Talk:
                messages, documents = self._signed(quoting)
                return (*messages[:n], Message("user", word)), documents

            said = (*kept, Message("user", word))
            asked = replace(self, messages=said, signed=signed, transcript=Transcript())
            return asked.written(prompt=True).tokens

        try:
            first, other = written("."), written("-")
        except InputError:
            return ()
        return first[: common(first, other)]

    def _spliced(
        self, whole: Transcript, words: str, invocation: tuple[int, ...], before: Transcript
    ) -> tuple[int, ...]:
        """The tokens of `whole` with the invocation's own where it says `words` last: with their
        neighbours they make other tokens.
        """
        text, quoted = whole.text, {index for index, always in whole.marks if always}
        begin, at = max(0, common(before.text, text) - len(words)), len(text)
        while (at := text.rfind(words, begin, at)) >= 0 and quoted & {*range(at, at + len(words))}:
            at += len(words) - 1
        if at < 0:
            raise InvocationNotFoundError(
                f"{self.template.name}: the chat template does not write the adapter's invocation "
                f"{words!r} as it was given; ask with Session.invoke() and a prompt of your own"
            )
        after = at + len(words)
        head = self.transcript.become(text[:at], self.vocab, until(whole.marks, at)).tokens
        rest = _tokens(text[after:], self.vocab, since(whole.marks, after))
        return (*head, *invocation, *rest)


def _followed_by(
    transcript: Transcript, invocation: tuple[int, ...], vocab: Vocabulary
) -> Transcript:
    text = transcript.text + vocab.detokenize(invocation, special=True)
    return Transcript(text, (*transcript.tokens, *invocation), transcript.marks)


def texts_of(messages: Sequence[Message], documents: Sequence[Document]) -> list[str]:
    """All that is said."""
    said = [text for message in messages for text in (message.role, message.content)]
    for each in messages:
        if each.reasoning or each.tool_calls or each.tool_call_id or each.name:
            said += [each.reasoning, each.tool_call_id or "", each.name or ""]
            for call in each.tool_calls:
                said += [call.id, call.name, *leaves(call.arguments)]
    return said + [text for document in documents for text in document.fields().values()]


def _occurs_after(whole: Transcript, invocation: tuple[int, ...], before: Transcript) -> bool:
    """Whether the invocation's last occurrence ends behind what `whole` begins with as `before`."""
    n = common(before.tokens, whole.tokens)
    return find_last(whole.tokens[max(0, n - len(invocation) + 1) :], invocation) is not None
