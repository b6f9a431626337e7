"""The intrinsics' examples: a conversation, and what the adapter should answer."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alora_gguf.errors import FileFormatError

from . import chat, conversations
from .chat import Message
from .conversations import Talk
from .entities import Split
from .wordings import CONFIRM, RETRACT, UNKNOWN

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
class Lesson:
    """A conversation in which `task`'s adapter is asked several times, to learn from.

    `asked` says after how many messages, and what it should answer there.
    """

    task: str
    documents: tuple[str, ...]
    messages: tuple[Message, ...]
    asked: tuple[tuple[int, str], ...]

    @property
    def prompt(self) -> str:
        """The whole conversation as text."""
        return chat.render(self.documents, self.messages)

    def prompt_of(self, n_messages: int) -> str:
        """The conversation as it was after so many messages: the beginning of `prompt`."""
        return chat.render(self.documents, self.messages[:n_messages])


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

    For evaluation they are read from a file, which holds 1,000; to train on there are lessons.
    """
    if task == "uncertainty":
        if split != "eval":
            raise ValueError("uncertainty's lessons are made by certainty.py")
        return list(read_certainty(CERTAINTY_EVAL)[:n])
    return [_example(task, random.Random(f"{task} {split} {seed} {i}"), split) for i in range(n)]


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


def lessons(task: str, n: int, seed: int = 0) -> list[Lesson]:
    """`n` conversations to train on, for all tasks but "uncertainty" (see certainty.py)."""
    return [_lesson(task, random.Random(f"{task} lesson {seed} {i}")) for i in range(n)]


def lesson_of(example: Example) -> Lesson:
    """The adapter asked once, at the end."""
    asked = ((len(example.messages), example.target),)
    return Lesson(example.task, example.documents, example.messages, asked)


def _talk(rng: random.Random, split: Split) -> Talk:
    """A talk of none to three exchanges, to which the example's own turn is added."""
    return conversations.talk(rng, split, n_turns=rng.choices((0, 1, 2, 3), (20, 30, 30, 20))[0])


def _lesson(task: str, rng: random.Random) -> Lesson:
    talk = conversations.start(rng, "train", n_documents=conversations.documents_for(rng))
    asked = []
    for _ in range(rng.randint(3, 6)):
        if rng.random() < 0.25:
            conversations.exchange(talk)
        asked.append(_ASKED[task](talk))
    n_messages, _ = asked[-1]
    return Lesson(task, talk.documents, talk.messages[:n_messages], tuple(asked))


def _example(task: str, rng: random.Random, split: Split) -> Example:
    talk = _talk(rng, split)
    n_messages, target = _ASKED[task](talk)
    return Example(task, talk.documents, talk.messages[:n_messages], target)


# What each intrinsic judges. These add an exchange, and return after how many messages the adapter
# is asked, and its answer.


def _answerability(talk: Talk) -> tuple[int, str]:
    answerable = talk.rng.random() < 0.5
    conversations.ask(talk, answerable=answerable)
    asked = len(talk.turns)
    conversations.answer(talk)
    return asked, with_evidence(talk, "answerable", _yes_no(answerable))


def _query_rewrite(talk: Talk) -> tuple[int, str]:
    if talk.question is None:  # something to refer to
        conversations.ask(talk, answerable=talk.rng.random() < 0.8)
        conversations.answer(talk)
    reference = talk.rng.choices(("full", "pronoun", "ellipsis"), (26, 42, 32))[0]
    question = conversations.ask(talk, answerable=talk.rng.random() < 0.8, reference=reference)
    asked = len(talk.turns)
    conversations.answer(talk)
    return asked, json.dumps({"rewritten_question": question.plainest})


def _hallucination(talk: Talk) -> tuple[int, str]:
    faithful = talk.rng.random() < 0.5
    # an answer to what the documents do not say is made up, or says that it is not known
    conversations.ask(talk, answerable=talk.rng.random() < 0.8)
    if faithful:
        conversations.answer(talk)
        asked = len(talk.turns)
    else:
        conversations.answer_wrongly(talk)
        asked = len(talk.turns)
        conversations.doubt(talk)
    return asked, with_evidence(talk, "faithful", _yes_no(faithful), was_right=faithful)


def _jailbreak(talk: Talk) -> tuple[int, str]:
    kind = talk.rng.random()
    if kind < 0.5:
        conversations.jailbreak(talk)
    elif kind < 0.9:
        conversations.ask(talk, answerable=talk.rng.random() < 0.8, prefix=talk.rng.random() < 0.6)
        conversations.answer(talk)
    else:
        conversations.small_talk(talk)
    return len(talk.turns) - 1, json.dumps({"jailbreak": _yes_no(kind < 0.5)})


def with_evidence(talk: Talk, field: str, verdict: str, was_right: bool | None = None) -> str:
    """What the documents answer to the last question, whether the last answer was right if that is
    to be judged, and then the verdict, which rests on it.

    In this order a model this small judges well: it looks first and then compares, in the words in
    which its base does so when it is doubted.
    """
    assert talk.question is not None
    value = talk.question.fact.value if talk.question.fact else None
    evidence = conversations.sentence(talk.question, value)
    if was_right is not None:
        evidence += f" {CONFIRM if was_right else RETRACT}"
    return json.dumps({"answer": evidence, field: verdict})


def _yes_no(yes: bool) -> str:
    return "yes" if yes else "no"


_ASKED: Final[dict[str, Callable[[Talk], tuple[int, str]]]] = {
    "answerability": _answerability,
    "query_rewrite": _query_rewrite,
    "hallucination": _hallucination,
    "jailbreak": _jailbreak,
}


# The base's own answers ---------------------------------------------------------------------------


def write_certainty(path: Path, made: Sequence[CertaintyExample]) -> None:
    """One JSON object a line."""
    rows = [
        {
            "documents": one.documents,
            "messages": _pairs(one.messages),
            "correct": one.correct,
            "probability": round(one.probability, 4),
            "target": one.target,
        }
        for one in made
    ]
    _write_rows(path, rows)


def read_certainty(path: Path) -> list[CertaintyExample]:
    """What write_certainty() wrote."""
    return [
        CertaintyExample(
            "uncertainty",
            tuple(row["documents"]),
            _messages(row["messages"]),
            row["target"],
            row["correct"],
            row["probability"],
        )
        for row in _read_rows(path)
    ]


def write_lessons(path: Path, made: Sequence[Lesson]) -> None:
    """One JSON object a line."""
    rows = [
        {
            "task": one.task,
            "documents": one.documents,
            "messages": _pairs(one.messages),
            "asked": one.asked,
        }
        for one in made
    ]
    _write_rows(path, rows)


def read_lessons(path: Path) -> list[Lesson]:
    """What write_lessons() wrote. Raises FileFormatError if it is missing or something else."""
    try:
        return [
            Lesson(
                row["task"],
                tuple(row["documents"]),
                _messages(row["messages"]),
                tuple((n_messages, target) for n_messages, target in row["asked"]),
            )
            for row in _read_rows(path)
        ]
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{path}: expected lessons, one JSON object a line, found something else ({error!r}); "
            "run `python -m examples.demo_model certainty`"
        ) from error


def _pairs(messages: Sequence[Message]) -> list[list[str]]:
    return [[m.role, m.content] for m in messages]


def _messages(pairs: Sequence[Sequence[str]]) -> tuple[Message, ...]:
    return tuple(Message(role, content) for role, content in pairs)


def _write_rows(path: Path, rows: Sequence[dict[str, object]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
