"""A few examples of each intrinsic, where trained files and the generator are beside the point."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import cycle, islice

from examples.demo_model.chat import Message, render

DOCUMENTS = ("The kettle costs 12 crowns.", "Mara has a rope.")
USER = Message("user", "What does it cost?")
TARGETS = {
    "answerability": [
        '{"answer": "It costs 12 crowns.", "answerable": "yes"}',
        '{"answer": "It is not in the documents.", "answerable": "no"}',
        '{"answer": "It costs 9 crowns.", "answerable": "yes"}',
    ],
    "uncertainty": [f'{{"answer": "It costs 12 crowns.", "certainty": "{d}"}}' for d in "729"],
    "query_rewrite": [
        json.dumps({"rewritten_question": f"What does the {thing} cost?"})
        for thing in ("kettle", "rope", "ladder")
    ],
    "hallucination": [
        '{"answer": "It costs 12 crowns.", "faithful": "yes"}',
        '{"answer": "It costs 12 crowns.", "faithful": "no"}',
    ],
    "jailbreak": ['{"jailbreak": "no"}', '{"jailbreak": "yes"}', '{"jailbreak": "no"}'],
}


@dataclass(frozen=True)
class Example:
    """As tasks.Example and, with its last two fields, tasks.CertaintyExample."""

    task: str
    documents: tuple[str, ...]
    messages: tuple[Message, ...]
    target: str
    correct: bool = False
    probability: float = 0.0

    @property
    def prompt(self) -> str:
        return render(self.documents, self.messages)


@dataclass(frozen=True)
class Question:
    """As tasks.Question."""

    documents: tuple[str, ...]
    messages: tuple[Message, ...]
    value: str | None

    def is_right(self, answer: str) -> bool:
        return "know" in answer if self.value is None else self.value in answer


def example(task: str, target: str, number: int = 0) -> Example:
    messages = [Message("user", f"Hello, number {number}."), USER]
    if task in ("uncertainty", "hallucination"):
        messages.append(Message("assistant", "It costs 12 crowns."))
    probability = 0.0
    if task == "uncertainty":
        probability = (int(json.loads(target)["certainty"]) + 0.5) / 10
    return Example(task, DOCUMENTS, tuple(messages), target, probability > 0.5, probability)


class Data:
    """Stands for the module tasks."""

    def examples(self, task: str, split: str, n: int, seed: int = 0) -> list[Example]:
        assert split == "eval"
        return [
            example(task, target, i) for i, target in enumerate(islice(cycle(TARGETS[task]), n))
        ]

    def questions(self, split: str, n: int, seed: int = 0) -> list[Question]:
        assert split == "eval"
        return [Question(DOCUMENTS, (USER,), (None, "12")[i % 2]) for i in range(n)]
