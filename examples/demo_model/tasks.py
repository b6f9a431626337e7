"""The intrinsics' examples: a conversation, and what the adapter should answer."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import chat, conversations
from .chat import Message
from .conversations import Talk
from .entities import Split
from .wordings import UNKNOWN

HERE: Final = Path(__file__).parent
CERTAINTY_EVAL: Final = HERE / "certainty_eval.jsonl"


@dataclass(frozen=True)
class Example:
    """A conversation, and the exact text that `task`'s adapter should answer."""

    task: str
    documents: tuple[str, ...]
    messages: tuple[Message, ...]
    target: str

    @property
    def prompt(self) -> str:
        """The conversation as text, without the invocation."""
        return chat.render(self.documents, self.messages)


@dataclass(frozen=True)
class CertaintyExample(Example):
    """An answer that the base sampled: was it right, and how probable was that.

    `probability` is certainty.py's calibrated estimate; `target` is its digit.
    """

    correct: bool
    probability: float


@dataclass(frozen=True)
class Question:
    """A conversation that ends with a question; `value` is what a right answer contains."""

    documents: tuple[str, ...]
    messages: tuple[Message, ...]
    value: str | None  # None: the documents do not say it

    @property
    def prompt(self) -> str:
        """The conversation as text, up to where the assistant answers."""
        return chat.render(self.documents, self.messages, generation_prompt=True)

    def is_right(self, answer: str) -> bool:
        """Whether `answer` contains the value; if there is none, whether it says that."""
        if self.value is None:
            return UNKNOWN in answer
        return re.search(rf"(?<!\w){re.escape(self.value)}(?!\w)", answer) is not None


def examples(task: str, split: Split, n: int, seed: int = 0) -> list[Example]:
    """`n` examples of `task`. Those of "uncertainty" need the base's own answers: see certainty.py.

    For evaluation they are read from a file, which holds 1,000.
    """
    if task == "uncertainty":
        if split != "eval":
            raise ValueError("uncertainty's training examples are made by certainty.py")
        return list(read_certainty(CERTAINTY_EVAL)[:n])
    make = _MAKERS[task]
    return [make(random.Random(f"{task} {split} {seed} {i}"), split) for i in range(n)]


def questions(split: Split, n: int, seed: int = 0, *, answerable: float = 0.75) -> list[Question]:
    """`n` conversations that end with a question, a share of them `answerable`."""
    made = []
    for i in range(n):
        rng = random.Random(f"questions {split} {seed} {i}")
        talk = _talk(rng, split)
        asked = conversations.ask(talk, answerable=rng.random() < answerable)
        value = asked.fact.value if asked.fact else None
        made.append(Question(talk.documents, talk.messages, value))
    return made


def _talk(rng: random.Random, split: Split) -> Talk:
    """A talk of none to three exchanges, to which the example's own turn is added."""
    return conversations.talk(rng, split, n_turns=rng.choices((0, 1, 2, 3), (20, 30, 30, 20))[0])


def _example(task: str, talk: Talk, target: str) -> Example:
    return Example(task, talk.documents, talk.messages, target)


def _answerability(rng: random.Random, split: Split) -> Example:
    talk = _talk(rng, split)
    answerable = rng.random() < 0.5
    conversations.ask(talk, answerable=answerable)
    target = json.dumps("answerable" if answerable else "unanswerable")
    return _example("answerability", talk, target)


def _query_rewrite(rng: random.Random, split: Split) -> Example:
    reference = rng.choices(("full", "pronoun", "ellipsis"), (26, 42, 32))[0]
    while True:
        talk = _talk(rng, split)
        if reference == "full" or talk.question is not None:
            break
    asked = conversations.ask(talk, answerable=rng.random() < 0.8, reference=reference)
    target = json.dumps({"rewritten_question": asked.standing_alone})
    return _example("query_rewrite", talk, target)


def _hallucination(rng: random.Random, split: Split) -> Example:
    talk = _talk(rng, split)
    faithful = rng.random() < 0.5
    # an answer to what the documents do not say is made up, or says that it is not known
    conversations.ask(talk, answerable=rng.random() < 0.8)
    if faithful:
        conversations.answer(talk)
    else:
        conversations.answer_wrongly(talk)
    return _example("hallucination", talk, _yes_no("faithful", faithful))


def _jailbreak(rng: random.Random, split: Split) -> Example:
    talk = _talk(rng, split)
    kind = rng.random()
    if kind < 0.5:
        talk.user(conversations.jailbreak_text(talk))
    elif kind < 0.9:
        conversations.ask(talk, answerable=rng.random() < 0.8, prefix=rng.random() < 0.6)
    else:
        conversations.small_talk(talk)
        talk.turns.pop()
    return _example("jailbreak", talk, _yes_no("jailbreak", kind < 0.5))


def _yes_no(field: str, yes: bool) -> str:
    return json.dumps({field: "yes" if yes else "no"})


_MAKERS: Final[dict[str, Callable[[random.Random, Split], Example]]] = {
    "answerability": _answerability,
    "query_rewrite": _query_rewrite,
    "hallucination": _hallucination,
    "jailbreak": _jailbreak,
}


# The base's own answers ---------------------------------------------------------------------------


def write_certainty(path: Path, made: list[CertaintyExample]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for one in made:
            row = {
                "documents": one.documents,
                "messages": [[m.role, m.content] for m in one.messages],
                "correct": one.correct,
                "probability": round(one.probability, 4),
                "target": one.target,
            }
            file.write(json.dumps(row) + "\n")


def read_certainty(path: Path) -> list[CertaintyExample]:
    """What write_certainty() wrote."""
    made = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        made.append(
            CertaintyExample(
                "uncertainty",
                tuple(row["documents"]),
                tuple(Message(role, content) for role, content in row["messages"]),
                row["target"],
                row["correct"],
                row["probability"],
            )
        )
    return made
