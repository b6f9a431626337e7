"""Trains an activated LoRA with PEFT: is the user's last message small talk, or about something?

    python examples/train_alora/train.py BASE OUT

BASE is a transformers model with a chat template, a directory or a name on the hub. OUT gets what
`alora-gguf convert` reads: a PEFT directory with the contract, io.yaml, beside the weights.
"""

from __future__ import annotations

import argparse
import random
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

# What switches the adapter on: the beginning of a turn of its own role, as Granite 3 writes roles,
# in place of what begins the assistant's turn. For a model with other control tokens write it in
# those; ordinary text such as "<smalltalk>" does as well.
INVOCATION = "<|start_of_role|>smalltalk<|end_of_role|>"
# What the adapter writes. The contract's schema admits only these two, so that at run time nothing
# is left to choose but the one word, and nothing else has to be learned.
REPLY = '{"smalltalk": "'
VERDICTS = ("no", "yes")

GREETINGS = ("Hello!", "Good morning!", "Hello, how are you?", "Hi there.")
THANKS = ("Thank you!", "Thanks a lot.", "Great, thank you.", "Good, that is all.")
QUESTIONS = ("Where is {}?", "Who runs {}?", "When does {} open?", "Tell me about {}.")
SUBJECTS = ("the library", "the copper kettle", "the mill", "the bakery", "the museum")
REPLIES = ("I don't know.", "It is in Mill Street.", "It opens at 9:30.")

Messages = list[dict[str, str]]


def examples(n: int, seed: int) -> list[tuple[Messages, int]]:
    """Conversations, and whether the last message is small talk: an index into VERDICTS."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        messages: Messages = []
        for greetings in (GREETINGS, THANKS)[: rng.randint(1, 2)]:
            if messages:
                messages.append({"role": "assistant", "content": rng.choice(REPLIES)})
            verdict = rng.randint(0, 1)
            asked = rng.choice(QUESTIONS).format(rng.choice(SUBJECTS))
            said = rng.choice(greetings) if verdict else asked
            messages.append({"role": "user", "content": said})
        made.append((messages, verdict))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains an aLoRA that tells small talk.")
    parser.add_argument("base")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=16,
        lora_alpha=32,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        # this makes it an aLoRA: it is on from the first of these tokens, and off before
        alora_invocation_tokens=tokenizer.encode(INVOCATION, add_special_tokens=False),
    )
    base = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    model = get_peft_model(base, config)
    ids_of_verdicts = [
        tokenizer.encode(REPLY + verdict, add_special_tokens=False)[-1] for verdict in VERDICTS
    ]

    def logits(conversations: list[Messages]) -> torch.Tensor:
        """Of the verdict's token, [n, vocabulary]."""
        rows = []
        for messages in conversations:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            rows.append(tokenizer.encode(text + INVOCATION + REPLY, add_special_tokens=False))
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        found = model(input_ids=ids, attention_mask=mask).logits
        return found[torch.arange(len(rows)), mask.sum(1) - 1]

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=args.lr)
    for step in range(1, args.steps + 1):
        batch = examples(8, seed=step)
        wanted = torch.tensor([ids_of_verdicts[verdict] for _, verdict in batch])
        loss = torch.nn.functional.cross_entropy(logits([m for m, _ in batch]), wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(f"step {step} of {args.steps}: loss {loss.item():.3f}", flush=True)

    held_out = examples(100, seed=0)
    with torch.no_grad():
        said = logits([m for m, _ in held_out])[:, ids_of_verdicts].argmax(1).tolist()
    right = sum(verdict == wanted for verdict, (_, wanted) in zip(said, held_out, strict=True))
    print(f"right on {right} of {len(held_out)} new conversations")

    model.save_pretrained(args.out)
    shutil.copy(Path(__file__).with_name("io.yaml"), args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
