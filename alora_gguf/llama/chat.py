"""Chats: llama-cpp-python's own formats and handlers, and what they are not told: adapters, JSON
Schemas in OpenAI's form, documents.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import jinja2
from llama_cpp import llama_chat_format
from llama_cpp.llama_grammar import JSON_GBNF, LlamaGrammar

from alora_gguf.engine.provenance import find_last
from alora_gguf.errors import InputError, SchemaError
from alora_gguf.messages import Message, as_document

from .options import ChatOptions

if TYPE_CHECKING:
    from llama_cpp import llama_types

    from .llama import Llama

    ChatAnswer = (
        llama_types.CreateChatCompletionResponse
        | Iterator[llama_types.CreateChatCompletionStreamResponse]
    )

_DEFAULT: Final = "chat_template.default"
_FALLBACK: Final = "llama-2"
_IN_METADATA: Final = "tokenizer.chat_template"
_NOT_FOR_HANDLERS: Final = frozenset(
    {
        "adapter", "adapter_scale", "chat_template_kwargs", "documents", "grammar", "intrinsic",
        "intrinsic_arguments", "messages", "response_format", "stop", "top_logprobs",
    }
)  # fmt: skip
_OF_TEMPLATES: Final = frozenset(
    {"add_generation_prompt", "bos_token", "documents", "eos_token", "llama", "raise_exception",
     "strftime_now"}
)  # fmt: skip
"""Names that a template gets from us, so that chat_template_kwargs cannot set them."""


@dataclass(frozen=True)
class Template:
    """A chat template of the model's file. `bare` leaves out the assistant's marker at the end."""

    source: str
    handler: Callable[..., Any]
    bare: Callable[..., Any]


def templates_of(llama: Llama) -> dict[str, Template]:
    """The file's templates by the names that chat_format knows them by."""
    vocab = llama._model
    eos, bos = vocab.token_eos(), vocab.token_bos()
    names = {
        key.removeprefix("tokenizer."): source
        for key, source in llama.metadata.items()
        if key.startswith(_IN_METADATA + ".")
    }
    if _IN_METADATA in llama.metadata:
        names[_DEFAULT] = llama.metadata[_IN_METADATA]

    def formatter(source: str, prompt: bool) -> Any:
        return llama_chat_format.Jinja2ChatFormatter(
            template=source,
            eos_token=vocab.token_get_text(eos) if eos != -1 else "",
            bos_token=vocab.token_get_text(bos) if bos != -1 else "",
            add_generation_prompt=prompt,
            stop_token_ids=[eos],
        )

    return {
        name: Template(source, formatter(source, True).to_chat_handler(), formatter(source, False))
        for name, source in names.items()
    }


def guess_format(metadata: Mapping[str, str], templates: Mapping[str, Template]) -> str:
    """The chat format of a model for which none was chosen."""
    if _DEFAULT not in templates:
        return _FALLBACK
    guessed = llama_chat_format.guess_chat_format_from_gguf_metadata(dict(metadata))
    return guessed or _DEFAULT


def check_handler(handler: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """`handler`, unless it is one that needs images. Raises InputError."""
    kinds = (llama_chat_format.Llava15ChatHandler, llama_chat_format.MTMDChatHandler)
    if isinstance(handler, kinds):
        raise InputError(
            f"chat_handler={type(handler).__name__} is not supported: images are not; use "
            "llama_cpp.Llama for it"
        )
    return handler


def answer_of(
    llama: Llama, text: str, *, n_prompt: int, n_reply: int, model: str | None
) -> llama_types.CreateChatCompletionResponse:
    """A chat completion object of a text that was made in another way; sizes in tokens."""
    return {
        "id": f"chatcmpl-{uuid.uuid4()}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model or llama.model_path,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_reply,
            "total_tokens": n_prompt + n_reply,
        },
    }


def complete_chat(llama: Llama, options: ChatOptions) -> ChatAnswer:
    """Llama.create_chat_completion()'s work."""
    template = None
    if llama.chat_handler is not None:
        handler = llama.chat_handler
    elif (template := llama._templates.get(llama.chat_format or "")) is not None:
        handler = template.handler
    else:
        handler = llama_chat_format.get_chat_completion_handler(llama.chat_format or _FALLBACK)
    messages = _messages(options.messages)
    extra = _template_arguments(options, template)
    passed = {
        name: getattr(options, name)
        for name in ChatOptions.__dataclass_fields__
        if name not in _NOT_FOR_HANDLERS
    }
    top = options.top_logprobs
    caller = _Caller(llama, options, template, messages, extra)
    form, grammar = _constraint(options)
    answer: ChatAnswer = handler(
        llama=caller,
        messages=messages,
        stop=[options.stop] if isinstance(options.stop, str) else list(options.stop or ()),
        # OpenAI's logprobs=true alone means the chosen tokens' only
        top_logprobs=0 if options.logprobs and top is None else top,
        grammar=grammar,
        response_format=form,
        **passed,
        **extra,
    )
    return answer


