"""Texts in tokens, as adapters read them: what stands before an invocation, and what follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from alora_gguf.errors import ModelError
from alora_gguf.model import Model

from .texts import Conversation, probes

AFTER: Final = 256
"""Tokens of a text after an invocation, at most, and half of a piece of a text."""
_BEFORE: Final = 16  # rows looked at before it
_MOST_ROWS: Final = 2 * AFTER  # of one text: their logits are kept for a moment
Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What stands before an invocation, before a reply without one, and what follows."""

    before: Tokens
    opened: Tokens
    after: Tokens


@dataclass(frozen=True, slots=True)
class Passage:
    """A text as one adapter reads it, from `first` on. The last `n_rows` tokens are looked at; it
    acts on `n_adapted`, the last of them, and `n_before` come before its invocation. The last
    `n_common` follow it.
    """

    tokens: Tokens
    first: int
    n_rows: int
    n_adapted: int
    n_before: int
    n_common: int

    @classmethod
    def of(cls, part: Part, invocation: Tokens) -> Passage:
        """As an adapter with that invocation reads it, () for a plain LoRA."""
        before = part.before if invocation else part.opened
        tokens = (*before, *invocation, *part.after)
        first = len(before) if invocation else 0
        # a text's first token is left out: it has a state of its own, many times as large
        n_adapted = min(len(tokens) - max(first, 1), _MOST_ROWS)
        n_rows = min(len(tokens), n_adapted + _BEFORE)
        n_before = max(0, first - (len(tokens) - n_rows))
        return cls(
            tokens, first, n_rows, n_adapted, n_before, min(max(1, len(part.after)), n_adapted)
        )


def parts(
    model: Model, texts: Sequence[Conversation] | str | None, *, opened: bool
) -> Iterator[Part]:
    """Of each text, or of the probes if there are none, in pieces if it is long; `opened` says
    whether what stands before a reply is needed. Raises ModelError for conversations if there is
    no chat template; the probes are read as text then.
    """
    bos = tuple(model.tokenize("", add_special=True))
    if isinstance(texts, str):
        ids = tuple(model.tokenize(texts))
        for i in range(0, len(ids), 2 * AFTER):
            piece = ids[i : i + 2 * AFTER]
            half = len(piece) // 2
            before = (*bos, *piece[:half])
            yield Part(before, before, piece[half:])
        return
    as_text = texts is None and not _chats(model)
    for text in probes() if texts is None else texts:
        after = tuple(model.tokenize(text.reply, parse_special=False))[:AFTER]
        if as_text:
            before = (*bos, *model.tokenize(text.messages[-1].content + "\n"))
            yield Part(before, before, after)
        else:
            before = _written(model, text, ())
            yield Part(before, _opened(model, text, after) if opened else before, after)


def _chats(model: Model) -> bool:
    try:
        model.chat(messages=["?"]).close()
    except ModelError:
        return False
    return True


def _written(model: Model, text: Conversation, more: Sequence[dict[str, str]]) -> Tokens:
    """The conversation in tokens, as the base's chat template has it."""
    with model.chat(messages=[*text.messages, *more], documents=text.documents) as chat:
        chat.read()
        return tuple(chat.tokens)


def _opened(model: Model, text: Conversation, after: Tokens) -> Tokens:
    """What stands before the reply where the assistant says it."""
    if not after:
        return _written(model, text, ())
    whole, n = _written(model, text, [{"role": "assistant", "content": text.reply}]), len(after)
    for at in range(len(whole) - n, 0, -1):
        if whole[at : at + n] == after:
            return whole[:at]
    return _written(model, text, ())  # the template writes the reply in another way
