"""Trains the base from scratch on talks that are made as they are needed."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GraniteForCausalLM

from alora_gguf.errors import FileFormatError
from alora_gguf.files import write_whole

from . import base_model, chat, conversations, program, tokenizer
from .conversations import Talk
from .entities import Split

TOKENS_PER_STEP: Final = 3072
# In an answer, what stands in the documents (or that nothing does) is what is hard to learn.
WEIGHT_OF_VALUES: Final = 3.0
# What is not the assistant's to say teaches language: a row in four learns that too, at a discount.
WEIGHT_OF_CONTEXT: Final = 0.1
_WITH_CONTEXT: Final = 0.25
_SAVE_EVERY: Final = 250  # steps
_POOL: Final = 256  # talks are sorted by length within so many: little padding
# Three courses, each a share of the steps and how high the rate is. It falls at the end of each:
# what is learned while it is high is not exact, and only then shows. The first course learns to
# find, the second in more wordings, the third to compare.
_COURSES: Final = ((0.55, 1.0), (0.25, 0.3), (0.2, 0.3))
_FIRST_COURSE: Final = _COURSES[0][0]
_LAST_COURSE: Final = 1 - _COURSES[-1][0]  # its begin
# the curriculum's stages end at these shares of the first course
_ONE_DOCUMENT: Final = 0.06
_SIMPLE: Final = 0.22


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

    def add(text: str, weight: float, values: Sequence[tuple[int, int]] = ()) -> None:
        encoded = tokens.encode(text)
        ids.extend(encoded.ids)
        for start, end in encoded.offsets:
            of_value = any(start < last and end > first for first, last in values)
            weights.append(WEIGHT_OF_VALUES if of_value else weight)

    documents = [chat.turn(f"document {i}", text) for i, text in enumerate(talk.documents, 1)]
    for turn in talk.turns:
        message = turn.message
        if documents and message.role != "system":
            for text in documents:
                add(text, context)
            documents = []
        if message.role == "assistant":
            add(chat.role_marker("assistant"), context)
            weight = context if turn.any_order else float(turn.learn)
            add(message.content + chat.END_TEXT, weight, turn.values if turn.learn else ())
            add("\n", context)
        else:
            add(chat.turn(message.role, message.content), context)
    return ids, weights


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
    later, comparing = progress >= _FIRST_COURSE, progress >= _LAST_COURSE
    progress = min(1.0, progress / _FIRST_COURSE)
    if rng.random() < 0.05:
        return encode(conversations.listing(rng, "train"), tokens, context)
    surveying = 0.6 if progress < _SIMPLE else 0.2 if later else 0.15
    if rng.random() < surveying:
        n_documents = 1 if progress < _ONE_DOCUMENT else conversations.documents_for(rng)
        talk = conversations.start(rng, "train", n_documents=n_documents)
        conversations.survey(talk)
        if comparing:
            conversations.review(talk)
        return encode(talk, tokens, context)
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
    talk = conversations.talk(
        rng,
        "train",
        n_turns=rng.randint(3, 10),
        long=long,
        doubted=0.5 if comparing else conversations.DOUBTED,
    )
    return encode(talk, tokens, context)


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
    """In every course it rises over 60 steps and falls to nothing: the first time towards the end,
    later all the time.
    """
    begin, falling = 0.0, 0.4
    for share, height in _COURSES:
        end = begin + share * steps
        if step < end:
            left = (end - step) / (falling * (end - begin))
            return height * min(1.0, (step + 1 - begin) / 60, left)
        begin, falling = end, 1.0
    return 0.0


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


def train(
    directory: Path, *, steps: int, seed: int, lr: float, compiled: bool, resume: bool = False
) -> None:
    """Trains and saves the base; the tokenizer must already be in `directory`.

    `compiled` takes two thirds of the time and needs a C++ compiler. `resume` goes on from what was
    last saved there.
    """
    torch.manual_seed(seed)
    tokens = tokenizer.load(directory)
    model = base_model.new_model(tokens.token_to_id(chat.END_TEXT))
    opts = optimizers(model, lr)
    done = _restore(directory, model, opts) if resume else 0
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {steps} steps", flush=True)
    if compiled:
        model.model.compile(dynamic=True)
    started, seen, recent = time.time(), 0, []
    for step, batch in enumerate(batches(tokens, steps, seed)):
        if step < done:
            continue
        for opt in opts:
            for group in opt.param_groups:
                full = group.setdefault("full_lr", group["lr"])
                group["lr"] = full * learning_rate(step, steps)
        with base_model.half_products():
            loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            with base_model.full_products():
                opt.step()
            opt.zero_grad()
        seen += batch.ids.numel()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            rate = seen / (time.time() - started)
            mean = sum(recent) / len(recent)
            print(f"{step + 1:6} loss {mean:.3f}  {rate:,.0f} tokens/s", flush=True)
            recent.clear()
        if (step + 1) % _SAVE_EVERY == 0 or step + 1 == steps:
            _save(directory, model, opts, step + 1)
            share = right_values(model.eval(), tokens, "eval", 100)
            model.train()
            print(f"{step + 1:6} right values, held out: {share:.2f}", flush=True)


def _state_file(directory: Path) -> Path:
    """Beside the directory: what is in it will be published."""
    return directory.with_name(f"{directory.name}.training.pt")


def _save(
    directory: Path, model: GraniteForCausalLM, opts: list[torch.optim.Optimizer], step: int
) -> None:
    base_model.save(model, directory)
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [opt.state_dict() for opt in opts],
    }
    with write_whole(_state_file(directory)) as file:
        torch.save(state, file)


def _restore(directory: Path, model: GraniteForCausalLM, opts: list[torch.optim.Optimizer]) -> int:
    """Returns the steps that were done. Raises FileFormatError if nothing was saved."""
    if not _state_file(directory).is_file():
        raise FileFormatError(
            f"{_state_file(directory)}: missing, expected a training's state; "
            "start over without --resume"
        )
    state = torch.load(_state_file(directory), weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["optimizers"], strict=True):
        opt.load_state_dict(saved)
    return int(state["step"])


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
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--eager", action="store_true", help="do without a C++ compiler")
    parser.add_argument("--resume", action="store_true", help="go on where it was interrupted")
    args = parser.parse_args(argv)
    if not args.resume:
        train_tokenizer(args.directory, args.seed)
    train(
        args.directory,
        steps=args.steps,
        seed=args.seed,
        lr=args.lr,
        compiled=not args.eager,
        resume=args.resume,
    )
    return 0


if __name__ == "__main__":
    program.run(main)
