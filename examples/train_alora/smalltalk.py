"""Conversations that end with small talk, or with a question about something; endlessly many.

    python examples/train_alora/smalltalk.py 400 > smalltalk.jsonl

writes so many as JSON lines, as `alora-gguf train` reads them.
"""

from __future__ import annotations

import argparse
import json
import random

VERDICTS = ("no", "yes")
Messages = list[dict[str, str]]

GREETINGS = ("Hello!", "Good morning!", "Hello, how are you?", "Hi there.")
THANKS = ("Thank you!", "Thanks a lot.", "Great, thank you.", "Good, that is all.")
QUESTIONS = ("Where is {}?", "Who runs {}?", "When does {} open?", "Tell me about {}.")
SUBJECTS = ("the library", "the copper kettle", "the mill", "the bakery", "the museum")
ANSWERS = ("I don't know.", "It is in Mill Street.", "It opens at 9:30.")


def examples(n: int, seed: int) -> list[tuple[Messages, int]]:
    """Conversations, and whether the last message is small talk: an index into VERDICTS."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        messages: Messages = []
        for greetings in (GREETINGS, THANKS)[: rng.randint(1, 2)]:
            if messages:
                messages.append({"role": "assistant", "content": rng.choice(ANSWERS)})
            verdict = rng.randint(0, 1)
            asked = rng.choice(QUESTIONS).format(rng.choice(SUBJECTS))
            said = rng.choice(greetings) if verdict else asked
            messages.append({"role": "user", "content": said})
        made.append((messages, verdict))
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("n", type=int, help="how many")
    for messages, verdict in examples(parser.parse_args().n, seed=-1):
        print(json.dumps({"messages": messages, "answer": VERDICTS[verdict]}))
