"""A model's reply as the rules see it: its JSON, its tokens, and the sentences it may refer to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alora_gguf.errors import InputError, OutputError
from alora_gguf.options import TokenLogprob

from .json_offsets import Node
from .sentences import Sentence


class Tokens:
    """The tokens of a text by where they stand in it.

    Raises InputError unless the tokens' texts, one after the other, are the text.
    """

    def __init__(self, tokens: Sequence[TokenLogprob], text: str, source: str) -> None:
        spelled = "".join(token.text for token in tokens)
        if spelled != text:
            same = next((i for i, (a, b) in enumerate(zip(spelled, text, strict=False)) if a != b),
                        min(len(spelled), len(text)))  # fmt: skip
            raise InputError(
                f"{source}: the tokens' texts differ from the reply from character {same} on: "
                f"{spelled[same : same + 20]!r} against {text[same : same + 20]!r}; pass the "
                "tokens of this very reply, without an end token"
            )
        # a token without text is a part of a character, which belongs to a later one
        self._tokens = [token for token in tokens if token.text]
        self._begins = []
        end = 0
        for token in self._tokens:
            self._begins.append(end)
            end += len(token.text)

    def at(self, offset: int) -> tuple[TokenLogprob, int]:
        """The token that the character at `offset` is of, and the offset of its beginning."""
        i = bisect_right(self._begins, offset) - 1
        return self._tokens[i], self._begins[i]


@dataclass(frozen=True)
class Reply:
    """What a rule may look at besides the value; `used` collects the tokens that it weighed."""

    source: str
    root: Node
    tokens: Tokens | None
    sentences: Mapping[str, tuple[Sentence, ...]]
    used: list[TokenLogprob] = field(default_factory=list)

    def error(self, rule: str, problem: str, fix: str) -> OutputError:
        """What to raise where the reply is not what a rule expects."""
        return OutputError(f"{self.source}: rule {rule}: {problem}; {fix}")
