"""Examples in tokens, as the runtime will read them: by its chat template and the contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alora_gguf.errors import AloraError, InputError
from alora_gguf.model import Model
from alora_gguf.options import IntrinsicCall

from .contract import fitted
from .data import Example
from .steps import Row


def answered(model: Model, name: str, examples: Sequence[Example]) -> list[Example]:
    """The examples with their answers as replies have them."""
    schema = model.contract(name).response_format
    return [replace(each, answer=fitted(each.answer, schema)) for each in examples]


def rows_of(
    model: Model,
    name: str,
    examples: Sequence[Example],
    file: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """The rows of examples of a `file`, whose lines errors name. Raises InputError for an answer
    that the contract excludes, and for a conversation that has the invocation in it: the adapter
    would act from there on.
    """
    invocation = model.adapter(name).invocation
    rows = []
    for number, example in enumerate(examples):
        if progress is not None:
            progress(number, len(examples))
        try:
            rows.append(_row(model, name, example, invocation))
        except AloraError as error:
            raise InputError(f"{file}: line {example.line}: {error}") from error
    return rows


def _row(model: Model, name: str, example: Example, invocation: tuple[int, ...]) -> Row:
    call = IntrinsicCall(name, example.arguments)
    with model.chat(messages=example.messages, documents=example.documents) as chat:
        found = chat.supervise(call, example.answer)
    n_tokens = len(found.prompt) + len(found.reply)
    if n_tokens > model.n_ctx:  # else memory, which grows with its square, runs out amid a step
        raise InputError(
            f"the conversation and its answer have {n_tokens:,} tokens, at most {model.n_ctx:,} "
            "can be trained on this base; shorten them"
        )
    # a plain LoRA acts on all of the prompt, most of which other rows may have, too
    first = found.first if invocation else len(found.prompt) - 1
    prefix, asked = found.prompt[:first], found.prompt[first:]
    if invocation and _occurs(invocation, prefix):
        text: Any = model.detokenize(invocation, special=True)
        raise InputError(
            f"the invocation {text!r} occurs in the conversation; choose another one with "
            "--invocation (invocation=)"
        )
    return Row(prefix, asked, found.reply, found.n_forced)


def _occurs(wanted: tuple[int, ...], tokens: tuple[int, ...]) -> bool:
    n = len(wanted)
    return any(
        tokens[at] == wanted[0] and tokens[at : at + n] == wanted
        for at in range(len(tokens) - n + 1)
    )
