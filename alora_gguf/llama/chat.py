"""Chats with adapters, intrinsics, JSON Schemas and documents: what stock's chat formats and
handlers are not told.
"""

from __future__ import annotations

import inspect
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import jinja2
import numpy as np
from llama_cpp import llama_chat_format
from llama_cpp.llama_grammar import JSON_GBNF, LlamaGrammar
from llama_cpp.llama_tokenizer import LlamaTokenizer

from alora_gguf.chat.asking import MAX_TOKENS, Question, sampling_of, tell_apart
from alora_gguf.chat.limits import at
from alora_gguf.chat.prompt import ChatTemplate, Dialogue, Transcript, present
from alora_gguf.chat.quoting import Quoting, leaves
from alora_gguf.engine.llama_context import Logits
from alora_gguf.engine.special import Marks, SpecialTokens, spelled
from alora_gguf.engine.tokens import find_last
from alora_gguf.errors import InputError, ModelError, UnknownAdapterError
from alora_gguf.generate.constraint import Constraint
from alora_gguf.generate.invoke import Verdict, run_invocations
from alora_gguf.generate.plan import Parent
from alora_gguf.messages import Message, as_documents, documents_as_text, in_messages
from alora_gguf.options import AdapterLike, IntrinsicCall, Invocation

from .reader import BASE, Reader
from .request import Logprobs

_DEFAULT: Final = "chat_template.default"
_SAMPLING: Final = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty",
    "presence_penalty", "seed",
)  # fmt: skip
_WITH_INTRINSIC: Final = {*_SAMPLING, "max_tokens", "messages", "model", "prompt", "stream"}


@dataclass
class Extra:
    """What a chat or a completion is given beside stock's options."""

    adapter: AdapterLike | None = None
    scale: float = 1.0
    documents: Sequence[Any] | None = None
    template: Mapping[str, object] = field(default_factory=dict)
    intrinsic: str | None = None
    arguments: Mapping[str, str] | None = None


def complete(llama: Reader, options: dict[str, Any], extra: Extra) -> Any:
    """Llama.create_chat_completion()'s work, without an intrinsic."""
    template = _file_template(llama)
    given = options["messages"]
    if not isinstance(given, Iterable):
        _check_messages(given, ())
    options["messages"] = [m.fields() if isinstance(m, Message) else m for m in given]
    stop = options["stop"]
    options["stop"] = [stop] if isinstance(stop, str) else list(stop or ())
    if options["logprobs"] and options["top_logprobs"] is None:
        options["top_logprobs"] = 0  # in OpenAI's API: the chosen tokens' only
    variables = _variables(extra, template, options)
    if extra.documents and "documents" not in variables:
        place = "user" if template is None else template.place
        options["messages"] = in_messages(
            options["messages"],
            documents_as_text(as_documents(extra.documents)),
            place,
            _spoken,
            _as_spoken,
        )
    name = llama.chat_format or ""
    handler: Any = llama.chat_handler or llama._chat_handlers.get(name)
    handler = handler or llama_chat_format.get_chat_completion_handler(name)
    constraint = _constraint(llama, options)
    caller = _Caller(llama, options, extra, template, constraint, variables, handler)
    with at(_began(llama, options["messages"])):
        try:
            answer: Any = handler(llama=caller, **options, **variables)
        except (jinja2.UndefinedError, TypeError):
            _check_messages(given, options["messages"])  # which some template may have accepted
            raise
    return _each(caller.with_bytes, answer) if options["logprobs"] else answer


def _check_messages(given: object, messages: Sequence[Any]) -> None:
    """Raises InputError where what was given is no list, or one of the `messages` in it is none."""
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise InputError(
            f"messages is {repr(given)[:60]}, expected a list of messages such as "
            '{"role": "user", "content": "..."}'
        )
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not message.get("tool_calls"):
            Message.of(message, f"messages[{i}]")


