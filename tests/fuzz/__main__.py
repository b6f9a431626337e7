"""Mutants of one kind of file for as long as you like:

    nice -n 10 .venv/bin/python -m tests.fuzz adapter --seconds 1800 --keep FOLDER

keeps the mutants that were not taken well. Kinds are base, adapter, vector, session, contract and
peft; bases may be given besides the tests' own, e.g. the families' in
build/test-models/*/*/base.gguf.
`--seed` and `--first` go on where another run ended.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from pathlib import Path

from .harness import keep, run, serve
from .kinds import KINDS


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        kind, seed, folder, *given = sys.argv[2:]
        serve(KINDS[kind], int(seed), Path(folder), [Path(each) for each in given])
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("given", nargs="*", type=Path)
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    until, bad = time.monotonic() + args.seconds, False
    numbers = itertools.count(args.first)
    for outcome in run(args.kind, args.seed, numbers, given=args.given, until=until):
        counts[outcome.kind] += 1
        if outcome.bad:
            bad = True
            print(outcome.number, outcome.kind, outcome.what, "|", outcome.text, flush=True)
            if args.keep:
                place = args.keep / f"{args.kind}-{outcome.number}"
                keep(KINDS[args.kind], args.seed, outcome.number, place, args.given)
    print(counts.total(), dict(counts))
    return bad


if __name__ == "__main__":
    sys.exit(main())
