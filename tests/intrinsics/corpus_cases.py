"""The corpus: contracts in the style of the published ones, and replies to them.

The replies are made up: their tokens are words, signs and digits, their alternatives such as models
weigh against each other. Beside each `name.yaml` is `name.json` with one or more cases.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alora_gguf.intrinsics import Contract
from alora_gguf.messages import Document, Message
from alora_gguf.options import TokenLogprob, TopLogprob

CORPUS = Path(__file__).with_name("corpus")


@dataclass(frozen=True)
class Case:
    """A conversation, a reply and its tokens; `raw` is what the file says."""

    config: Path
    raw: dict[str, Any]

    @property
    def id(self) -> str:
        return f"{self.config.stem}-{self.raw['name']}"

    @property
    def contract(self) -> Contract:
        return Contract.read(self.config)

    @property
    def messages(self) -> list[Message]:
        return [Message.of(message, "message") for message in self.raw["messages"]]

    @property
    def documents(self) -> list[Document]:
        return [Document.of(document, "document") for document in self.raw["documents"]]

    @property
    def tokens(self) -> list[TokenLogprob] | None:
        return None if self.raw["tokens"] is None else tokens_of(self.raw["tokens"])


def tokens_of(rows: list[dict[str, Any]]) -> list[TokenLogprob]:
    """Tokens with their alternatives; ids are made up, one for each text."""
    ids: dict[str, int] = {}
    return [
        TokenLogprob(
            token=ids.setdefault(row["token"], len(ids)),
            text=row["token"],
            logprob=row["logprob"],
            top=tuple(TopLogprob(ids.setdefault(t, len(ids)), t, lp) for t, lp in row["top"]),
        )
        for row in rows
    ]


def all_cases() -> list[Case]:
    """All cases, sorted by their contracts' names."""
    out = []
    for config in sorted(CORPUS.glob("*.yaml")):
        cases = json.loads(config.with_suffix(".json").read_text(encoding="utf-8"))["cases"]
        out += [Case(config, raw) for raw in cases]
    return out