def _spoken(message: Any) -> Message:
    """A message of OpenAI's API as far as documents go into it."""
    role, content = message.get("role"), message.get("content")
    goes = role in ("system", "user") and content is not None
    return Message.of(message) if goes else Message(str(role), "")


def _as_spoken(message: Message, like: Any) -> Any:
    return {**(like or {}), "role": message.role, "content": message.content}


def _each(change: Callable[[Any], Any], answer: Any) -> Any:
    """What `change` makes of an answer, or of each chunk of a stream."""
    return change(answer) if isinstance(answer, dict) else map(change, answer)


def _began(llama: Reader, messages: Sequence[Any]) -> datetime:
    """The date that a template writes: when the conversation began, if the messages go on with the
    latest one, or the present.
    """
    known, began = llama._conversation
    if not known or len(messages) <= len(known) or list(messages[: len(known)]) != known:
        began = present()
    llama._conversation = list(messages), began
    return began


def _file_template(llama: Reader) -> ChatTemplate | None:
    """The template of the model's file that chats are written with, if it is one."""
    name = llama.chat_format
    if llama.chat_handler is not None or name not in llama._chat_handlers:
        return None
    key = "tokenizer." + ("chat_template" if name == _DEFAULT else name)
    return None if key not in llama.metadata else _template(llama, llama.metadata[key])


def _template(llama: Reader, source: str) -> ChatTemplate:
    kept: dict[str, ChatTemplate] = llama._runtime.vocab.kept.setdefault("templates", {})
    if source not in kept:
        special = llama._special_tokens_in_text
        kept[source] = ChatTemplate(
            source, llama._runtime.vocab, llama.model_path, special_tokens_in_text=special
        )
    return kept[source]


