"""Trains an intrinsic's adapter on the frozen base with PEFT: as an aLoRA and as a plain LoRA.

Both see the same lessons in the same order, batch by batch; all that differs is what the adapter
acts on. A conversation is read once and the adapter asked on forks of its cache wherever there is
something to ask, here as later in use. As an aLoRA cannot touch what stands before its invocation,
its conversations are read without gradients besides: that makes training it several times cheaper.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, Literal

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from . import base_model, chat, prefix, program, tasks, tokenizer
from .tasks import Lesson
from .wordings import CONFIRM, RETRACT

Kind = Literal["alora", "lora"]
RANK: Final = 32
ALPHA: Final = 64
MODULES: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
# An answer's evidence the base gives by itself; what is to be learned is the verdict.
WEIGHT_OF_VERDICT: Final = 8.0
_EASY: Final = ("jailbreak",)  # told by the words alone
_BATCH: Final = 10  # conversations
_POOL: Final = 20  # batches sorted by length together
IO_YAML: Final = Path(__file__).parents[2] / "alora_gguf" / "demo" / "intrinsics"


def train(
    base: Path,
    kind: Kind,
    task: str,
    lessons: Sequence[Lesson],
    out: Path,
    *,
    lr: float,
    seed: int = 0,
) -> None:
    """Trains on `lessons`, each once, and writes a PEFT directory."""
    torch.manual_seed(seed)
    tokens = tokenizer.load(base)
    invocation = tokens.encode(chat.role_marker(task)).ids
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=list(MODULES),
        alora_invocation_tokens=invocation if kind == "alora" else None,
    )
    model = get_peft_model(base_model.load(base), config)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    order = _batches(lessons, seed)
    started, recent = time.time(), []
    for step, batch in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = lr * _learning_rate(step, len(order))
        with base_model.half_products():
            loss = loss_of(model, tokens, kind, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 25 == 0 or step + 1 == len(order):
            mean = sum(recent) / len(recent)
            seconds = time.time() - started
            print(
                f"{task} {kind} {step + 1}/{len(order)} loss {mean:.4f} {seconds:.0f} s", flush=True
            )
            recent.clear()
    _save(model, out, task)


def _learning_rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 20)
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _batches(lessons: Sequence[Lesson], seed: int) -> list[list[Lesson]]:
    """Batches of conversations of about the same length, their order shuffled."""
    batches = []
    rng = random.Random(seed)
    for first in range(0, len(lessons), _BATCH * _POOL):
        pool = sorted(lessons[first : first + _BATCH * _POOL], key=lambda one: len(one.prompt))
        here = [pool[i : i + _BATCH] for i in range(0, len(pool), _BATCH)]
        rng.shuffle(here)
        batches += here
    return batches


def answer_tokens(tokens: Tokenizer, target: str) -> tuple[list[int], list[float]]:
    """Ids of an answer and of its end, and how much predicting each counts."""
    encoded = tokens.encode(target + chat.END_TEXT)
    verdict = target.rfind('": "') + 4  # the last field's value
    for was_right in (CONFIRM, RETRACT):  # said before it, and decides it
        if was_right in target:
            verdict = target.index(was_right) - 1  # with its space: "Yes" and "No" part there
    return encoded.ids, [WEIGHT_OF_VERDICT if end > verdict else 1.0 for _, end in encoded.offsets]


def loss_of(model: Any, tokens: Tokenizer, kind: Kind, batch: Sequence[Lesson]) -> Tensor:
    """Weighted mean cross-entropy of all the answers in `batch`, lessons of one task."""
    prompts = [tokens.encode(lesson.prompt).ids for lesson in batch]
    marker = tokens.encode(chat.role_marker(batch[0].task)).ids
    rows, lengths, suffixes, weights = [], [], [], []
    for row, lesson in enumerate(batch):
        for n_messages, target in lesson.asked:
            rows.append(row)
            lengths.append(len(tokens.encode(lesson.prompt_of(n_messages)).ids))
            answer, counted = answer_tokens(tokens, target)
            suffixes.append(marker + answer)
            weights.append([0.0] * len(marker) + counted)
    base = model.get_base_model()
    if kind == "alora":
        with torch.no_grad(), model.disable_adapter():
            read = prefix.read(base, prompts)
    else:
        read = prefix.read(base, prompts)
    ids, mask = prefix.pad(suffixes)
    logits = prefix.go_on(model, prefix.fork(read, rows, lengths), ids, mask)
    weight = torch.zeros(ids.shape)
    for row, counted in zip(weight, weights, strict=True):
        row[: len(counted)] = torch.tensor(counted)
    wanted = weight[:, 1:] > 0
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1][wanted].float(), ids[:, 1:][wanted], reduction="none"
    )
    return (losses * weight[:, 1:][wanted]).sum() / weight.sum()


def _save(model: Any, out: Path, task: str) -> None:
    """What save_pretrained() writes, in F16, and the intrinsic's contract."""
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    weights = out / "adapter_model.safetensors"
    save_file({k: v.half() for k, v in load_file(weights).items()}, weights)
    config = json.loads((out / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "alora-gguf-demo"
    (out / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.copy(IO_YAML / task / "io.yaml", out / "io.yaml")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path, help="gets <kind>/<intrinsic>/")
    parser.add_argument("--certainty", type=Path, required=True, help="certainty.py's lessons")
    parser.add_argument("--kinds", default="alora,lora")
    parser.add_argument("--tasks", default=",".join(chat.INTRINSICS))
    parser.add_argument("--n", type=int, default=1500, help="conversations")
    parser.add_argument("--lr", type=float, default=4e-3)
    args = parser.parse_args(argv)
    chosen = args.tasks.split(",")
    known = tasks.read_lessons(args.certainty) if "uncertainty" in chosen else []
    # one thread each, as many at a time as there are cores: faster than many threads on one
    workers = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        jobs = [
            pool.submit(_one, args, kind, task, known if task == "uncertainty" else None)
            for kind in reversed(args.kinds.split(","))  # LoRAs take longer
            for task in chosen
        ]
        for job in jobs:
            job.result()
    return 0


def _one(args: argparse.Namespace, kind: Kind, task: str, known: list[Lesson] | None) -> None:
    """Trains one adapter, on the lessons that are `known` or else on new ones."""
    n = args.n // 2 if task in _EASY else args.n
    lessons = tasks.lessons(task, n) if known is None else known
    train(args.base, kind, task, lessons, args.out / kind / task, lr=args.lr)


if __name__ == "__main__":
    program.run(main)
