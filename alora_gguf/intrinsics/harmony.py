"""The final channel of a reply in OpenAI's Harmony format, told from its tokens.

A server may or may not strip `<|channel|>analysis<|message|>...` from the text, so a contract with
logprobs_workaround goes by the tokens. Whole tokens are compared: the same characters, spelled by
ordinary tokens, are not a header.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from alora_gguf.options import TokenLogprob

_CHANNEL: Final = "<|channel|>"
_MESSAGE: Final = "<|message|>"
_ENDS: Final = frozenset({"<|end|>", "<|return|>", "<|end_of_text|>"})


def final_channel(tokens: Sequence[TokenLogprob]) -> Sequence[TokenLogprob] | None:
    """The tokens of the last final channel; None if there is none, or nothing in it."""
    texts = [token.text for token in tokens]
    begins = [end for i in range(len(texts)) if (end := _header_end(texts, i)) is not None]
    if not begins:
        return None
    begin = begins[-1]
    end = next((i for i in range(begin, len(texts)) if texts[i] in _ENDS), len(texts))
    return tokens[begin:end] or None


def _header_end(texts: Sequence[str], at: int) -> int | None:
    """Where the content begins, if `<|channel|> final <|message|>` stands at `at`."""
    if texts[at] != _CHANNEL:
        return None
    word = _skip_space(texts, at + 1)
    if word == len(texts) or texts[word].strip() != "final":
        return None
    message = _skip_space(texts, word + 1)
    return message + 1 if message < len(texts) and texts[message] == _MESSAGE else None


def _skip_space(texts: Sequence[str], at: int) -> int:
    while at < len(texts) and not texts[at].strip():
        at += 1
    return at
