"""Trains an activated LoRA with PEFT: is the user's last message small talk, or about something?

    python examples/train_alora/train.py BASE OUT

BASE is a transformers model with a chat template, a directory or a name on the hub, or a GGUF. OUT
gets what `alora-gguf convert` reads: a PEFT directory with the contract, io.yaml, beside the
weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from smalltalk import VERDICTS, examples
from transformers import AutoModelForCausalLM, AutoTokenizer

# What switches the adapter on: the beginning of a turn of its own role, as Granite 3 writes roles,
# in place of what begins the assistant's turn.
INVOCATION = "<|start_of_role|>smalltalk<|end_of_role|>"
# What the adapter writes, to the letter: the contract admits only these two, in this form, so that
# at run time nothing is left to choose but the one word.
REPLIES = [json.dumps({"smalltalk": verdict}) for verdict in VERDICTS]

Messages = list[dict[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains an aLoRA that tells small talk.")
    parser.add_argument("base")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--invocation", default=INVOCATION)
    args = parser.parse_args()

    torch.manual_seed(0)
    base = Path(args.base)
    source = {"pretrained_model_name_or_path": args.base}
    if base.suffix == ".gguf":
        source = {"pretrained_model_name_or_path": str(base.parent), "gguf_file": base.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    # \n as it is written on a command line
    invocation = ids(args.invocation.replace("\\n", "\n"))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        # this makes it an aLoRA: it is on from the first of these tokens, and off before
        alora_invocation_tokens=invocation,
    )
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    model = get_peft_model(model, config)

    replies = [ids(reply) for reply in REPLIES]
    parting = next(i for i, tokens in enumerate(zip(*replies, strict=False)) if len({*tokens}) > 1)

    def log_probabilities(conversations: list[Messages], verdicts: list[int]) -> torch.Tensor:
        """Of whole replies: [n]. What all replies begin with is not chosen at run time, so that it
        weighs little.
        """
        rows = []
        for messages, verdict in zip(conversations, verdicts, strict=True):
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            rows.append((ids(text) + invocation, replies[verdict]))
        longest = max(len(prompt) + len(reply) for prompt, reply in rows)
        batch = torch.zeros(len(rows), longest, dtype=torch.long)
        mask, weight = torch.zeros_like(batch), torch.zeros(len(rows), longest)
        for i, (prompt, reply) in enumerate(rows):
            n = len(prompt) + len(reply)
            batch[i, :n] = torch.tensor(prompt + reply)
            mask[i, :n] = 1
            weight[i, len(prompt) : n] = 1
            weight[i, len(prompt) : len(prompt) + parting] = 0.1
        logits = model(input_ids=batch, attention_mask=mask).logits[:, :-1]
        of_next = logits.log_softmax(-1).gather(-1, batch[:, 1:, None])[..., 0]
        return (of_next * weight[:, 1:]).sum(1)

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.lr)
    for step in range(1, args.steps + 1):
        conversations, verdicts = map(list, zip(*examples(8, seed=step), strict=True))
        loss = -log_probabilities(conversations, verdicts).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step} of {args.steps}: loss {loss.item():.3f}", flush=True)

    held_out = examples(100, seed=0)
    with torch.no_grad():
        right = sum(
            int(log_probabilities([messages] * 2, [0, 1]).argmax()) == verdict
            for messages, verdict in held_out
        )
    print(f"right on {right} of {len(held_out)} new conversations")

    model.save_pretrained(args.out)
    shutil.copy(Path(__file__).with_name("io.yaml"), args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
