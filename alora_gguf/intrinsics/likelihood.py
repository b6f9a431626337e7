"""The rule `likelihood`: from a word that was chosen to an expected value of what it stands for."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias

from alora_gguf.errors import InputError
from alora_gguf.options import TokenLogprob

from .json_offsets import JsonValue, Node, Path
from .reply import PathPattern, Reply, replace_at, show_path, show_value

Category: TypeAlias = "bool | int | float | str | None"

TOP_LOGPROBS: Final = 10  # alternatives that are looked at, the chosen token among them


@dataclass(frozen=True)
class Likelihood:
    """Replaces a value by the mean of `categories`' numbers, weighted by their probability.

    A category's probability is that of the first token of the value, or of an alternative to it
    with which the category begins; of several such categories the first counts. The weights are
    those of the categories found, made to sum to 1.
    """

    name: ClassVar[str] = "likelihood"
    input_path: PathPattern
    categories: tuple[tuple[Category, float], ...]

    def apply(self, value: JsonValue, reply: Reply) -> JsonValue:
        """The value with the categories at `input_path` replaced.

        Raises OutputError if one of them is not in the reply as it stands, or no category is found;
        InputError if there are no log-probabilities.
        """
        return replace_at(value, self.input_path, lambda v, here: self._expected(v, here, reply))

    def _expected(self, value: JsonValue, here: Path, reply: Reply) -> float:
        node = reply.root.find(here)
        if node is None or node.value is not value or node.children is not None:
            raise reply.error(
                self.name,
                f"{show_path(here)} is {show_value(value)}, not a single value of the reply as it "
                "was generated, so that it has no tokens",
                "put likelihood before the rules that move or change values",
            )
        if reply.tokens is None:
            raise InputError(
                f"{reply.source}: the rule {self.name} needs the reply's tokens with their "
                f"{TOP_LOGPROBS} likeliest alternatives; ask for log-probabilities"
            )
        start = node.begin + isinstance(node.value, str)  # behind the quote
        token, begin = reply.tokens.at(start)
        reply.used.append(token)
        lead = token.text[: start - begin]
        if lead and begin + len(token.text) == node.end:  # a token with more than the whole value
            return self._number(node, reply, here)
        weighed = self._weigh(node, token, lead)
        total = math.fsum(weight for weight, _ in weighed)
        if not total > 0:
            raise reply.error(
                self.name,
                f"{show_path(here)} is {show_value(value)}, and neither that nor an alternative to "
                f"it is one of {self._listed()}",
                "a response_format with enum keeps replies to the categories",
            )
        return math.fsum(weight * number for weight, number in weighed) / total

    def _weigh(self, node: Node, chosen: TokenLogprob, lead: str) -> list[tuple[float, float]]:
        """Weights and numbers of the categories that a token begins; `lead` is what comes before
        the value in it.
        """
        found: list[tuple[float, float]] = []  # log-probabilities first
        number = self._find(node.value)
        if number is not None:
            found.append((chosen.logprob, number))
        for top in chosen.top:
            rest = top.text[len(lead) :]
            # a part of a character has no text, with which every category would begin
            if top.text == chosen.text or not rest or not top.text.startswith(lead):
                continue
            for category, number in self.categories:
                if _spelling(category).startswith(rest):
                    found.append((top.logprob, number))
                    break
        best = max((logprob for logprob, _ in found), default=-math.inf)
        if not math.isfinite(best):
            return []
        return [(math.exp(logprob - best), number) for logprob, number in found]

    def _number(self, node: Node, reply: Reply, here: Path) -> float:
        number = self._find(node.value)
        if number is None:
            raise reply.error(
                self.name,
                f"{show_path(here)} is {show_value(node.value)}, expected one of {self._listed()}",
                "a response_format with enum keeps replies to the categories",
            )
        return number

    def _find(self, value: JsonValue) -> float | None:
        same = (n for c, n in self.categories if _kind(c) is _kind(value) and c == value)
        return next(same, None)

    def _listed(self) -> str:
        names = [show_value(category) for category, _ in self.categories]
        return ", ".join([*names[:12], "..."] if len(names) > 12 else names)


def _spelling(category: Category) -> str:
    """How a reply's JSON has it, without the quotes."""
    return category if isinstance(category, str) else json.dumps(category)


def _kind(value: JsonValue) -> type:
    """Numbers are of one kind; True is none of them, though Python says that it equals 1."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float if is_number else type(value)
