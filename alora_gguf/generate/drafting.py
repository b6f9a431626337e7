"""Tokens that a reply under a JSON Schema will very likely begin with, to be read together with the
prompt. What the model then chooses decides: a wrong draft costs a little time and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from alora_gguf.engine.vocab import Vocabulary

from .schema_text import fixed

_MAX_PATHS: Final = 8
_MAX_TOKENS: Final = 48

Path = tuple[int, ...]


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
