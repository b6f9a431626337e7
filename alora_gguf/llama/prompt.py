"""A completion's prompt in tokens: what begins and ends it, and what an infill puts around it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from alora_gguf.errors import InputError

from .options import CompletionOptions

if TYPE_CHECKING:
    from .llama import Llama

_MARK: Final = "☺"
"""Put before an infill's suffix, so that a vocabulary that begins texts with a space puts it before
the mark and not before the suffix."""


@dataclass(frozen=True)
class Prompt:
    """Token ids to read; `text` is what echo shows, `length` what text offsets count from, and
    `appended` what follows the generated text.
    """

    tokens: list[int]
    text: str
    length: int
    appended: str


def build_prompt(llama: Llama, options: CompletionOptions) -> Prompt:
    """As llama-cpp-python builds it: text gets the tokens that the vocabulary begins and ends texts
    with, token ids are taken as they are.

    With a `suffix`, a model with infill tokens gets prefix and suffix in them; for another one the
    suffix is put behind the generated text.
    """
    given, suffix, vocab = options.prompt, options.suffix, llama._model
    if suffix is not None and not isinstance(suffix, str):
        raise InputError(f"suffix must be text, got {suffix!r}")
    infill = None if suffix is None else vocab.infill_tokens()
    if isinstance(given, str):
        body = (
            llama.tokenize(given.encode(), add_bos=False, special=infill is None) if given else []
        )
        text, length = given, len(given)
    else:
        body = vocab_check(llama, given)
        text, length = llama.detokenize(body).decode("utf-8", "ignore"), len(body)
    if infill is not None:
        before, after, middle = infill
        head = [before, *body]
        tail = [after, *_suffix_tokens(llama, suffix or "")]
        body = [*tail, *head] if llama.spm_infill else [*head, *tail]
        body.append(middle)
    tokens = body
    if isinstance(given, str) or infill is not None:
        tokens = [*_first(llama), *body, *_last(llama)]
    if tokens[:2] == [llama.token_bos()] * 2:
        warnings.warn(
            f"the prompt begins with {vocab.token_get_text(tokens[0])!r} twice, which makes "
            "replies worse: leave it out of the text, it is added",
            RuntimeWarning,
            stacklevel=5,
        )
    appended = suffix if suffix is not None and infill is None else ""
    return Prompt(tokens, text, length, appended)


def vocab_check(llama: Llama, tokens: Sequence[int]) -> list[int]:
    """`tokens` as a list. Raises InputError for one outside the vocabulary."""
    return llama._runtime._runtime.engine.vocab.check(tokens, "prompt")


def _first(llama: Llama) -> list[int]:
    bos = llama.token_bos()
    return [bos] if llama._model.add_bos_token() and bos != -1 else []


def _last(llama: Llama) -> list[int]:
    separator = llama._model.token_sep()
    if separator != -1:
        return [separator]
    return [llama.token_eos()] if llama._model.add_eos_token() else []


def _suffix_tokens(llama: Llama, suffix: str) -> list[int]:
    if not suffix:
        return []
    mark = llama.tokenize(_MARK.encode(), add_bos=False, special=False)
    marked = llama.tokenize((_MARK + suffix).encode(), add_bos=False, special=False)
    if marked[: len(mark)] == mark:
        return marked[len(mark) :]
    return llama.tokenize(suffix.encode(), add_bos=False, special=False)
