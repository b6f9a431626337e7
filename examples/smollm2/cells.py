"""`python -m examples.smollm2.cells DATA`: what quantised cells of the KV cache cost in accuracy.

Asks the shipped adapters that decide about conversations of the evaluation with cells of several
types, and says how many verdicts are right, how many are others than with F16, by how much their
probabilities differ, and how well the base itself then predicts the conversations.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from alora_gguf import Model, smollm2
from alora_gguf.errors import InputError
from alora_gguf.options import CACHE_TYPES, CacheType
from alora_gguf.train.asking import Deciding, asking
from alora_gguf.train.data import Example, read_examples
from alora_gguf.train.scores import neighbours
from benchmarks.report import machine
from examples.demo_model import program

from .evaluate import QUESTIONS

USUAL: Final = "f16"
TYPES: Final[tuple[CacheType, ...]] = (USUAL, "q8_0", "q5_1", "q4_0")
_SCORED: Final = 5  # one conversation of so many is predicted
_N_CTX: Final = 4096


@dataclass
class Found:
    """With one type of cells, in the order of the conversations: how likely the adapter's second
    category was, whether that was right, and the mean log-probabilities of some conversations'
    tokens, in nats.
    """

    shares: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


def found(cells: CacheType, task: str, examples: Sequence[Example], n_threads: int) -> Found:
    """What the intrinsic says about the examples, with such cells."""
    adapters = {task: smollm2.adapter_paths()[task]}
    result = Found()
    with Model(
        smollm2.base_path(), adapters=adapters, n_ctx=_N_CTX, n_threads=n_threads, type_k=cells,
        type_v=cells,
    ) as model:  # fmt: skip
        asked = asking(model, task, QUESTIONS[task])
        if not isinstance(asked, Deciding):
            raise InputError(f"{task}: writes text; only intrinsics that decide can be compared")
        for i, each in enumerate(examples):
            with model.chat(messages=each.messages, documents=each.documents) as chat:
                said = asked.adapter(chat, each, None)
                tokens = chat.tokens
            result.shares.append(said.shares[1])
            result.right.append((said.shares[1] > 0.5) == (asked.right(each) == 1))
            if i % _SCORED == 0:
                with model.session() as session:
                    scored = session.score(tokens)
                result.logprobs.append(float(np.mean([one.logprob for one in scored])))
    return result


def rows(task: str, by_cells: dict[str, Found]) -> Iterator[dict[str, Any]]:
    """A line of the table for each type."""
    usual = by_cells[USUAL]
    for cells, each in by_cells.items():
        shares, before = np.array(each.shares), np.array(usual.shares)
        yield {
            "task": task,
            "cells": cells,
            "n": len(shares),
            "right": float(np.mean(each.right)),
            "other_verdicts": int(np.sum((shares > 0.5) != (before > 0.5))),
            "difference": float(np.mean(np.abs(shares - before))),
            "perplexity": float(np.exp(-np.mean(each.logprobs))),
        }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="what examples.smollm2.data wrote")
    parser.add_argument("--tasks", default="answerability,hallucination,jailbreak,uncertainty")
    parser.add_argument("--cells", default=",".join(TYPES))
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.conversations < 1:
        parser.error(f"--conversations must be 1 or more, got {args.conversations}")
    kinds = [USUAL, *(each for each in args.cells.split(",") if each != USUAL)]
    if strange := [each for each in kinds if each not in CACHE_TYPES]:
        parser.error(f"--cells: {strange[0]} is none of {', '.join(CACHE_TYPES)}")
    tasks = args.tasks.split(",")
    if strange := [each for each in tasks if each not in smollm2.adapter_paths()]:
        parser.error(f"--tasks: {strange[0]} is none of {', '.join(smollm2.adapter_paths())}")
    lines = {task: read_examples(args.data / f"{task}.eval.jsonl") for task in tasks}
    all_rows = []
    print("| | cells | right | other verdicts | mean difference | perplexity |")
    print("|---|---|---|---|---|---|")
    for task in tasks:
        some = [*lines[task].train, *lines[task].held_out][: args.conversations]
        examples = [some[i] for i in neighbours(some)]
        by_cells = {each: found(each, task, examples, args.threads) for each in kinds}
        for row in rows(task, by_cells):
            all_rows.append(row)
            print(
                f"| {row['task']} | {row['cells']} | {row['right']:.1%} | {row['other_verdicts']} "
                f"of {row['n']} | {row['difference']:.4f} | {row['perplexity']:.3f} |",
                flush=True,
            )
    if args.json is not None:
        args.json.write_text(
            json.dumps({"machine": machine(), "rows": all_rows}, indent=1) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    program.run(main)
