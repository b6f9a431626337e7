"""A chat: messages and documents on one session, replies, and intrinsics asked about them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from alora_gguf._calls import Within, check_texts, checked, uninterrupted
from alora_gguf.decide.answers import Decision
from alora_gguf.decide.questions import (
    MAX_OPTIONS,
    Asked,
    Question,
    check_temperatures,
    read_questions,
)
from alora_gguf.engine.activation import reader_of
from alora_gguf.engine.special import spelled
from alora_gguf.engine.tokens import BASE, common
from alora_gguf.errors import AloraError, ClosedError, InputError, ModelError, SavedSessionError
from alora_gguf.generate.generation import Generation
from alora_gguf.messages import Document, Message, Said, Texts, as_documents, as_said
from alora_gguf.options import (
    AdapterLike,
    CancelToken,
    GenerateOptions,
    IntrinsicCall,
    Progress,
    Timings,
    check_adapter,
    check_int,
    reply_options,
)
from alora_gguf.session import Session
from alora_gguf.tools import Tool, ToolLike

from .asking import Alongside, Contracts, IntrinsicResult, as_call, as_calls, ask_all, changed_call
from .deciding import Deciding, decide
from .manner import as_json, said
from .prompt import ChatTemplate, Dialogue, Transcript, present
from .reply import Reply
from .said import Parts
from .supervised import Supervised, supervise
from .tools import ToolUse, usable_tools

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from alora_gguf.model import Model
    from alora_gguf.options import CallFields, GenerateFields

_NOTES: Final = "alora_gguf.chat"  # where a saved session's notes have the chat


@uninterrupted
@checked
class Chat:
    """A conversation in messages, written by the model's own chat template; made by Model.chat().

    What is said is read once and stays in the cache; what is changed or taken back is re-read
    from there on. Intrinsics are asked on forks of the cells, so they change nothing.

    For any thread; calls take turns. Every method raises ClosedError once the chat or its model is
    closed, CacheFullError when the KV cache has no room, InputError where the template refuses the
    messages, CancelledError, and leaves the chat as it was when it raises.
    """

    def __init__(
        self,
        session: Session,
        contracts: Contracts,
        template: ChatTemplate,
        *,
        messages: Iterable[Said] = (),
        documents: Texts = (),
        tools: Iterable[ToolLike] = (),
        arguments: Mapping[str, object] | None = None,
    ) -> None:
        """Model.chat() calls it. Raises InputError."""
        self._session = session
        self._vocab = session._runtime.vocab
        self._contracts = contracts
        self._template = template
        # the messages, and the reply that is not over: together, so that who looks sees both
        self._said: tuple[tuple[Message, ...], Reply | None] = (as_said(messages), None)
        self._documents = as_documents(documents)
        self._tools = usable_tools(tools)
        self._arguments = dict(arguments or {})
        self._now = present()  # what is cached stays right over midnight
        self._notes: dict[str, Any] = {}
        template.check_arguments(self._arguments, "template_arguments")
        self._transcript = Transcript()
        self._held: Transcript | None = None  # one that the cells are known to hold
        self._begun: tuple[object, ...] | None = None  # what the prompt cache was asked for last
        self._reader: tuple[AdapterLike | None, float] = (None, 1.0)
        self._lock = threading.RLock()

    # What was said -------------------------------------------------------------------------------

    @property
    def model(self) -> Model:
        """The model it was made by."""
        return self._session.model

    @property
    def messages(self) -> list[Message]:
        """All messages in order, a system message included; a reply that is not over is the last.
        A copy.
        """
        return list(self._so_far())

    @property
    def documents(self) -> list[Document]:
        """What the conversation is about, a copy. Setting it makes the next call re-read
        the conversation from where they stand.
        """
        return list(self._documents)

    @documents.setter
    def documents(self, documents: Texts) -> None:
        new = as_documents(documents)
        with self._lock:
            self._begin()
            self._documents = new

    @property
    def tools(self) -> list[Tool]:
        """The tools that a reply may call, a copy. Setting it makes the next call re-read the
        conversation from where they stand. Raises InputError, SchemaError.
        """
        return list(self._tools)

    @tools.setter
    def tools(self, tools: Iterable[ToolLike]) -> None:
        new = usable_tools(tools)
        with self._lock:
            self._begin()
            self._tools = new

    @property
    def documents_place(self) -> Literal["template", "system", "user"]:
        """Where the documents stand: "template" where the chat template writes them; in one that
        takes none in the "system" message or, where there can be none, in the "user"'s first.
        """
        return self._template.place

    @property
    def system(self) -> str | None:
        """The first message if it is a system message, or None. Setting it, with the same
        consequence as for documents, replaces or removes it.
        """
        first = self._said[0][:1]
        return first[0].content if first and first[0].role == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        with self._lock:
            messages = self._begin()
            rest = messages if self.system is None else messages[1:]
            instructions = () if text is None else (Message("system", text),)
            self._said = ((*instructions, *rest), None)

    @property
    def template(self) -> str:
        """The Jinja text that writes the conversation."""
        return self._template.source

    @property
    def tokens(self) -> list[int]:
        """The token ids that were read and written so far, a copy."""
        return self._session.tokens

    @property
    def session(self) -> Session:
        """The session below, to look at: what changes it changes the chat's ground."""
        return self._session

    @property
    def notes(self) -> dict[str, Any]:
        """What was saved beside it, if it was restored; a copy."""
        return dict(self._notes)

    # Talking -------------------------------------------------------------------------------------

    def add(
        self,
        message: Said,
        *,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> Timings:
        """Adds a message, the user's if it is text, and reads it without a reply."""
        with self._lock:
            messages = (*self._begin(), _one(message))
            timings = self._read(messages, cancel, progress)
            self._said = (messages, None)
            return timings

    def check(self, message: Said) -> None:
        """Raises InputError where the template would refuse the conversation with one more message,
        the user's if it is text, and changes nothing.
        """
        with self._lock:
            self._check_open()
            self._dialogue((*self._so_far(), _one(message))).written(prompt=True)

    def count(self, messages: Iterable[Said] | None = None, documents: Texts | None = None) -> int:
        """How many tokens these `messages` about these `documents` (None: those that it has) come
        to, with what begins a reply. Reads and changes nothing. Raises InputError where the
        template refuses them, CacheFullError for more than the KV cache can ever hold where that is
        known before they are counted.
        """
        new = None if messages is None else as_said(messages)
        pages = None if documents is None else as_documents(documents)
        with self._lock:
            self._check_open()
            dialogue = self._dialogue(new)
            if pages is not None:
                dialogue = replace(dialogue, documents=pages)
            return len(dialogue.written(prompt=True).tokens)

    def say(
        self,
        text: str,
        options: GenerateOptions | None = None,
        *,
        stream: bool = False,
        intrinsics: Sequence[str | IntrinsicCall] = (),
        tool_choice: str = "auto",
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
        **changes: Unpack[GenerateFields],
    ) -> Reply:
        """Adds what the user says, and replies: the whole reply, or with `stream` one that runs as
        it is iterated over. Fields of GenerateOptions and Sampling can be given as keywords, which
        win over `options`: `chat.say("Hi", max_tokens=64, temperature=0)`.

        `intrinsics` are asked about what the user said while the reply begins, in the same batches,
        and go on if it ends early; `Reply.intrinsics` has their results.

        Where the chat has tools, `tool_choice` "auto" leaves it to the model whether it calls any,
        "none" has it only talk, "required" has it call one at once, or several, and a tool's name
        that one; calls match their tools' JSON Schemas. A `schema` or grammar for all that is said
        leaves no room for calls.

        `cancel` raises while the conversation is read, and later ends the reply where it is. Raises
        UnknownAdapterError and SchemaError for the options, InputError for a tool there is not.
        """
        how = reply_options(options, changes, "Chat.say()")
        with self._lock:
            messages = (*self._begin(), _one(text))
            return self._reply(messages, how, stream, intrinsics, tool_choice, cancel, progress)

    def reply(
        self,
        options: GenerateOptions | None = None,
        *,
        stream: bool = False,
        intrinsics: Sequence[str | IntrinsicCall] = (),
        tool_choice: str = "auto",
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
        **changes: Unpack[GenerateFields],
    ) -> Reply:
        """Replies to the conversation as it is; see say()."""
        how = reply_options(options, changes, "Chat.reply()")
        with self._lock:
            messages = self._begin()
            return self._reply(messages, how, stream, intrinsics, tool_choice, cancel, progress)

    def rewind(self, turns: int = 1) -> list[Message]:
        """Takes back the last `turns` messages of the user and all that followed; returns them."""
        with self._lock:
            messages = self._begin()
            starts = [i for i, message in enumerate(messages) if message.role == "user"]
            check_int(turns, "turns", 0, len(starts))
            at = starts[-turns] if turns else len(messages)
            kept, taken = messages[:at], messages[at:]
            try:
                self._transcript = self._dialogue(kept).written(prompt=False)
            except InputError:  # a template may not write an empty conversation
                self._transcript = Transcript()
            self._session.rewind(common(self._transcript.tokens, tuple(self._session.tokens)))
            self._said = (kept, None)
            return list(taken)

    def replace(
        self,
        messages: Iterable[Said] | None = None,
        documents: Texts | None = None,
        *,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> Timings:
        """Makes the conversation these `messages` about these `documents` (None: those that it
        has), and reads what the cache does not hold of them. Where the user says nothing in them
        yet, nothing is read, and only the template has to take them.
        """
        new = None if messages is None else as_said(messages)
        pages = None if documents is None else as_documents(documents)
        with self._lock:
            said, kept = self._begin(), self._documents
            new = said if new is None else new
            try:
                self._documents = kept if pages is None else pages
                if any(message.role == "user" for message in new):
                    timings = self._read(new, cancel, progress)
                else:
                    asked = self._dialogue((*new, Message("user", "?"))).written(prompt=True)
                    # forks would hold what no conversation has any more
                    held = self._session.tokens
                    self._session.release(common(asked.tokens, tuple(held)))
                    timings = Timings()
            except BaseException:
                self._documents = kept
                raise
            self._said = (new, None)
            return timings

    def fork(self) -> Chat:
        """A second chat that goes on from here; the cells up to here are shared. A reply that is
        not over goes on; the other chat has what was said so far.
        """
        with self._lock:
            self._check_open()
            other = Chat(
                self._session.fork(),
                self._contracts,
                self._template,
                messages=self._so_far(),
                documents=self._documents,
                tools=self._tools,
                arguments=self._arguments,
            )
            other._transcript, other._reader = self._written(), self._reader
            other._now = self._now
            return other

    # Asking --------------------------------------------------------------------------------------

    def invoke(
        self,
        call: str | IntrinsicCall,
        arguments: Mapping[str, str] | None = None,
        *,
        cancel: CancelToken | None = None,
        **changes: Unpack[CallFields],
    ) -> IntrinsicResult:
        """Asks an intrinsic about the conversation, by the name of its adapter; `arguments` fill in
        its contract's instruction. Fields of IntrinsicCall and Sampling can be given as keywords,
        such as `max_tokens=64`. See invoke_many().
        """
        asked = changed_call(self._contracts, as_call(call, arguments), changes)
        return self.invoke_many([asked], cancel=cancel)[0]

    def invoke_many(
        self, calls: Sequence[str | IntrinsicCall], *, cancel: CancelToken | None = None
    ) -> list[IntrinsicResult]:
        """Asks several intrinsics at once, each on a fork of the cells; a reply that is not over
        goes on afterwards. Contracts, replies' forms and their lengths may differ.

        Returns one result per call, in order; a reply that is not what its contract says is an
        error of its own result only. Raises UnknownAdapterError, ContractError, and InputError for
        arguments that a contract does not take or lacks, and for two calls of one alias.
        """
        asked = as_calls(calls)
        with self._lock:
            self._check_open()
            messages, live = self._said
            if live is None:
                with suppress(InputError):  # refused: what a contract makes of it need not be
                    self._read(messages, cancel)
            return ask_all(self._contracts, self._session, self._dialogue(), asked, cancel)

    def decide(
        self,
        questions: Mapping[str, Asked],
        *,
        orders: Annotated[int, Within(1, MAX_OPTIONS)] | None = None,
        temperature: Mapping[str, float] | None = None,
        cancel: CancelToken | None = None,
    ) -> Decision:
        """Asks typed questions about the conversation at once, each on forks of the cells, for a
        probability of every option. A question is a Predicate, Choice or Score, System One's
        mapping for one (`{"type": "noul", "instructions": "Is it urgent?"}`), or an IntrinsicCall
        whose contract's answer is a decision (also `{"intrinsic": name}`).

        Options are read from the logits, in `orders` orders that are averaged (None: all rotations
        of up to 8 options, fewer of more). `temperature` divides their log-probabilities, by type
        of question ("noul", "choice", "score"); what neither it nor the question gives is the
        adapter's, or else the base's, as their files say.

        Raises InputError, naming the question and its field, UnknownAdapterError, ContractError.
        """
        asked, given = read_questions(questions), check_temperatures(temperature)
        with self._lock:
            return self._decide(asked, orders, given, cancel)

    def supervise(
        self, call: str | IntrinsicCall, answer: Any, arguments: Mapping[str, str] | None = None
    ) -> Supervised:
        """What invoke() reads for a call, and the reply from which its contract makes `answer`, in
        tokens, to train an adapter on; nothing is read. `answer` is text, or what JSON can hold.

        Raises InputError for an answer that the contract excludes, and as invoke() does.
        """
        asked = as_call(call, arguments)
        with self._lock:
            self._check_open()
            return supervise(self._contracts, self._dialogue(), asked, answer)

    # Keeping -------------------------------------------------------------------------------------

    def reserve(
        self,
        n: int,
        *,
        adapter: AdapterLike | None = None,
        scale: float = 1.0,
        cancel: CancelToken | None = None,
    ) -> None:
        """Promises the conversation the cells in which a reply to it, by an `adapter` if one is
        given, can have `n` tokens; intrinsics need more. See Session.reserve().
        """
        with self._lock:
            messages, adapter = self._begin(), check_adapter(adapter)
            file = None if adapter is None else self._contracts.acting(adapter)
            prompt = self._dialogue(messages).reply_prompt(() if file is None else file.invocation)
            self._session.reserve(
                n, prompt=prompt.tokens, adapter=adapter, scale=scale, cancel=cancel
            )

    def read(
        self, *, cancel: CancelToken | None = None, progress: Progress | None = None
    ) -> Timings:
        """Reads what was given but not read yet, so that the next call need not."""
        with self._lock:
            return self._read(self._begin(), cancel, progress)

    def recall(
        self, *, cancel: CancelToken | None = None, progress: Progress | None = None
    ) -> Timings:
        """Reads instructions, tools and documents alone, out of the model's prompt_cache or for it;
        nothing without one. Other calls do so by themselves.
        """
        with self._lock:
            messages = self._begin()
            beginning = self._beginning(messages)
            if not beginning:
                return Timings()
            self._held, started = None, time.perf_counter()
            timings = self._session._recall(beginning, cancel, progress)
            self._begun = self._begins(messages)
            return replace(timings, total=time.perf_counter() - started)

    def save(self, path: str | os.PathLike[str], *, notes: Mapping[str, Any] | None = None) -> None:
        """Writes messages, documents and cells to a file, for Model.restore(); `notes` (what JSON
        can hold) go with them. A reply that is not over goes on; what was said so far is saved.
        Raises as Session.save() does.
        """
        with self._lock:
            self._check_open()
            written = self._written()
            own = {
                "messages": [said(each, as_text=True) for each in self._so_far()],
                "documents": [asdict(document) for document in self._documents],
                "tools": [as_json(tool.fields()) for tool in self._tools],  # in their order
                "arguments": self._arguments,
                "template": self._template.source,
                "text": written.text,
                "tokens": list(written.tokens),
                "marks": [list(mark) for mark in written.marks],
                "reader": list(self._reader),
                "now": self._now.isoformat(),
            }
            self._session.save(path, notes={**(notes or {}), _NOTES: own})

    @classmethod
    def _restored(
        cls,
        session: Session,
        contracts: Contracts,
        template: Callable[[str], ChatTemplate],
        notes: Mapping[str, Any],
        origin: str,
    ) -> Chat:
        """What save() wrote, on its restored session. Raises SavedSessionError."""
        kept = notes.get(_NOTES)
        if not isinstance(kept, Mapping):
            raise SavedSessionError(
                f"{origin}: holds a session without a chat's messages; open it with "
                "Model.restore_session()"
            )
        try:
            check_texts(kept, "it")
            adapter, scale = kept["reader"]
            tokens = session._runtime.vocab.check(kept["tokens"], "tokens")
            if not isinstance(kept["template"], str):
                raise TypeError("the template is not text")
            chat = cls(
                session,
                contracts,
                template(kept["template"]),
                messages=kept["messages"],
                documents=kept["documents"],
                tools=[json.loads(each) for each in kept.get("tools", ())],  # in newer files
                arguments=kept["arguments"],
            )
            # older files have neither: what quotes control tokens, or says the date, is read anew
            if "now" in kept:
                chat._now = datetime.fromisoformat(kept["now"])
            marks = tuple((int(index), bool(always)) for index, always in kept.get("marks", ()))
            chat._transcript = Transcript(str(kept["text"]), tuple(tokens), marks)
            chat._reader = (check_adapter(adapter), float(scale))
            chat._notes = {name: each for name, each in notes.items() if name != _NOTES}
        except (KeyError, TypeError, ValueError, RecursionError, ModelError) as error:
            raise SavedSessionError(
                f"{origin}: the chat that it holds is damaged ({error!r}); restore its session "
                "with Model.restore_session()"
            ) from error
        return chat

    def close(self) -> None:
        """Ends it; its cells stay for others that begin like it, while nobody needs their room.
        Idempotent.
        """
        with self._lock:
            self._end_live()
            self._session.close()

    @property
    def closed(self) -> bool:
        """Whether the chat or its model was closed."""
        return self._session.closed

    def __repr__(self) -> str:
        if self.closed:
            return "<Chat: closed>"
        return f"<Chat: {len(self.messages)} messages, {len(self.tokens)} tokens>"

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, reply: Reply) -> None:
        """A reply is over: what it said is a message now."""
        if self._said[1] is not reply:
            return
        messages = self._so_far()
        if not self.closed:
            self._transcript = self._written()
        self._said = (messages, None)
        if reply.finish_reason == "stop":
            try:
                # what ends the turn: whoever asks about it now need not read it again and again
                if self._goes_on_as_read():
                    self._read(messages, None)
            except AloraError:
                return  # no room, say; the next call that needs it will tell

    def _decide(
        self,
        questions: Mapping[str, Question | IntrinsicCall],
        orders: int | None,
        temperature: Mapping[str, float],
        cancel: CancelToken | None,
        state: object = None,
    ) -> Decision:
        """What decide() does; `state` is the conversation where it was given as something else."""
        self._check_open()
        messages, live = self._said
        read = Timings(reused=self._session.cached)
        if live is None:
            with suppress(InputError):  # refused: folded into the last message it need not be
                read = self._read(messages, cancel)
        if state is None:
            state = [message.fields() for message in self._so_far()]
        known, template = self._session._runtime.base.temperatures, self.model._decision_template()
        how = Deciding(template, state, known, temperature, orders)
        return decide(
            self._contracts, self._session, self._dialogue(), questions, how, read, cancel
        )

    # The rest ------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError("the chat or its model was closed")

    def _begin(self) -> tuple[Message, ...]:
        """What adds to the conversation starts here: a reply that is not over ends. Returns the
        messages.
        """
        self._check_open()
        self._end_live()
        return self._said[0]

    def _end_live(self) -> None:
        live = self._said[1]
        if live is not None:
            live.close()

    def _so_far(self) -> tuple[Message, ...]:
        """The messages, and what was said so far by a reply that is not over."""
        messages, live = self._said
        if live is None or not (live.text or live.finish_reason == "stop"):
            return messages
        return (*messages, live._message(keeps_reasoning=self._template.keeps_reasoning))

    def _written(self) -> Transcript:
        """The transcript, and the tokens of a reply that is not over."""
        live = self._said[1]
        if live is None or not live.tokens:
            return self._transcript
        text, marks = spelled(live.tokens, self._vocab, self._template.markers)
        before, at = self._transcript, len(self._transcript.text)
        marks = (*before.marks, *((at + index, always) for index, always in marks))
        return Transcript(before.text + text, (*before.tokens, *live.tokens), marks)

    def _dialogue(self, messages: tuple[Message, ...] | None = None) -> Dialogue:
        said = self._so_far() if messages is None else messages
        return Dialogue(
            self._template,
            self._vocab,
            tuple(
                each.for_template(self._template.source, f"messages[{i}]")
                for i, each in enumerate(said)
            ),
            self._documents,
            self._variables(),
            self._written(),
            now=self._now,
        )

    def _variables(self) -> dict[str, object]:
        """What the template is given beside messages and documents."""
        tools = {"tools": [tool.fields() for tool in self._tools]} if self._tools else {}
        return {**self._arguments, **tools}

    def _read(
        self,
        messages: tuple[Message, ...],
        cancel: CancelToken | None,
        progress: Progress | None = None,
    ) -> Timings:
        """Makes the session hold the messages, without what begins a reply."""
        if not messages and not self._documents:
            return Timings()
        transcript = self._dialogue(messages).written(prompt=False)
        n = len(transcript.tokens)
        if transcript is self._held and self._session.cached == n:
            return Timings(reused=n)
        adapter, scale = self._reader
        names = {adapter} if isinstance(adapter, str) else set(adapter or ())
        if not names <= self._session._runtime.bank.loaded().keys():
            adapter, scale = None, 1.0
        beginning = self._beginning(messages, transcript.tokens) if adapter is None else ()
        self._held = None
        timings = self._session._read(
            lambda: list(transcript.tokens), adapter, scale, cancel, progress, beginning
        )
        self._transcript = self._held = transcript
        self._begun = self._begins(messages)
        if timings.reuse_note and self._documents and self.documents_place != "template":
            note = (
                f"{timings.reuse_note}; the documents stand in the {self.documents_place} message"
            )
            timings = replace(timings, reuse_note=note)
        return timings

    def _goes_on_as_read(self) -> bool:
        """Whether only what ends the turn is left to read."""
        n, spans = len(self._transcript.tokens), self._session.provenance
        after = self._dialogue().written(prompt=False).tokens
        alone = len(spans) == 1  # who read the history wrote the reply
        return after[:n] == self._transcript.tokens and (
            alone if self._reader[0] is not None else spans == ((0, BASE),)
        )

    def _reply(
        self,
        messages: tuple[Message, ...],
        how: GenerateOptions,
        stream: bool,
        intrinsics: Sequence[str | IntrinsicCall],
        tool_choice: str,
        cancel: CancelToken | None,
        progress: Progress | None,
    ) -> Reply:
        calls = as_calls(intrinsics)
        usage = ToolUse.of(self._tools, tool_choice, how)
        if not messages:
            raise InputError("there is nothing to reply to; say something first")
        before = self._said, self._transcript, self._reader
        tokens, cancel = self._session.tokens, cancel or CancelToken()
        read, beside, reply = None, None, None
        asked = CancelToken()
        try:
            if calls:
                cancel._watch(asked.cancel)
                read = self._read(messages, cancel, progress)
                dialogue = self._dialogue(messages)
                beside = Alongside(self._contracts, self._session, dialogue, calls, asked)
            try:
                reply, parts = self._generate(messages, how, usage, cancel, progress)
            finally:
                if beside is not None:
                    beside.go_on()
            results = () if beside is None else beside.results
            reply._join(self._lock, self._take, results, read, parts)
            self._said = (messages, reply)
            if not stream:
                reply.read()
        except BaseException:
            asked.cancel()
            self._said, self._transcript, self._reader = before
            if reply is not None:
                Generation.close(reply)
            self._session._go_back(tokens)
            raise
        return reply

    def _generate(
        self,
        messages: tuple[Message, ...],
        how: GenerateOptions,
        usage: ToolUse | None,
        cancel: CancelToken,
        progress: Progress | None,
    ) -> tuple[Reply, Parts]:
        """Starts what the session generates as a reply to the messages."""
        file = None if how.adapter is None else self._contracts.acting(how.adapter)
        # a plain LoRA reads all of it; what an aLoRA or a vector wrote is the base's to read
        reader = reader_of(how.adapter, how.scale, self._contracts.adapter)
        prompt = self._dialogue(messages).reply_prompt(() if file is None else file.invocation)
        thinking = self._template.thinking
        begun = prompt.text.rstrip().endswith(thinking[0])
        form = None if usage is None else self._template.call_form
        parts = Parts(thinking, form, begun=begun)
        rules = None
        if usage is not None:
            rules = usage.rules(self._template.call_form, thinking, begun=begun)
        beginning = self._beginning(messages, prompt.tokens) if reader[0] is None else ()
        self._held = None
        reply = self._session._generate(
            Reply, how, prompt.tokens, cancel, progress, rules, beginning
        )
        self._reader, self._transcript = reader, prompt
        self._begun = self._begins(messages)
        return reply, parts

    def _begins(self, messages: tuple[Message, ...]) -> tuple[object, ...]:
        """What is said before the user says anything."""
        instructions = takewhile(lambda message: message.role == "system", messages)
        return (*instructions, *self._documents, *self._tools)

    def _beginning(
        self, messages: tuple[Message, ...], tokens: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Its tokens, if the model's prompt cache is to be asked for them before the conversation
        is made these `tokens`, which are what comes next (None: nothing does).
        """
        model, held = self._session.model, tuple(self._session.tokens)
        if model._prompt_cache is None:
            return ()
        if self._session.cached and model.rewinds and self._begins(messages) == self._begun:
            return ()
        if not model.rewinds:
            # cells of more than is read are of no use where they cannot be cut
            goes_on = self._session.cached and held == tuple(tokens or ())[: len(held)]
            if goes_on or not any(message.role != "system" for message in messages):
                return ()
        found = self._dialogue(messages).beginning()
        if tokens is None or common(found, tuple(tokens)) == min(len(found), len(tokens)):
            return found
        return ()  # a template that writes documents with the last message, say


def _one(message: Said) -> Message:
    return Message("user", message) if isinstance(message, str) else Message.of(message, "message")
