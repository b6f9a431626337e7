"""`python -m benchmarks.cluster`: `alora-gguf run --ray` with one worker and with two, each with
one thread, on a cluster of this machine: answers a second, in turns. With the extra `ray`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from alora_gguf.cli.running.cluster import Cluster, answer_all_on
from alora_gguf.cli.running.conversations import read_input
from alora_gguf.cli.running.plan import Plan
from alora_gguf.cli.running.work import Settings

import alora_gguf as ag

from . import options

INTRINSIC = "jailbreak"


def conversations(n: int) -> bytes:
    """Ten about each text."""
    lines = [
        {
            "messages": [{"role": "user", "content": f"When does number {i} open?"}],
            "documents": [{"text": f"Library {i // 10} of Bomel opens at nine. " * 12}],
        }
        for i in range(n)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def rate(plan: Plan, data: bytes, n_workers: int) -> float:
    """Answers a second, from the first part's on."""
    entries, _ = read_input(data, "talks", (INTRINSIC,), plan.template_text, lines=True)
    times: list[float] = []

    def deliver(_: Any, answer: Any, problem: str) -> None:
        assert answer is not None, problem
        times.append(time.perf_counter())

    with plan.tokenizer() as tokenizer:
        settings, cluster = Settings(n_threads=1), Cluster("local", n_workers)
        answer_all_on(cluster, plan, tokenizer, entries, settings, deliver)
    first = sum(each - times[0] < 0.01 for each in times)  # a part's arrive together
    return (len(times) - first) / (times[-1] - times[0])


def main() -> int:
    """Prints the rates and their ratio."""
    parser = options.parser("benchmarks.cluster", __doc__)
    parser.add_argument("base", nargs="?", help="a base's GGUF or smollm2 (the demo model)")
    parser.add_argument("--conversations", type=options.number(), default=1000)
    parser.add_argument("--rounds", type=options.number(), default=3)
    chosen = parser.parse_args()
    try:
        plan = Plan.make(chosen.base, (), (), (INTRINSIC,), None)
        data = conversations(chosen.conversations)
        rates: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(chosen.rounds):
            for n_workers, found in rates.items():
                found.append(rate(plan, data, n_workers))
    except ag.AloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    one, two = (median(found) for found in rates.values())
    print(f"{Path(plan.base).name}, {chosen.conversations} conversations, {chosen.rounds} rounds")
    print(f"1 worker  {one:8.1f} a second\n2 workers {two:8.1f} a second, {two / one:.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
