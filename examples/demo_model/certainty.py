"""How sure the base is of its own answers: the uncertainty adapter's examples.

The base samples an answer to a question at temperature 1. How probable it finds that answer is
known exactly, and means something, because it words its answers in one way: what is left to chance
is what they say. A logistic curve, fitted on training questions whose right answers are known,
makes of that the probability that such an answer is right; the adapter learns its digit.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer

from . import base_model, chat, conversations, prefix, tasks, tokenizer
from .chat import Message
from .conversations import Talk
from .entities import Split
from .tasks import CertaintyExample

_AT_ONCE: Final = 48
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
            # more documents than elsewhere: something to err about
            talk = conversations.start(rng, split, n_documents=rng.randint(1, 9))
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


def examples(samples: list[Sample], curve: Curve) -> list[CertaintyExample]:
    """The adapter's examples: the conversation with the sampled answer, and the curve's digit."""
    made = []
    for s in samples:
        probability = curve(s.log_probability)
        target = str(min(9, int(probability * 10)))
        messages = (*s.talk.messages, Message("assistant", s.answer))
        made.append(
            CertaintyExample(
                "uncertainty", s.talk.documents, messages, target, s.correct, probability
            )
        )
    return made


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path, help="where the training examples go")
    parser.add_argument("--n", type=int, default=4000)
    args = parser.parse_args(argv)
    model, tokens = base_model.load(args.base), tokenizer.load(args.base)
    # answers at temperature 1 are what the curve is about; hotter ones show the adapter errors
    cool = list(sampled(model, tokens, "train", args.n // 2, temperature=1.0, seed=1))
    hot = list(sampled(model, tokens, "train", args.n // 2, temperature=1.6, seed=2))
    curve = fit(cool)
    right = sum(s.correct for s in cool) / len(cool)
    hot_right = sum(s.correct for s in hot) / len(hot)
    print(f"right at temperature 1: {right:.3f}, at 1.6: {hot_right:.3f}; {curve}", flush=True)
    tasks.write_certainty(args.out, examples(cool + hot, curve))
    held_out = list(sampled(model, tokens, "eval", _N_EVAL, temperature=1.0, seed=3))
    tasks.write_certainty(tasks.CERTAINTY_EVAL, examples(held_out, curve))
    right = sum(s.correct for s in held_out) / len(held_out)
    expected = sum(curve(s.log_probability) for s in held_out) / len(held_out)
    print(json.dumps({"held out, right": right, "expected": expected}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