def _variables(
    extra: Extra, template: ChatTemplate | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What a template gets beside what stock gives it."""
    variables = dict(extra.template)
    taken = sorted(options.keys() & variables.keys())
    if taken:
        raise InputError(f"chat_template_kwargs cannot set {', '.join(taken)}")
    if template is not None:
        template.check_arguments(variables, "chat_template_kwargs")
    if extra.documents is not None and template is not None and template.place == "template":
        variables["documents"] = [each.fields() for each in as_documents(extra.documents)]
    if variables and template is None:
        raise InputError(
            f"{' and '.join(sorted(variables))} cannot be used with this chat format or handler: "
            f"only a template of the model's file takes more than messages (chat_format=\""
            f'{_DEFAULT}")'
        )
    return variables


# What a reply must look like ---------------------------------------------------------------------


def _constraint(llama: Reader, options: dict[str, Any]) -> Constraint | None:
    """The constraint of a JSON Schema in `response_format`, which is taken out of `options`."""
    form = options["response_format"]
    kind = None if form is None else form.get("type")
    if form is None or kind == "text":
        return None
    if kind == "json_object" and "schema" not in form:
        # not all handlers look at response_format
        options["grammar"] = LlamaGrammar.from_string(JSON_GBNF, verbose=False)
        return None
    if kind not in ("json_object", "json_schema"):
        raise InputError(
            f"response_format: type is {kind!r}, expected 'text', 'json_object' or 'json_schema'"
        )
    inner = form.get("json_schema", form) if kind == "json_schema" else form
    if not isinstance(inner, Mapping) or "schema" not in inner:
        raise InputError(
            "response_format: json_schema has no schema, expected "
            '{"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}'
        )
    options["response_format"] = None
    return Constraint.compile(inner["schema"], llama._runtime.vocab)


class _Mask:
    """A constraint as a logits processor, for one reply."""

    def __init__(self, constraint: Constraint) -> None:
        self._matcher = constraint.start()
        self._n: int | None = None  # tokens before the reply, and of it so far

    def __call__(self, ids: Sequence[int], row: Logits) -> Logits:
        for token in ids[len(ids) if self._n is None else self._n :]:
            self._matcher.accept(int(token))
        self._n = len(ids)
        return self._matcher.mask(np.asarray(row, np.float32))


# What a handler sees -----------------------------------------------------------------------------


@dataclass
class _Caller:
    """The Llama that a handler sees: its completions have the chat's adapter and constraint."""

    llama: Reader
    options: dict[str, Any]
    extra: Extra
    template: ChatTemplate | None
    constraint: Constraint | None
    variables: Mapping[str, Any]
    handler: Any
    content: deque[Any] = field(default_factory=deque)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llama, name)

    def create_completion(self, prompt: str | list[int], **keywords: Any) -> Any:
        """Llama.create_completion(), which a subclass may have overridden."""
        if self.constraint is not None and keywords.get("grammar") is None:
            before = keywords.get("logits_processor") or ()
            keywords["logits_processor"] = [*before, _Mask(self.constraint)]
        adapter = self.extra.adapter
        if isinstance(prompt, str) and (marks := self._marks(prompt, self._written)):
            prompt = self._ids(prompt, marks, add_bos=self.llama._model.add_bos_token())
        if adapter is not None:
            if not isinstance(prompt, str):
                prompt = self._with_invocation(prompt, adapter)
            keywords |= {"adapter": adapter, "adapter_scale": self.extra.scale}
        answer = self.llama.create_completion(prompt=prompt, **keywords)
        return answer if keywords.get("logprobs") is None else _each(self._note, answer)

    # Control tokens that are only quoted

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Llama.tokenize() of the conversation as a template wrote it."""
        whole = text.decode("utf-8", "ignore")
        self.llama._check_fits(whole)
        marks = self._marks(whole, self._written) if special else ()
        if marks:
            return self._ids(whole, marks, add_bos=add_bos)
        return self.llama.tokenize(text, add_bos, special)

    def _ids(self, text: str, marks: Marks, *, add_bos: bool) -> list[int]:
        bos = [self.llama.token_bos()] if add_bos and self.llama._model.add_bos_token() else []
        return [*bos, *SpecialTokens.of(self.llama._runtime.vocab).tokenize(text, marks)]

    def _marks(
        self, text: str, write: Callable[[Any, Any], str], words: Sequence[int] = ()
    ) -> Marks:
        """Where the conversation's text only quotes control tokens, or an invocation's words.
        `write` writes it, of messages and a template's variables.
        """
        llama, vocab = self.llama, self.llama._runtime.vocab
        if llama._special_tokens_in_text or type(llama.tokenizer_) is not LlamaTokenizer:
            return ()
        source = "" if self.template is None else self.template.source
        said = self.options["messages"], self.variables.get("documents", ())
        quoting = Quoting.of((text, *leaves(said)), SpecialTokens.of(vocab).markers(source))
        quoting = quoting.splitting(words, vocab)
        signed = list(leaves(quoting.json(said)))
        if signed == list(leaves(said)):
            return ()

        def render(quoting: Quoting) -> str:
            messages, documents = quoting.json(said)
            variables = {**self.variables, "documents": documents}
            return write(messages, variables if documents else self.variables)

        return quoting.places(text, render, signed)

    def _written(self, messages: list[Any], variables: Mapping[str, Any]) -> str:
        """What the handler wants completed."""
        options = {**self.options, "messages": messages}
        try:
            self.handler(llama=_Asked(self.llama), **options, **variables)
        except _Completes as asked:
            return asked.text
        except (ValueError, jinja2.TemplateError) as error:
            raise InputError(str(error)) from error
        return ""

    # Log-probabilities: stock's chats have no bytes

    def _note(self, answer: Any) -> Any:
        logprobs = answer["choices"][0]["logprobs"]
        if isinstance(logprobs, Logprobs):
            self.content.extend(logprobs.content(self.llama._runtime.vocab))
        return answer

    def with_bytes(self, answer: Any) -> Any:
        """A chat completion or a chunk with the tokens' bytes."""
        for choice in answer["choices"]:
            if choice.get("logprobs"):
                n = min(len(choice["logprobs"]["content"]), len(self.content))
                choice["logprobs"]["content"] = [self.content.popleft() for _ in range(n)]
        return answer

    # Where an adapter begins

    def _with_invocation(self, prompt: list[int], adapter: AdapterLike) -> list[int]:
        """`prompt`, with the adapter's invocation in place of the assistant's marker if the last
        turn lacks it.
        """
        try:
            file = self.llama._contracts.acting(adapter)
        except (UnknownAdapterError, InputError):
            return prompt  # what is wrong, create_completion says
        if not file.invocation or self.template is None:
            return prompt
        messages = self.options["messages"]
        if not self._in_last_turn(prompt, messages, file.invocation):
            return [*self._render(messages), *file.invocation]
        if find_last(self._render(messages), file.invocation) is None:
            return prompt  # what begins the assistant's turn has it
        prompt = self._render(messages, prompt=True, words=file.invocation)
        if self._in_last_turn(prompt, messages, file.invocation):
            return prompt
        return [*self._render(messages), *file.invocation]

    def _in_last_turn(
        self, prompt: list[int], messages: list[Any], invocation: Sequence[int]
    ) -> bool:
        at = find_last(prompt, invocation)
        return at is not None and at + len(invocation) > self._last_turn(prompt, messages)

    def _last_turn(self, prompt: list[int], messages: list[Any]) -> int:
        """Where the last message begins in the prompt, as far as can be told."""
        try:
            before = self._render(messages[:-1]) if len(messages) > 1 else []
        except (ValueError, jinja2.TemplateError):  # a template may refuse half a conversation
            return 0
        n = min(len(before), len(prompt))
        return next((i for i in range(n) if before[i] != prompt[i]), n)

    def _render(
        self, messages: list[Any], *, prompt: bool = False, words: Sequence[int] = ()
    ) -> list[int]:
        """The messages in tokens, with the assistant's marker if they are a `prompt`."""
        names = ("functions", "function_call", "tools", "tool_choice")
        of_stock = {name: self.options[name] for name in names}
        formatter: Any = self.template._formatters[prompt]  # type: ignore[union-attr]

        def write(messages: list[Any], variables: Mapping[str, Any]) -> str:
            text: str = formatter(messages=messages, **of_stock, **variables).prompt
            return text

        text = write(messages, self.variables)
        n = len(messages)
        marks = self._marks(text, lambda said, given: write(said[:n], given), words)
        return self._ids(text, marks, add_bos=False)


