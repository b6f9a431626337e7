"""`intrinsic=`: an intrinsic's answer in the shape of a completion, about what the request says."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

from alora_gguf.chat.asking import MAX_TOKENS, IntrinsicResult, Question, sampling_of
from alora_gguf.chat.prompt import Dialogue
from alora_gguf.chat.template import ChatTemplate, Transcript
from alora_gguf.errors import InputError
from alora_gguf.messages import as_document, as_message
from alora_gguf.options import IntrinsicCall

from .options import ChatOptions, CompletionOptions
from .prompt import build_prompt

if TYPE_CHECKING:
    from llama_cpp import llama_types

    from .chat import ChatAnswer
    from .llama import CompletionAnswer, Llama

_SAMPLING: Final = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "frequency_penalty",
    "presence_penalty", "seed",
)  # fmt: skip
_KNOWN: Final = {
    *_SAMPLING,
    "adapter_scale", "chat_template_kwargs", "documents", "intrinsic", "intrinsic_arguments",
    "max_tokens", "messages", "model", "prompt", "stream",
}  # fmt: skip


def ask_chat(llama: Llama, options: ChatOptions, template: str | None) -> ChatAnswer:
    """The answer of `options.intrinsic` about messages and documents, which stay in the cells as
    the base reads them; its content is the contract's value as JSON. `template` is the file's
    template to use, None for its default.
    """
    from . import chat

    _refuse(options)
    runtime = llama._runtime
    dialogue = _dialogue(llama, options, runtime._chat_template(template))
    started = time.perf_counter()
    read = dialogue.written(prompt=False)
    llama._cells.read(read.tokens)  # once, and not once for every question
    question = Question.about(
        runtime._contracts, replace(dialogue, transcript=read), _call(llama, options)
    )
    result = _ask(llama, question, started)
    answer = chat.answer_of(
        llama,
        json.dumps(result.value, ensure_ascii=False),
        n_prompt=len(question.invocation.prompt or ()),
        n_reply=result.timings.generated,
        model=options.model,
    )
    return _chunks(answer) if options.stream else answer


def ask_completion(llama: Llama, options: CompletionOptions) -> CompletionAnswer:
    """The same about a prompt, which the adapter's invocation follows unless it is there."""
    _refuse(options)
    started = time.perf_counter()
    tokens = build_prompt(llama, options).tokens
    question = Question.after(llama._runtime._contracts, tokens, _call(llama, options))
    llama._cells.read(tokens)
    result = _ask(llama, question, started)
    n, n_reply = len(tokens), result.timings.generated
    answer: llama_types.CreateCompletionResponse = {
        "id": f"cmpl-{time.time_ns():x}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": options.model or llama.model_path,
        "choices": [
            {
                "text": json.dumps(result.value, ensure_ascii=False),
                "index": 0,
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": n, "completion_tokens": n_reply, "total_tokens": n + n_reply},
    }
    return iter([answer]) if options.stream else answer


def _ask(llama: Llama, question: Question, started: float) -> IntrinsicResult:
    session = llama._cells.session
    prepared = time.perf_counter() - started
    result = question.result(session.invoke(question.invocation), prepared)
    llama._note_timings(result.timings)
    return result


def _dialogue(llama: Llama, options: ChatOptions, template: ChatTemplate) -> Dialogue:
    vocab, read = llama._runtime._runtime.engine.vocab, tuple(llama._cells.tokens)
    arguments: Mapping[str, object] = options.chat_template_kwargs or {}
    template.check_arguments(arguments, "chat_template_kwargs")
    return Dialogue(
        template,
        vocab,
        tuple(as_message(m, f"messages[{i}]") for i, m in enumerate(options.messages)),
        tuple(as_document(d, f"documents[{i}]") for i, d in enumerate(options.documents or ())),
        arguments,
        Transcript(vocab.detokenize(read, special=True), read) if read else Transcript(),
    )


def _call(llama: Llama, options: ChatOptions | CompletionOptions) -> IntrinsicCall:
    """With sampling options of the request where the contract does not say."""
    given = _given(options)
    name = options.intrinsic or ""
    contract = llama._runtime.contract(name)
    limit = contract.max_tokens or given.get("max_tokens") or MAX_TOKENS
    return IntrinsicCall(
        name,
        options.intrinsic_arguments or {},
        scale=options.adapter_scale,
        max_tokens=limit,
        sampling=sampling_of(contract, limit, {k: given[k] for k in _SAMPLING if k in given}),
    )


def _given(options: ChatOptions | CompletionOptions) -> dict[str, Any]:
    """The options that are not left at their defaults."""
    return {
        field.name: value
        for field in fields(options)
        if (value := getattr(options, field.name, None)) != field.default
    }


def _refuse(options: ChatOptions | CompletionOptions) -> None:
    given = _given(options)
    for name in given:
        empty = given[name] is None or given[name] == []
        if name not in _KNOWN and not empty:
            raise InputError(
                f"{name}= cannot be used with intrinsic=: its contract says what is asked and what "
                "the reply looks like; use adapter= to ask the adapter itself"
            )


def _chunks(
    answer: llama_types.CreateChatCompletionResponse,
) -> Iterator[llama_types.CreateChatCompletionStreamResponse]:
    """A whole answer as a stream: a value is only known at the end."""
    deltas: list[tuple[Any, Any]] = [
        ({"role": "assistant"}, None),
        ({"content": answer["choices"][0]["message"]["content"]}, None),
        ({}, "stop"),
    ]
    for delta, finish_reason in deltas:
        yield {
            "id": answer["id"],
            "object": "chat.completion.chunk",
            "created": answer["created"],
            "model": answer["model"],
            "choices": [
                {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
            ],
        }
