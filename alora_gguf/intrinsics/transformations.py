"""From a model's reply to what an intrinsic answers: the contract's rules, one after the other.

Where this differs from mellea is listed in docs/intrinsics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from alora_gguf._kinds import checked
from alora_gguf.options import TokenLogprob

from .contract import Contract
from .json_offsets import JsonValue, parse
from .reply import Reply, Tokens
from .request import Request

_CHANNEL: Final = "<|channel|>"
_MESSAGE: Final = "<|message|>"
_ENDS: Final = frozenset({"<|end|>", "<|return|>", "<|end_of_text|>"})


@dataclass(frozen=True)
class Outcome:
    """What an intrinsic answers: a JSON value; and the tokens whose probabilities went into it, in
    the order of the rules.
    """

    value: JsonValue
    used: tuple[TokenLogprob, ...] = ()


@checked
def transform(
    contract: Contract,
    text: str,
    logprobs: Sequence[TokenLogprob] | None,
    request: Request,
    *,
    max_tokens: int | None = None,
) -> Outcome:
    """What `text`, the reply to `request`, means by the contract.

    `logprobs` are the reply's tokens, without an end token; each with its `request.top_logprobs`
    likeliest alternatives where the contract needs them, else None will do. `max_tokens` is the
    limit that the reply had, for messages (None: the contract's).

    Raises OutputError if the reply is not what the contract says: no JSON, cut off, of another
    shape, with a sentence number that was not given. Raises InputError if log-probabilities are
    needed and missing, or are those of another text.
    """
    source = f"{contract.source}: the reply"
    if contract.logprobs_workaround and logprobs is not None:
        final = final_channel(logprobs)
        if final is not None:
            logprobs, text = final, "".join(token.text for token in final)
    root = parse(text, source, contract.max_tokens if max_tokens is None else max_tokens)
    weighs = logprobs is not None and contract.needs_logprobs
    tokens = Tokens(logprobs, text, source) if weighs and logprobs is not None else None
    reply = Reply(source, root, tokens, request.sentences)
    value = root.value
    for rule in contract.transformations:
        value = rule.apply(value, reply)
    return Outcome(value, tuple(reply.used))


def final_channel(tokens: Sequence[TokenLogprob]) -> Sequence[TokenLogprob] | None:
    """The tokens of the last final channel in OpenAI's Harmony format; None if there is none, or
    nothing in it.

    A server may or may not strip `<|channel|>analysis<|message|>...` from the text, so a contract
    with logprobs_workaround goes by the tokens. Whole tokens are compared: the same characters,
    spelled by ordinary tokens, are not a header.
    """
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