class _Completes(Exception):  # noqa: N818 (no error: it ends a handler)
    """A handler asks for the completion of a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


@dataclass
class _Asked:
    """The Llama of a handler that is only to say what it wants completed."""

    llama: Reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.llama, name)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        """Llama.tokenize(), which a prompt with control tokens is not given to."""
        if special:
            raise _Completes(text.decode("utf-8", "ignore"))
        return self.llama.tokenize(text, add_bos, special)

    def create_completion(self, prompt: Any, **_: Any) -> Any:
        """Llama.create_completion(), of which nothing is made."""
        raise _Completes(prompt if isinstance(prompt, str) else "")


# Intrinsics --------------------------------------------------------------------------------------


def ask(llama: Reader, options: dict[str, Any], method: Callable[..., Any], extra: Extra) -> Any:
    """The answer of an intrinsic about messages and documents, or about a prompt, which stay in the
    cells as the base reads them; its text is the contract's value as JSON. `options` are stock's
    `method`'s.
    """
    parameters = inspect.signature(method).parameters
    required = inspect.Parameter.empty
    given = {
        name: value
        for name, value in options.items()
        if parameters[name].default is required or value != parameters[name].default
    }
    for name, value in {**given, "adapter": extra.adapter}.items():
        if name not in _WITH_INTRINSIC and value is not None and value != []:
            raise InputError(
                f"{name}= cannot be used with intrinsic=: its contract says what is asked and what "
                "the reply looks like; use adapter= to ask the adapter itself"
            )
    with llama._lock:
        value, usage = _ask(llama, given, extra)
    text = json.dumps(value, ensure_ascii=False)
    answer: Any = {
        "id": f"cmpl-{uuid.uuid4()}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": options["model"] or llama.model_path,
        "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage,
    }
    chat = "messages" in options
    if not options["stream"]:
        return llama_chat_format._convert_completion_to_chat(answer) if chat else answer
    if not chat:
        return iter([answer])
    (choice,) = answer["choices"]  # a value is only known at the end: one chunk, and the end
    chunks: Any = (
        {**answer, "choices": [{**choice, "finish_reason": end}]} for end in (None, "stop")
    )
    return llama_chat_format._convert_completion_to_chat(chunks, stream=True)


def _ask(llama: Reader, given: Mapping[str, Any], extra: Extra) -> tuple[Any, dict[str, int]]:
    """The value, and how many tokens it took."""
    started = time.perf_counter()
    if "messages" in given:
        dialogue = _dialogue(llama, given["messages"], extra)
        read, call = dialogue.written(prompt=False), _call(llama, given, extra)
        tokens: Sequence[int] = read.tokens
        question = Question.about(llama._contracts, replace(dialogue, transcript=read), call)
    else:
        tokens = _prompt_tokens(llama, given["prompt"])
        question = Question.after(llama._contracts, tokens, _call(llama, given, extra))
    prepared = time.perf_counter() - started
    llama._reuse(list(tokens), BASE)
    llama.eval(tokens[llama.n_tokens :])
    cells = llama._sequence
    parent = Parent(cells.seq, cells.cached, tuple(cells.tokens), cells.logits)

    def ask(invocations: Sequence[Invocation]) -> list[Verdict]:
        return run_invocations(llama._runtime, parent, invocations, None, None)

    (verdict,) = ask([question.invocation])
    (further,) = tell_apart([(question, verdict)], ask)
    result = question.result(verdict, prepared, further)
    llama._last_timings = result.timings
    n_prompt, n_reply = len(question.invocation.prompt or ()), result.timings.generated
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n_reply}
    return result.value, {**usage, "total_tokens": n_prompt + n_reply}


def _prompt_tokens(llama: Reader, prompt: str | Sequence[int]) -> list[int]:
    """A prompt's tokens, with the one that the vocabulary begins a text with."""
    if not isinstance(prompt, str):
        return llama._runtime.vocab.check(prompt, "prompt")
    llama._check_fits(prompt)
    bos, ids = llama.token_bos(), llama.tokenize(prompt.encode(), add_bos=False, special=True)
    return [bos, *ids] if llama._model.add_bos_token() and bos != -1 else ids


