"""How sure the base is of its own answers: the uncertainty adapter's examples.

The base samples an answer to a question. How probable the base finds what the answer *means* is
known exactly: the sum over all the sentences that would say it, because its answers' wordings are
few. A logistic curve, fitted on training questions whose right answers are known, makes of that
the probability that such an answer is right; the adapter learns its digit.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer

from . import base_model, chat, conversations, prefix, tasks, tokenizer
from .chat import Message
from .conversations import Question, Talk
from .entities import Split
from .tasks import CertaintyExample
from .wordings import UNKNOWN

_AT_ONCE: Final = 48
_MAX_TOKENS: Final = 40
_N_EVAL: Final = 1000


@dataclass(frozen=True)
class Sample:
    """A sampled answer: is it right, and how probable (natural logarithm) is its meaning."""

    talk: Talk
    answer: str
    correct: bool
    log_probability: float


@dataclass(frozen=True)
class Curve:
    """P(right) = logistic(a + b · logit(p)) for an answer whose meaning has probability p."""

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
    prompts = [tokens.encode(chat.render(t.documents, t.messages)).ids for t in talks]
    read = prefix.read(model, prompts)
    answers = _sample(model, tokens, prefix.repeat(read, 1), len(talks), temperature)
    meanings = [_same_meaning(_question(t), a) for t, a in zip(talks, answers, strict=True)]
    most = max(map(len, meanings))
    scores = _score(model, tokens, prefix.repeat(read, most), meanings, most)
    for talk, answer, score in zip(talks, answers, scores, strict=True):
        value = _question(talk).fact.value if _question(talk).fact else None
        right = tasks.Question(talk.documents, talk.messages, value).is_right(answer)
        yield Sample(talk, answer, right, score)


def _question(talk: Talk) -> Question:
    if talk.question is None:
        raise ValueError("a talk that ends with a question was expected")
    return talk.question


def _sample(
    model: Any, tokens: Tokenizer, read: prefix.Prefix, n: int, temperature: float
) -> list[str]:
    end = tokens.token_to_id(chat.END_TEXT)
    ids = torch.tensor([tokens.encode(chat.role_marker("assistant")).ids] * n)
    said: list[list[int]] = [[] for _ in range(n)]
    ended = torch.zeros(n, dtype=torch.bool)
    for _ in range(_MAX_TOKENS):
        logits = prefix.go_on(model, read, ids, torch.ones_like(ids))[:, -1]
        ids = torch.multinomial(torch.softmax(logits / temperature, -1), 1)
        ended |= ids[:, 0] == end
        if ended.all():
            break
        for i in torch.nonzero(~ended)[:, 0].tolist():
            said[i].append(int(ids[i, 0]))
    return [tokens.decode(one) for one in said]


def _same_meaning(question: Question, answer: str) -> list[str]:
    """All the sentences with which the base might say what `answer` says, itself first."""
    if question.field is not None:
        return [answer]
    if answer in UNKNOWN:
        return list(dict.fromkeys([answer, *UNKNOWN]))
    for wording in question.relation.answers:
        pattern = re.escape(wording).replace(r"\{s\}", ".+?").replace(r"\{v\}", "(.+)")
        found = re.fullmatch(pattern, answer)
        if found:
            value = found[1]
            said = [answer]
            for other in question.relation.answers:
                said.append(conversations.fill(other, question.subject.name, value))
                if other.startswith("{s}"):
                    said.append(conversations.fill_pronoun(other, question.subject, value))
            return list(dict.fromkeys(said))
    return [answer]


def _score(
    model: Any, tokens: Tokenizer, read: prefix.Prefix, meanings: list[list[str]], most: int
) -> list[float]:
    """The logarithm of each meaning's probability; `read` has each prompt `most` times."""
    marker = tokens.encode(chat.role_marker("assistant")).ids
    rows = []
    for said in meanings:
        padded = said + [""] * (most - len(said))
        rows += [marker + tokens.encode(text + chat.END_TEXT).ids for text in padded]
    ids, mask = prefix.pad(rows)
    logits = prefix.go_on(model, read, ids, mask)
    taken = torch.log_softmax(logits[:, len(marker) - 1 : -1].float(), -1)
    taken = taken.gather(-1, ids[:, len(marker) :, None])[..., 0]
    sums = (taken * mask[:, len(marker) :]).sum(1).view(len(meanings), most)
    return [
        float(torch.logsumexp(row[: len(said)], 0))
        for row, said in zip(sums, meanings, strict=True)
    ]


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
