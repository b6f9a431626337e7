"""Fill-in-the-middle: a prompt for what stands between two texts, in a vocabulary's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from .tokens import Vocabulary

_MARK: Final = "☺"
"""Put before a suffix, so that a vocabulary that begins texts with a space puts it before the mark
and not before the suffix."""


def infill_prompt(
    vocab: Vocabulary,
    prefix: str | Sequence[int],
    suffix: str,
    *,
    tokenize: Callable[[str], Sequence[int]] | None = None,
    suffix_first: bool = False,
) -> list[int] | None:
    """The tokens whose continuation stands between `prefix`, text or token ids, and `suffix`; None
    for a vocabulary without tokens for it. Control tokens in text are text. Some models want the
    suffix first.
    """

    def plain(text: str) -> Sequence[int]:
        return vocab.tokenize(text, add_special=False, parse_special=False)

    tokenize = tokenize or plain
    with vocab.opened() as llama:
        asked = (llama.llama_vocab_fim_pre, llama.llama_vocab_fim_suf, llama.llama_vocab_fim_mid)
        before, after, middle = (int(ask(vocab.handle)) for ask in asked)
    if min(before, after, middle) < 0:
        return None
    body = tokenize(prefix) if isinstance(prefix, str) else prefix
    mark = list(tokenize(_MARK))
    rest = list(tokenize(_MARK + suffix)) if suffix else mark
    rest = rest[len(mark) :] if rest[: len(mark)] == mark else list(tokenize(suffix))
    head, tail = [before, *body], [after, *rest]
    parts = [*tail, *head] if suffix_first else [*head, *tail]
    bos = vocab.bos_to_add()
    return [*([] if bos is None else [bos]), *parts, middle]
