"""How sure the base is of its own answers: the uncertainty adapter's examples.

The base samples an answer to a question at temperature 1. How probable it finds that answer is
known exactly, and means something, because it words its answers in one way: what is left to chance
is what they say. A logistic curve, fitted on training questions whose right answers are known,
makes of that the probability that such an answer is right; the adapter learns its digit.

The base is mostly right, and mostly sure: an adapter that learns from that alone says so without
looking. So the lessons are, besides unsure and wrong samples and as many sure ones, hallucination's
conversations, with the digits of how probable the base finds the answers in them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer

from . import base_model, chat, conversations, prefix, program, tasks, tokenizer
from .chat import Message
from .conversations import Talk
from .entities import Split
from .tasks import CertaintyExample, Lesson

_AT_ONCE: Final = 48
_SCORED_AT_ONCE: Final = 16
_MAX_TOKENS: Final = 40
_N_EVAL: Final = 1000


@dataclass(frozen=True)
class Sample:
    """A sampled answer: is it right, and how probable was it (natural logarithm)."""

    talk: Talk
    answer: str
    correct: bool
    log_probability: float


@dataclass(frozen=True)
class Curve:
    """P(right) = logistic(a + b · logit(p)) for an answer of probability p."""

    a: float
    b: float

    def __call__(self, log_probability: float) -> float:
        return 1 / (1 + math.exp(-(self.a + self.b * _logit(log_probability))))


def _logit(log_probability: float) -> float:
    p = min(max(math.exp(log_probability), 1e-4), 1 - 1e-4)
    return math.log(p / (1 - p))


def fit(samples: list[Sample]) -> Curve:
    """The maximum-likelihood curve, by Newton's method."""
    x = np.array([[1.0, _logit(s.log_probability)] for s in samples])
    y = np.array([float(s.correct) for s in samples])
    w = np.array([0.0, 1.0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (y - p) - 1e-3 * w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        w = w + step
        if np.abs(step).max() < 1e-9:
            break
    return Curve(float(w[0]), float(w[1]))


def sampled(
    model: Any, tokens: Tokenizer, split: Split, n: int, *, temperature: float, seed: int
) -> Iterator[Sample]:
    """`n` questions with an answer of the base's each, at `temperature`."""
    torch.manual_seed(seed)
    for first in range(0, n, _AT_ONCE):
        talks = []
        for i in range(first, min(first + _AT_ONCE, n)):
            rng = random.Random(f"certainty {split} {seed} {i}")
            n_documents = conversations.documents_for(rng)
            talk = conversations.start(rng, split, n_documents=n_documents)
            for _ in range(rng.randint(0, 2)):
                conversations.exchange(talk)
            conversations.ask(talk, answerable=rng.random() < 0.75)
            talks.append(talk)
        yield from _answer(model, tokens, talks, temperature)


@torch.no_grad()
def _answer(
    model: Any, tokens: Tokenizer, talks: list[Talk], temperature: float
) -> Iterator[Sample]:
    end = tokens.token_to_id(chat.END_TEXT)
    read = prefix.read(
        model, [tokens.encode(chat.render(t.documents, t.messages)).ids for t in talks]
    )
    ids = torch.tensor([tokens.encode(chat.role_marker("assistant")).ids] * len(talks))
    said: list[list[int]] = [[] for _ in talks]
    scores = torch.zeros(len(talks))
    going = torch.ones(len(talks), dtype=torch.bool)
    for _ in range(_MAX_TOKENS):
        logits = prefix.go_on(model, read, ids, torch.ones_like(ids))[:, -1].float()
        ids = torch.multinomial(torch.softmax(logits / temperature, -1), 1)
        scores += torch.log_softmax(logits, -1).gather(1, ids)[:, 0] * going
        going &= ids[:, 0] != end
        if not going.any():
            break
        for i in torch.nonzero(going)[:, 0].tolist():
            said[i].append(int(ids[i, 0]))
    for talk, one, score in zip(talks, said, scores.tolist(), strict=True):
        answer = tokens.decode(one)
        yield Sample(talk, answer, _is_right(talk, answer), score)


def _is_right(talk: Talk, answer: str) -> bool:
    if talk.question is None:
        raise ValueError("a talk that ends with a question was expected")
    value = talk.question.fact.value if talk.question.fact else None
    return tasks.Question(talk.documents, talk.messages, value).is_right(answer)


def examples(samples: Sequence[Sample], curve: Curve) -> list[CertaintyExample]:
    """The conversation with the sampled answer, and the curve's digit."""
    made = []
    for s in samples:
        probability = curve(s.log_probability)
        target = tasks.with_evidence(s.talk, "certainty", _digit(probability), was_right=s.correct)
        messages = (*s.talk.messages, Message("assistant", s.answer))
        made.append(
            CertaintyExample(
                "uncertainty", s.talk.documents, messages, target, s.correct, probability
            )
        )
    return made


def _digit(probability: float) -> str:
    return str(min(9, int(probability * 10)))


def lessons(sampled: Sequence[CertaintyExample], scored: Sequence[Lesson]) -> list[Lesson]:
    """What the adapter learns from, in random order."""
    rng = random.Random("certainty lessons")
    doubtful = [one for one in sampled if not one.correct or one.probability < 0.9]
    sure = [one for one in sampled if one.correct and one.probability >= 0.9]
    made = [tasks.lesson_of(one) for one in (*doubtful, *sure[: len(doubtful)])]
    made += scored
    rng.shuffle(made)
    return made


@torch.no_grad()
def scored(
    model: Any, tokens: Tokenizer, curve: Curve, conversations: Sequence[Lesson]
) -> Iterator[Lesson]:
    """Hallucination's lessons, their verdicts replaced by certainties: how probable the base finds
    each answer that is judged, given what stands before it.
    """
    for first in range(0, len(conversations), _SCORED_AT_ONCE):
        some = conversations[first : first + _SCORED_AT_ONCE]
        ids, mask = prefix.pad([tokens.encode(one.prompt).ids for one in some])
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        scores = torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None])[:, :, 0]
        for one, score in zip(some, scores, strict=True):
            asked = []
            for n_messages, target in one.asked:
                before = one.prompt_of(n_messages - 1) + chat.role_marker("assistant")
                begin = len(tokens.encode(before).ids) - 1
                end = len(tokens.encode(one.prompt_of(n_messages)).ids) - 2  # less the line's end
                probability = curve(score[begin:end].sum().item())
                said = {"answer": json.loads(target)["answer"], "certainty": _digit(probability)}
                asked.append((n_messages, json.dumps(said)))
            yield replace(one, task="uncertainty", asked=tuple(asked))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path, help="where the lessons go")
    parser.add_argument("--n", type=int, default=4000, help="answers sampled")
    parser.add_argument("--n-scored", type=int, default=1000, help="conversations scored")
    args = parser.parse_args(argv)
    model, tokens = base_model.load(args.base), tokenizer.load(args.base)
    # answers at temperature 1 are what the curve is about; hotter ones show the adapter errors
    cool = list(sampled(model, tokens, "train", args.n // 2, temperature=1.0, seed=1))
    hot = list(sampled(model, tokens, "train", args.n // 2, temperature=1.6, seed=2))
    curve = fit(cool)
    right = sum(s.correct for s in cool) / len(cool)
    hot_right = sum(s.correct for s in hot) / len(hot)
    print(f"right at temperature 1: {right:.3f}, at 1.6: {hot_right:.3f}; {curve}", flush=True)
    right_and_wrong = tasks.lessons("hallucination", args.n_scored, seed=1)
    made = lessons(examples(cool + hot, curve), list(scored(model, tokens, curve, right_and_wrong)))
    tasks.write_lessons(args.out, made)
    held_out = list(sampled(model, tokens, "eval", _N_EVAL, temperature=1.0, seed=3))
    tasks.write_certainty(tasks.CERTAINTY_EVAL, examples(held_out, curve))
    right = sum(s.correct for s in held_out) / len(held_out)
    expected = sum(curve(s.log_probability) for s in held_out) / len(held_out)
    print(json.dumps({"held out, right": right, "expected": expected}), flush=True)
    return 0


if __name__ == "__main__":
    program.run(main)
