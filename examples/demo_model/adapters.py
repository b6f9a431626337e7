"""Trains an intrinsic's adapter on the frozen base with PEFT: as an aLoRA and as a plain LoRA.

Both see the same examples in the same order, batch by batch; all that differs is what the adapter
acts on. As it cannot touch what stands before its invocation, an aLoRA's prompts are read without
gradients and cached, here as later in use: that makes training it several times cheaper.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from . import base_model, chat, prefix, tasks, tokenizer
from .tasks import Example

Kind = Literal["alora", "lora"]
RANK: Final = 32
ALPHA: Final = 64
MODULES: Final = ("q_proj", "k_proj", "v_proj", "o_proj")
_BATCH: Final = 48
_POOL: Final = 20  # batches sorted by length together
IO_YAML: Final = Path(__file__).parents[2] / "alora_gguf" / "demo" / "intrinsics"


def train(
    base: Path,
    kind: Kind,
    task: str,
    examples: Sequence[Example],
    out: Path,
    *,
    lr: float,
    seed: int = 0,
) -> None:
    """Trains on `examples`, each once, in order, and writes a PEFT directory."""
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
    order = _batches(examples, seed)
    step_of = _alora_loss if kind == "alora" else _lora_loss
    started, recent = time.time(), []
    for step, batch in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = lr * _learning_rate(step, len(order))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = step_of(model, tokens, task, batch)
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


def _batches(examples: Sequence[Example], seed: int) -> list[list[Example]]:
    """Batches of examples of about the same length, their order shuffled."""
    batches = []
    rng = random.Random(seed)
    for first in range(0, len(examples), _BATCH * _POOL):
        pool = sorted(examples[first : first + _BATCH * _POOL], key=lambda e: len(e.prompt))
        here = [pool[i : i + _BATCH] for i in range(0, len(pool), _BATCH)]
        rng.shuffle(here)
        batches += here
    return batches


def _suffixes(tokens: Tokenizer, task: str, batch: list[Example]) -> list[list[int]]:
    marker = tokens.encode(chat.role_marker(task)).ids
    return [marker + tokens.encode(e.target + chat.END_TEXT).ids for e in batch]


def _alora_loss(model: Any, tokens: Tokenizer, task: str, batch: list[Example]) -> Tensor:
    with model.disable_adapter():
        read = prefix.read(model.get_base_model(), [tokens.encode(e.prompt).ids for e in batch])
    ids, mask = prefix.pad(_suffixes(tokens, task, batch))
    logits = prefix.go_on(model, read, ids, mask)
    counted = mask.bool()
    counted[:, : len(tokens.encode(chat.role_marker(task)).ids)] = False
    return _cross_entropy(logits, ids, counted)


def _lora_loss(model: Any, tokens: Tokenizer, task: str, batch: list[Example]) -> Tensor:
    suffixes = _suffixes(tokens, task, batch)
    prompts = [tokens.encode(e.prompt).ids for e in batch]
    ids, mask = prefix.pad([p + s for p, s in zip(prompts, suffixes, strict=True)])
    counted = mask.bool()
    n_marker = len(tokens.encode(chat.role_marker(task)).ids)
    for row, prompt in zip(counted, prompts, strict=True):
        row[: len(prompt) + n_marker] = False
    causal = model.get_base_model()
    hidden = causal.model(input_ids=ids, use_cache=False).last_hidden_state
    wanted = counted[:, 1:]
    logits = causal.lm_head(hidden[:, :-1][wanted]) / causal.config.logits_scaling
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][wanted])


def _cross_entropy(logits: Tensor, ids: Tensor, counted: Tensor) -> Tensor:
    wanted = counted[:, 1:]
    return torch.nn.functional.cross_entropy(logits[:, :-1][wanted].float(), ids[:, 1:][wanted])


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
    parser.add_argument("--certainty", type=Path, required=True, help="certainty.py's examples")
    parser.add_argument("--kinds", default="alora,lora")
    parser.add_argument("--tasks", default=",".join(chat.INTRINSICS))
    parser.add_argument("--n", type=int, default=6000, help="examples")
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args(argv)
    for task in args.tasks.split(","):
        if task == "uncertainty":
            few = tasks.read_certainty(args.certainty)
            examples: list[Example] = [*few] * math.ceil(args.n / len(few))
            examples = examples[: args.n]
        else:
            examples = tasks.examples(task, "train", args.n)
        for kind in args.kinds.split(","):
            train(args.base, kind, task, examples, args.out / kind / task, lr=args.lr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
