"""How likely a reply is to have each of some texts at a place, by the log-probabilities of its
tokens: summed over all ways in which tokens spell them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from alora_gguf.options import TokenLogprob

from .reply import Reply, Tokens

NEGLIGIBLE: Final = 1e-6
"""The share of probability below which what tokens leave open is not read to be told apart."""


class _Node(NamedTuple):
    """A beginning of the reply: the tokens from its first on, what they say from the first that is
    looked at on, and how likely that is. `at` is the reply's token that follows; None off its path.
    """

    at: int | None
    path: Tokens
    said: str
    logprob: float


class _Choice(NamedTuple):
    token: int
    text: str
    logprob: float
    chosen: bool


def weigh(
    reply: Reply, start: int, texts: Sequence[str], own: int | None
) -> list[tuple[float, int]]:
    """Log-probabilities, each with the index of the text that it adds to. `start` is where in the
    reply the text begins; `own` is the index of the one that is there, None if it is none of them.

    An alternative to a token counts for the text that it begins. Where several begin alike it is
    followed, as far as `reply` knows what comes after it: `reply.unread` gets where it does not,
    and the first of the texts counts, or the reply's own.
    """
    tokens = reply.tokens or ()
    at, origin = _root(reply, start, texts)
    lead, wholes = reply.text[origin:start], dict[str, int]()
    for i in sorted(range(len(texts)), key=lambda i: i != own):
        wholes.setdefault(lead + texts[i], i)  # 7 and "7" look alike in some replies
    wholes = dict(sorted(wholes.items(), key=lambda item: item[1]))
    todo = [_Node(at, tuple(token.token for token in tokens[:at]), "", 0.0)]
    weighed: list[tuple[float, int]] = []
    unread: dict[Tokens, float] = {}
    used: dict[int, TokenLogprob] = {}
    while todo:
        node = todo.pop()
        for choice in _choices(reply, node):
            goes_on = choice.chosen and node.at is not None and node.at + 1 < len(tokens)
            after = _Node(
                node.at + 1 if goes_on and node.at is not None else None,
                (*node.path, choice.token),
                node.said + choice.text,
                node.logprob + choice.logprob,
            )
            fits = _fitting(wholes, node, choice, last=node.at == len(tokens) - 1)
            if not fits or not math.isfinite(after.logprob):
                continue
            known = after.at is not None or after.path in reply.further
            alone = own is None and choice.chosen  # what the reply goes on to say counts for none
            if known and (alone or len(fits) > 1):
                todo.append(after)
                continue
            counts = fits[0]
            if len(fits) > 1:
                unread[after.path] = after.logprob
                counts = own if choice.chosen and own is not None else counts
            if not alone and (len(fits) == 1 or len(after.said) > len(lead)):
                weighed.append((after.logprob, counts))
                if node.at is not None:
                    used[node.at] = tokens[node.at]
    reply.used += [used[at] for at in sorted(used)]
    most = max((logprob for logprob, _ in weighed), default=0.0)
    reply.unread |= {
        path: logprob - most
        for path, logprob in unread.items()
        if logprob - most > math.log(NEGLIGIBLE)
    }
    return weighed


def _root(reply: Reply, start: int, texts: Sequence[str]) -> tuple[int, int]:
    """The first token that decides between the texts, and where it begins: the one that the text
    begins in, or the one before it, where an alternative to that reaches into a text.
    """
    tokens = reply.tokens or ()
    at, begin = reply.token_at(start)
    if begin == start and at:
        before = tokens[at - 1]
        origin = begin - len(before.text)
        wholes = [reply.text[origin:start] + text for text in texts]
        longer = [top.text for top in before.top if len(top.text) > len(before.text)]
        if any(whole.startswith(text) for whole in wholes for text in longer):
            return at - 1, origin
    return at, begin


def _choices(reply: Reply, node: _Node) -> Iterator[_Choice]:
    if node.at is None:
        for top in reply.further[node.path]:
            yield _Choice(top.token, top.text, top.logprob, chosen=False)
        return
    token = (reply.tokens or ())[node.at]
    yield _Choice(token.token, token.text, token.logprob, chosen=True)
    for top in token.top:
        if (top.token, top.text) != (token.token, token.text):
            yield _Choice(top.token, top.text, top.logprob, chosen=False)


def _fitting(wholes: Mapping[str, int], node: _Node, choice: _Choice, *, last: bool) -> list[int]:
    """Which of the texts it may be with that choice. One without text is an end, or a part of a
    character, which tells nothing.
    """
    said = node.said + choice.text
    if choice.text or (choice.chosen and not last):
        return [i for whole, i in wholes.items() if _fits(whole, said)]
    return [i for whole, i in wholes.items() if whole == said]


def _fits(text: str, said: str) -> bool:
    if text.startswith(said):
        return True
    over = said[len(text) :]
    quoted = text.endswith('"')
    return said.startswith(text) and (quoted or not (over[0].isalnum() or over[0] in "+-._"))