def _call(llama: Reader, given: Mapping[str, Any], extra: Extra) -> IntrinsicCall:
    """With sampling options of the request where the contract does not say."""
    name = extra.intrinsic or ""
    contract = llama._contracts.of(name)
    limit = contract.max_tokens or given.get("max_tokens") or MAX_TOKENS
    return IntrinsicCall(
        name,
        extra.arguments or {},
        scale=extra.scale,
        max_tokens=limit,
        sampling=sampling_of(contract, limit, {k: given[k] for k in _SAMPLING if k in given}),
    )


def _dialogue(llama: Reader, messages: Sequence[Any], extra: Extra) -> Dialogue:
    template, own = _file_template(llama), llama.metadata.get("tokenizer.chat_template")
    if template is None and own is None:
        raise ModelError(f"{llama.model_path}: has no chat template (tokenizer.chat_template)")
    template = template or _template(llama, str(own))
    template.check_arguments(extra.template, "chat_template_kwargs")
    vocab, read = llama._runtime.vocab, tuple(llama._input_ids.tolist())
    text, marks = spelled(read, vocab, template.markers)
    return Dialogue(
        template,
        vocab,
        tuple(Message.of(m, f"messages[{i}]") for i, m in enumerate(messages)),
        as_documents(extra.documents or ()),
        extra.template,
        Transcript(text, read, marks),
        now=_began(llama, messages),
    )
