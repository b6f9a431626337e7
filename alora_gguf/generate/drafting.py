"""Tokens that a reply under a JSON Schema will very likely begin with, to be read together with the
prompt. What the model then chooses decides: a wrong draft costs a little time and changes nothing.

What a schema fixes of its replies is found by walking llguidance, over bytes in place of a
vocabulary.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from alora_gguf.engine.vocab import Vocabulary

_MAX_PATHS: Final = 8
_MAX_TOKENS: Final = 48

Path = tuple[int, ...]
_MAX_ANSWERS: Final = 64
_MAX_STEPS: Final = 1000  # states that a walk looks at, some 20 us each
_BYTES: Final = 256  # the first tokens of llguidance's vocabulary of bytes
# One spelling for each value: what json.dumps(value, ensure_ascii=False) writes.
_SPELLING: Final[Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": 'nrbtf\\"',
    "lenient": False,
    "coerce_one_of": False,
}


@dataclass(frozen=True, slots=True)
class Draft:
    """`paths` are beginnings of the reply, in tokens; after each, and after each of its own
    beginnings, the logits are wanted. `answers` are all the replies there are, as bytes, if they
    are few.
    """

    paths: tuple[Path, ...] = ((),)
    answers: tuple[bytes, ...] = ()

    def rest(self, said: bytes) -> bytes | None:
        """How a reply that began with `said` goes on, if it can go on in one way only."""
        found = [answer for answer in self.answers if answer.startswith(said)]
        return found[0][len(said) :] if len(found) == 1 else None


NO_DRAFT: Final = Draft()


def draft_reply(schema: Mapping[str, Any], vocab: Vocabulary) -> Draft:
    """The draft of a reply to `schema`.

    Where the answers are a small enumeration, its paths lead to every token at which they part, so
    that one pass scores all of them.
    """
    texts, opening = fixed(schema)
    if texts is None:
        return Draft(paths=(_tokens(opening, vocab)[:_MAX_TOKENS],))
    leaves = [_tokens(text, vocab) for text in texts]
    paths = _outermost(_partings(leaves))
    return Draft(
        paths=tuple(path[:_MAX_TOKENS] for path in paths[:_MAX_PATHS]) or ((),),
        answers=tuple(text.encode() for text in texts),
    )


def _tokens(text: str, vocab: Vocabulary) -> Path:
    """The usual tokens of `text`; none if they would not say just that (a vocabulary may put a
    space before every text).
    """
    tokens = vocab.tokenize(text, add_special=False, parse_special=False)
    said = b"".join(vocab.piece(token) for token in tokens)
    return tuple(tokens) if said == text.encode() else ()


def _partings(leaves: Sequence[Path]) -> set[Path]:
    """The nodes of the leaves' trie with more than one branch."""
    branches: dict[Path, set[int]] = {}
    for leaf in leaves:
        for at, token in enumerate(leaf):
            branches.setdefault(leaf[:at], set()).add(token)
    return {node for node, tokens in branches.items() if len(tokens) > 1}


def _outermost(nodes: Iterable[Path]) -> list[Path]:
    """The nodes that do not begin another one, the longest first."""
    ordered = sorted(nodes, key=len, reverse=True)
    return [
        node
        for i, node in enumerate(ordered)
        if not any(longer[: len(node)] == node for longer in ordered[:i])
    ]


# What a schema fixes ------------------------------------------------------------------------------


class Fixed(NamedTuple):
    """`answers` are the texts of all values that match, if they are known to be few, else None;
    `opening` is what all of them begin with, as far as it is known.

    A text is what json.dumps(value, ensure_ascii=False) writes, with properties in the schema's
    order. An opening is `{"answer": "` where an object's first required property is a string, `[`
    for an array, "" where nothing is fixed.
    """

    answers: tuple[str, ...] | None = None
    opening: str = ""


def fixed(schema: Mapping[str, Any]) -> Fixed:
    """What `schema` fixes; nothing where it cannot be compiled. The latest schemas are kept."""
    return _fixed(json.dumps(dict(schema)))


@functools.lru_cache(maxsize=64)
def _fixed(schema: str) -> Fixed:
    found: list[bytes] = []
    pending = [(_matcher(schema), b"")]
    opening: str | None = None
    for _ in range(_MAX_STEPS):
        matcher, text = pending.pop()
        text += _forced(matcher)
        # it may end within a character
        opening = text.decode(errors="ignore") if opening is None else opening
        following = _following(matcher)
        found += [text] if matcher.is_accepting() else []
        if matcher.is_error() or len(found) + len(pending) + len(following) > _MAX_ANSWERS:
            break
        for byte in reversed(following):
            branch = matcher.deep_copy()
            branch.consume_token(byte)
            pending.append((branch, text + bytes([byte])))
        if not pending:
            return Fixed(_answers(found), opening)
    return Fixed(None, opening or "")


def _forced(matcher: Any) -> bytes:
    """Goes on by the bytes that must come next, and returns them."""
    forced: bytes = matcher.compute_ff_bytes()
    return forced if forced and matcher.consume_tokens(list(forced)) else b""


def _following(matcher: Any) -> list[int]:
    """The bytes of which any can come next."""
    if matcher.is_stopped():
        return []
    bias = np.frombuffer(matcher.compute_logit_bias(), np.uint8)[:_BYTES]
    return list(map(int, np.flatnonzero(bias)))


def _answers(found: Sequence[bytes]) -> tuple[str, ...] | None:
    """Each value once, as json.dumps writes it: -0 is 0."""
    texts = [text.decode() for text in found]
    once = dict.fromkeys(json.dumps(json.loads(text), ensure_ascii=False) for text in texts)
    return tuple(once) if once and once.keys() <= set(texts) else None


def _matcher(schema: str) -> Any:
    from llguidance import LLMatcher, LLParserLimits

    constrained = json.dumps({**json.loads(schema), "x-guidance": _SPELLING})
    # without this, text that is forced must be whole tokens
    grammar = f'%llguidance {{"no_forcing": true}}\nstart: %json {constrained}'
    limits = LLParserLimits(verbose_errors=False)
    return LLMatcher(_tokenizer(), grammar, log_level=0, limits=limits)


@functools.cache
def _tokenizer() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")
