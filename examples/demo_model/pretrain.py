"""Trains the base from scratch on talks that are made as they are needed."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GraniteForCausalLM

from . import base_model, chat, conversations, tokenizer, wordings
from .conversations import Talk, Turn
from .entities import Split

TOKENS_PER_STEP: Final = 3072
# In an answer, what stands in the documents (or that nothing does) is what is hard to learn.
WEIGHT_OF_VALUES: Final = 3.0
# What is not the assistant's to say teaches language: a row in four learns that too, at a discount.
WEIGHT_OF_CONTEXT: Final = 0.1
_WITH_CONTEXT: Final = 0.25
_POOL: Final = 256  # talks are sorted by length within so many: little padding
# the curriculum's stages end at these shares of the steps
_ONE_DOCUMENT: Final = 0.12
_SIMPLE: Final = 0.25


Encoded = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Batch:
    """Token ids [n, length], and for each how much predicting it counts."""

    ids: Tensor
    weights: Tensor


def encode(talk: Talk, tokens: Tokenizer, context: float = WEIGHT_OF_CONTEXT) -> Encoded:
    """A talk's token ids with their weights; what it says is chat.render()'s text."""
    ids: list[int] = []
    weights: list[float] = []

    def add(text: str, weight: float, value: str | None = None) -> None:
        encoded = tokens.encode(text)
        ids.extend(encoded.ids)
        first = text.rfind(value) if value is not None and weight else -1
        for start, end in encoded.offsets:
            of_value = first >= 0 and value is not None
            of_value = of_value and start < first + len(value or "") and end > first
            weights.append(weight * (WEIGHT_OF_VALUES if of_value else 1.0))

    documents = [chat.turn(f"document {i}", text) for i, text in enumerate(talk.documents, 1)]
    for turn in talk.turns:
        message = turn.message
        if documents and message.role != "system":
            for text in documents:
                add(text, context)
            documents = []
        if message.role == "assistant":
            add(chat.role_marker("assistant"), context)
            add(message.content + chat.END_TEXT, 1.0 if turn.learn else 0.0, _value(turn))
            add("\n", context)
        else:
            add(chat.turn(message.role, message.content), context)
    return ids, weights


def _value(turn: Turn) -> str | None:
    """What an answer gives, or that it does not know; None if it is none."""
    if turn.question is None:
        return None
    return turn.question.fact.value if turn.question.fact else wordings.UNKNOWN


def batches(tokens: Tokenizer, steps: int, seed: int) -> Iterator[Batch]:
    """`steps` batches, from the simplest to the longest: see `_one`."""
    made = 0
    pool_number = 0
    while made < steps:
        progress = made / steps
        rng = random.Random(f"train {seed} {pool_number}")
        pool_number += 1
        # short rows make many batches of a pool: stay close to the schedule
        n = _POOL if progress > _SIMPLE else 2 * _POOL
        pool = [_one(rng, progress, tokens) for _ in range(n)]
        pool = [one for one in pool if len(one[0]) <= base_model.CONTEXT]
        pool.sort(key=lambda one: len(one[0]))
        here = list(_cut(pool))
        rng.shuffle(here)
        for group in here[: steps - made]:
            made += 1
            yield _pad(group)


def _one(rng: random.Random, progress: float, tokens: Tokenizer) -> Encoded:
    """A row of training: questions about one document, then about few, then talks.

    Each stage teaches what the next one needs: to copy (quotations are many copied tokens), to find
    whose value it is, to say when there is none, to follow a talk. From talks alone a model this
    small learns the values' kinds and stays there.
    """
    context = WEIGHT_OF_CONTEXT if rng.random() < _WITH_CONTEXT else 0.0
    if rng.random() < (0.2 if progress < _ONE_DOCUMENT else 0.05):
        return encode(conversations.listing(rng, "train"), tokens, context)
    if progress < _SIMPLE:
        n_documents = 1 if progress < _ONE_DOCUMENT else rng.randint(1, 3)
        quoting = 0.5 if progress < _ONE_DOCUMENT else 0.2
        talk = conversations.start(rng, "train", n_documents=n_documents)
        for _ in range(rng.randint(3, 8)):
            if rng.random() < quoting:
                conversations.quote(talk)
                continue
            answerable = progress < _ONE_DOCUMENT or rng.random() < 0.85
            conversations.ask(talk, answerable=answerable)
            conversations.answer(talk)
        return encode(talk, tokens, context)
    long = progress > 0.5 and rng.random() < 0.03
    n_turns = rng.randint(3, 10)
    return encode(conversations.talk(rng, "train", n_turns=n_turns, long=long), tokens, context)


def _cut(pool: list[Encoded]) -> Iterator[list[Encoded]]:
    """Groups of about TOKENS_PER_STEP tokens, padding included."""
    group: list[Encoded] = []
    for one in pool:
        if group and len(one[0]) * (len(group) + 1) > TOKENS_PER_STEP:
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _pad(group: list[Encoded]) -> Batch:
    length = max(len(ids) for ids, _ in group)
    ids = torch.zeros(len(group), length, dtype=torch.long)
    weights = torch.zeros(len(group), length)
    for i, (one_ids, one_weights) in enumerate(group):
        ids[i, : len(one_ids)] = torch.tensor(one_ids)
        weights[i, : len(one_weights)] = torch.tensor(one_weights)
    return Batch(ids, weights)


def loss_of(model: GraniteForCausalLM, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy. Padding is on the right, so a causal model needs no mask."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    counted = batch.weights[:, 1:] > 0
    logits = model.lm_head(hidden[:, :-1][counted]).float() / model.config.logits_scaling
    losses = torch.nn.functional.cross_entropy(logits, batch.ids[:, 1:][counted], reduction="none")
    weights = batch.weights[:, 1:][counted]
    return (losses * weights).sum() / weights.sum()


def optimizers(model: GraniteForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings and norms."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.6 * lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(step: int, steps: int) -> float:
    """Rises over 60 steps, stays, and falls to nothing over the last 40 %."""
    return min(1.0, (step + 1) / 60, (steps - step) / (0.4 * steps))


@torch.no_grad()
def right_values(model: GraniteForCausalLM, tokens: Tokenizer, split: Split, n: int) -> float:
    """Share of answerable questions whose value the model would say, told the words before it."""
    right = total = 0
    for i in range(n):
        rng = random.Random(f"check {split} {i}")
        talk = conversations.start(rng, split, n_documents=conversations.documents_for(rng))
        for _ in range(3):
            question = conversations.ask(talk, answerable=True)
            conversations.answer(talk)
        assert question.fact is not None
        answer = talk.turns.pop().message.content
        before, _, after = answer.partition(question.fact.value)
        prompt = chat.render(talk.documents, talk.messages, generation_prompt=True)
        start = tokens.encode(prompt + before.rstrip()).ids
        whole = tokens.encode(prompt + answer.removesuffix(after)).ids
        logits = model(input_ids=torch.tensor([whole]), use_cache=False).logits[0]
        guesses = logits[len(start) - 1 : -1].argmax(-1).tolist()
        right += guesses == whole[len(start) :]
        total += 1
    return right / total


def train(directory: Path, *, steps: int, seed: int, lr: float, compiled: bool) -> None:
    """Trains and saves the base; the tokenizer must already be in `directory`.

    `compiled` takes two thirds of the time and needs a C++ compiler.
    """
    torch.manual_seed(seed)
    tokens = tokenizer.load(directory)
    model = base_model.new_model(tokens.token_to_id(chat.END_TEXT))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps", flush=True)
    opts = optimizers(model, lr)
    if compiled:
        model.model.compile(dynamic=True)
    started, seen, recent = time.time(), 0, []
    for step, batch in enumerate(batches(tokens, steps, seed)):
        for opt in opts:
            for group in opt.param_groups:
                full = group.setdefault("full_lr", group["lr"])
                group["lr"] = full * learning_rate(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        seen += batch.ids.numel()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            rate = seen / (time.time() - started)
            mean = sum(recent) / len(recent)
            print(f"{step + 1:6} loss {mean:.3f}  {rate:,.0f} tokens/s", flush=True)
            recent.clear()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            base_model.save(model, directory)
            share = right_values(model.eval(), tokens, "eval", 100)
            model.train()
            print(f"{step + 1:6} right values, held out: {share:.2f}", flush=True)


def train_tokenizer(directory: Path, seed: int) -> None:
    def texts() -> Iterator[str]:
        for i in range(8000):
            rng = random.Random(f"tokenizer {seed} {i}")
            talk = conversations.talk(rng, "train", n_turns=4)
            yield chat.render(talk.documents, talk.messages)

    tokenizer.train(texts(), directory, base_model.VOCABULARY)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--eager", action="store_true", help="do without a C++ compiler")
    args = parser.parse_args(argv)
    train_tokenizer(args.directory, args.seed)
    train(args.directory, steps=args.steps, seed=args.seed, lr=args.lr, compiled=not args.eager)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
