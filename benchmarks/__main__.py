"""The command: `python -m benchmarks`. Prints both sides and the ratio of each row."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from . import (
    growing,
    options,
    report,
    rows_attention,
    rows_binding,
    rows_constraint,
    rows_conversations,
    rows_decode,
    rows_idle,
    rows_intrinsics,
    rows_run,
    rows_steering,
)
from .bench import Bench, Settings
from .measure import Result
from .models import DENSE, SHAPES, TARGETS
from .runtime import Library

ROWS: dict[str, Callable[[Bench], list[Result]]] = {
    "idle": rows_idle.idle,
    "decode": rows_decode.one_decode,
    "types": rows_decode.types,
    "invocation": rows_decode.one_invocation,
    "mixed": rows_decode.mixed_decode,
    "switch": rows_decode.switching,
    "steering": rows_steering.steering,
    "base": rows_idle.base,
    "attention": rows_attention.long_attention,
    "intrinsics": rows_intrinsics.eight_intrinsics,
    "first-token": rows_intrinsics.first_token,
    "memory": rows_intrinsics.memory,
    "binding": rows_binding.binding,
    "constraint": rows_constraint.constraint,
    "restore": rows_conversations.restore,
    "prompt-cache": rows_conversations.prompt_cache,
    "invoke": rows_conversations.overhead,
    "scoring": rows_conversations.scoring,
    "threads": rows_conversations.threads,
    "run": rows_run.run,
}


def arguments() -> argparse.Namespace:
    from alora_gguf.threads import default_threads

    parser = options.parser("benchmarks", __doc__)
    options.several(parser, "--rows", ",".join(ROWS), str, ROWS)
    options.several(parser, "--models", ",".join(DENSE), str, SHAPES)
    options.several(parser, "--threads", str(default_threads()), options.number())
    parser.add_argument(
        "--cached",
        type=options.number(growing.N_READ),
        default=2048,
        help="tokens of the conversation (%(default)s)",
    )
    options.several(parser, "--targets", ",".join(TARGETS), str, TARGETS)
    parser.add_argument("--quick", action="store_true", help="a quarter of the rounds")
    parser.add_argument(
        "--stock", type=Path, help="folder of an unpatched libllama (built if not given)"
    )
    parser.add_argument("--json", type=Path, help="writes all samples to this file")
    parser.add_argument(
        "--write-readme", action="store_true", help="puts the tables into README.md"
    )
    parser.add_argument("--check", action="store_true", help="fails if a floor is missed")
    chosen = parser.parse_args()
    if chosen.stock and not list(chosen.stock.glob("*llama.*")):
        parser.error(f"--stock: no libllama in {chosen.stock}; leave it out to have one built")
    return chosen


def measure(chosen: argparse.Namespace) -> list[report.Report]:
    """Runs the rows, printing each as soon as it is known."""
    library = Library()
    reports = []
    for name in chosen.models:
        for n_threads in chosen.threads:
            effort = 0.25 if chosen.quick else 1.0
            settings = Settings(n_threads, chosen.cached, effort, chosen.stock, chosen.targets)
            bench = Bench(library, SHAPES[name], settings)
            part = report.Report(bench.shape.name, n_threads, [])
            print(report.heading(part), flush=True)
            for row in chosen.rows:
                for result in ROWS[row](bench):
                    part.results.append(result)
                    print(report.line(result), flush=True)
            print()
            bench.close()
            reports.append(part)
    return reports


def main() -> int:
    chosen = arguments()
    reports = measure(chosen)
    if chosen.json:
        report.write_json(reports, chosen.json)
    if chosen.write_readme:
        report.write_readme(reports)
    missed = report.missed(reports)
    if missed:
        print("Missed floors:\n" + "\n".join(missed), file=sys.stderr)
    return 1 if chosen.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
