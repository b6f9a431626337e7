"""How questions and answers are worded: no wording of one split occurs in another."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Final, Literal

from .facts import Clause, Fact, capitalised

Split = Literal["train", "eval", "final"]

# What a question is put in: {direct} is turned round ("when did it end"), {indirect} is not ("when
# it ended").
FRAMES: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        "{Direct}?",
        "Do you know {indirect}?",
        "Tell me {indirect}.",
        "I wonder {indirect}.",
        "According to the text, {direct}?",
        "Please find out {indirect}.",
        "My question is this: {direct}?",
        "Could you say {indirect}?",
        "Is it clear {indirect}?",
        "Now, {direct}?",
    ),
    "eval": (
        "Can you tell me {indirect}?",
        "I would like to know {indirect}.",
        "Going by the passage, {direct}?",
        "What I want to find out is {indirect}.",
        "Quick question: {direct}?",
        "Would you mind telling me {indirect}?",
        "So {direct}?",
        "Any idea {indirect}?",
    ),
    "final": (
        "In this document, {direct}?",
        "Let me know {indirect}.",
        "For my notes: {direct}?",
        "Explain to me {indirect}.",
        "I have forgotten {indirect}.",
        "Well, {direct}?",
    ),
}

_ASKED: Final[dict[Split, dict[str, tuple[str, ...]]]] = {
    "train": {
        "subject": ("what",),
        "person": ("who",),
        "object": ("what",),
        "when": ("when",),
        "year": ("when", "in what year"),
        "where": ("where",),
        "how many": ("how many {}",),
        "money": ("how much",),
        "share": ("how much {}", "what share {}"),
        "how long": ("how long", "for how long"),
        "by": ("by whom or what",),
    },
    "eval": {
        "subject": ("what exactly", "which thing or person"),
        "person": ("which person",),
        "object": ("what exactly", "which thing"),
        "when": ("at what time", "at which point in time"),
        "year": ("in which year", "at what time"),
        "where": ("in which place", "at what place"),
        "how many": ("what number of {}",),
        "money": ("what amount",),
        "share": ("what percentage {}",),
        "how long": ("for what length of time",),
        "by": ("by which person or thing",),
    },
    "final": {
        "subject": ("what or who",),
        "person": ("what person",),
        "object": ("what in fact",),
        "when": ("when exactly",),
        "year": ("when exactly", "during which year"),
        "where": ("where exactly",),
        "how many": ("exactly how many {}",),
        "money": ("exactly how much",),
        "share": ("exactly how much {}",),
        "how long": ("for how long exactly",),
        "by": ("by what or whom",),
    },
}


def of_part(part: str) -> Split:
    """In which wordings a part is put: what stops the training is put as what it trains on."""
    return "eval" if part == "eval" else "final" if part == "final" else "train"


@dataclass(frozen=True)
class Question:
    text: str
    frame: str
    asked: str


def question(fact: Fact, split: Split, rng: random.Random, *, frame: str = "") -> Question:
    """The fact's question in one of the split's wordings, or in this frame."""
    frame = frame or rng.choice(FRAMES[split])
    asked = rng.choice(_ASKED[split][_sort(fact)])
    return Question(worded(fact, frame, asked), frame, asked)


def worded(fact: Fact, frame: str, asked: str) -> str:
    wh = asked.format(fact.counted)
    c = fact.clause
    direct = f"{wh} {c.statement if fact.kind == 'subject' else c.inverted}"
    indirect = f"{wh} {c.statement}"
    return capitalised(frame.format(direct=direct, indirect=indirect, Direct=capitalised(direct)))


def _sort(fact: Fact) -> str:
    if fact.kind == "subject":
        return "person" if fact.clause.person else "subject"
    if fact.kind == "when":
        return "year" if fact.year else "when"
    if fact.kind == "how much":
        return "share" if fact.counted else "money"
    return fact.kind


# How an answer is put: {whole} is the statement with the answer in it, {part} the answer as it
# stood ("in 1991"), {bare} it alone, {open} the statement without it, {other} and {whole_other} the
# same of a wrong one ("in 1987"). Those with `turned` are right if the answer in {whole} is wrong.
@dataclass(frozen=True)
class Wording:
    template: str
    kinds: tuple[str, ...] = ()  # those it fits; all if empty
    turned: bool = False
    past: bool = False

    def fits(self, fact: Fact) -> bool:
        if self.past and fact.clause.aux not in ("did", "was", "were"):
            return False
        return not self.kinds or fact.kind in self.kinds


_CLEFT: Final = ("when", "where", "by", "object", "subject")
_NOT_SUBJECT: Final = ("when", "where", "how long", "by", "object", "how many", "how much")
WORDINGS: Final[dict[Split, tuple[Wording, ...]]] = {
    "train": (
        Wording("{whole}."),
        Wording("It was {part} that {open}.", _CLEFT, past=True),
        Wording("{whole}, not {other}."),
        Wording("It is not true that {whole}.", turned=True),
        Wording("{Part}."),
        Wording("It {predicate}.", _NOT_SUBJECT),
        Wording("The text says that {whole}."),
        Wording("{whole}, as far as I can see."),
    ),
    "eval": (
        Wording("The answer is {bare}."),
        Wording("According to the passage, {whole}."),
        Wording("{Part}, {open}.", ("when", "where")),
        Wording("{whole} rather than {other}."),
        Wording("It would be wrong to say that {whole}.", turned=True),
        Wording("I read there that {whole}."),
    ),
    "final": (
        Wording("Going by the document, {whole}."),
        Wording("It must be {bare}."),
        Wording("{whole} and not {other}."),
        Wording("Nobody says that {whole}.", turned=True),
    ),
}  # fmt: skip

TURNED: Final = frozenset(w.template for some in WORDINGS.values() for w in some if w.turned)
# Answers that there is no answer.
REFUSED: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        "The text does not say {indirect}.",
        "I cannot find in the text {indirect}.",
        "It is not mentioned {indirect}.",
    ),
    "eval": ("The passage does not tell {indirect}.", "Nothing is said about {indirect}."),
    "final": ("The document leaves open {indirect}.",),
}
# Answers of two sentences, by how both are put.
IN_TWO: Final[dict[Split, dict[str, tuple[Wording, Wording]]]] = {
    "train": {
        "{a}. {b}.": (Wording("{whole}."), Wording("{whole}.")),
        "{a}. Besides, {b}.": (Wording("{whole}."), Wording("Besides, {whole}.")),
    },
    "eval": {"{a}. In addition, {b}.": (Wording("{whole}."), Wording("In addition, {whole}."))},
    "final": {
        "{a}. What is more, {b}.": (Wording("{whole}."), Wording("What is more, {whole}.")),
    },
}
# Questions for a yes or a no.
YES_NO: Final[dict[Split, tuple[str, ...]]] = {
    "train": ("{Inverted}?", "Is it true that {statement}?", "{Statement}, is that right?"),
    "eval": ("Is it the case that {statement}?", "Tell me, {inverted}?"),
    "final": ("Would it be right to say that {statement}?",),
}


def filled(template: str, clause: Clause) -> str:
    """A question about a whole clause."""
    statement, inverted = clause.statement, clause.inverted
    return capitalised(
        template.format(
            statement=statement,
            inverted=inverted,
            Statement=capitalised(statement),
            Inverted=capitalised(inverted),
        )
    )


def answer(fact: Fact, wording: Wording, stated: str, other: str) -> str:
    """The answer `stated`, worded; `other` is the one that is denied where the wording has such."""
    whole = fact.with_answer(stated)
    c: Clause = fact.clause
    part = fact.said.replace(fact.answer, stated, 1)
    fields = {
        "whole": whole,
        "part": part,
        "Part": capitalised(part),
        "bare": stated,
        "open": c.statement,
        "other": fact.said.replace(fact.answer, other, 1),
        "predicate": _without_subject(fact, whole),
    }
    if not wording.template.startswith("{whole"):
        begins = capitalised(c.subject) if c.subject else ""
        if begins and whole.startswith(begins):
            fields["whole"] = c.subject + whole[len(begins) :]
        elif fact.kind == "subject":
            fields["whole"] = part + whole[len(part) :]
    return capitalised(re.sub(r"\s+([.,])", r"\1", wording.template.format(**fields)))


def _without_subject(fact: Fact, whole: str) -> str:
    return whole[len(fact.clause.subject) :].strip() if fact.clause.subject else whole