def _messages(messages: Sequence[Any]) -> list[Any]:
    return [
        {"role": m.role, "content": m.content} if isinstance(m, Message) else m for m in messages
    ]


# What a reply must look like ---------------------------------------------------------------------


def _constraint(
    options: ChatOptions,
) -> tuple[Mapping[str, object] | None, LlamaGrammar | None]:
    """response_format in the form that handlers know, and its grammar, or else `grammar`: not all
    handlers look at the first.
    """
    form = options.response_format
    kind = None if form is None else form.get("type")
    if form is None or kind == "text":
        return form, options.grammar
    if kind == "json_object" and "schema" not in form:
        return form, LlamaGrammar.from_string(JSON_GBNF, verbose=False)
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
    schema = inner["schema"]
    return {"type": "json_object", "schema": schema}, schema_grammar(schema)


def schema_grammar(schema: object) -> LlamaGrammar:
    """llama-cpp-python's grammar for a JSON Schema. Raises SchemaError where it has none."""
    try:
        return LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
    except Exception as error:  # upstream raises whatever comes: KeyError, AssertionError, ...
        raise SchemaError(
            f"response_format: the schema cannot be made a grammar: {type(error).__name__}: {error}"
        ) from error


# What goes into the template ---------------------------------------------------------------------


def _template_arguments(options: ChatOptions, template: Template | None) -> dict[str, Any]:
    extra = dict(options.chat_template_kwargs or {})
    taken = (set(ChatOptions.__dataclass_fields__) | _OF_TEMPLATES) & set(extra)
    if taken:
        raise InputError(f"chat_template_kwargs cannot set {', '.join(sorted(taken))}")
    if options.documents is not None:
        extra["documents"] = [
            as_document(value, f"documents[{i}]").fields()
            for i, value in enumerate(options.documents)
        ]
    if extra and template is None:
        raise InputError(
            f"{' and '.join(sorted(extra))} cannot be used with this chat format or handler: only "
            f'a template of the model\'s file takes more than messages (chat_format="{_DEFAULT}")'
        )
    for name in extra:
        if template is not None and name not in template.source:
            raise InputError(f"this model's chat template has no use for {name!r}")
    return extra


# Where an adapter begins -------------------------------------------------------------------------


class _Caller:
    """The Llama that a handler sees: its completions use the chat's adapter."""

    def __init__(
        self,
        llama: Llama,
        options: ChatOptions,
        template: Template | None,
        messages: list[Any],
        extra: Mapping[str, Any],
    ) -> None:
        self._llama, self._options, self._template = llama, options, template
        self._of_template: dict[str, Any] = {
            "functions": options.functions,
            "function_call": options.function_call,
            "tools": options.tools,
            "tool_choice": options.tool_choice,
            **extra,
        }
        self._messages = messages

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llama, name)

    def create_completion(self, prompt: str | list[int], **keywords: Any) -> Any:
        """Llama.create_completion() with the adapter, whose invocation takes the place of the
        assistant's marker if the prompt's last turn lacks it.
        """
        adapter = self._options.adapter
        if adapter is not None and not isinstance(prompt, str):
            prompt = self._with_invocation(prompt, adapter)
        return self._llama.create_completion(
            prompt, adapter=adapter, adapter_scale=self._options.adapter_scale, **keywords
        )

    def _with_invocation(self, prompt: list[int], adapter: str) -> list[int]:
        file = self._llama.adapters.get(adapter)
        if file is None or not file.invocation or self._template is None:
            return prompt  # what is missing, create_completion says
        at = find_last(prompt, file.invocation)
        if at is not None and at + len(file.invocation) > self._last_turn(prompt):
            return prompt
        return [*self._render(self._messages), *file.invocation]

    def _last_turn(self, prompt: list[int]) -> int:
        """Where the last message begins in the prompt, as far as can be told."""
        try:
            before = self._render(self._messages[:-1]) if len(self._messages) > 1 else []
        except (ValueError, jinja2.TemplateError):  # a template may refuse half a conversation
            return 0
        n = min(len(before), len(prompt))
        return next((i for i in range(n) if before[i] != prompt[i]), n)

    def _render(self, messages: list[Any]) -> list[int]:
        """The messages in tokens, without the assistant's marker."""
        if self._template is None:
            raise InputError("only a template of the model's file can be taken apart")
        text = self._template.bare(messages=messages, **self._of_template).prompt
        return self._llama.tokenize(text.encode(), add_bos=False, special=True)
