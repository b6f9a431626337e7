"""Makes the intrinsics' data: python -m examples.smollm2.data OUT

OUT gets <task>.jsonl (the splits train, and held_out for early stopping), <task>.eval.jsonl for
the evaluation and <task>.final.jsonl, for one look at the end. Beside each lies what is known about
its lines, <name>.notes.jsonl. The packages that the prose comes from are kept in OUT/packages.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from . import (
    answering,
    certainty,
    facts,
    jailbreak,
    notices,
    passages,
    rewriting,
    scenes,
    tasks,
    wordings,
)
from .passages import Passage
from .scenes import Scene
from .tasks import Made, Pools
from .wordings import Split

# lines of each part; the first two are one file
SIZES: Final = {"train": 2000, "held_out": 200, "eval": 1000, "final": 300}
SOURCES: Final[dict[str, tuple[str, ...]]] = {
    "train": ("countries", "speeches", "computing"),
    "final": ("nations", "planets"),
}
# of a source's articles, in percent: what is left is for the evaluation
_TRAIN: Final = 54
_HELD_OUT: Final = 8

_OTHERS: Final[tuple[tuple[str, Split], ...]] = (("eval", "eval"), ("final", "final"))

Task = Callable[[Sequence[Scene], Pools, Split, int, random.Random], list[Made]]
ABOUT_PASSAGES: Final[dict[str, Task]] = {
    "answerability": answering.answerability,
    "hallucination": tasks.hallucination,
}
ABOUT_NOTICES: Final = {
    "answerability": notices.answerability,
    "hallucination": notices.hallucination,
}


def part_of(article: str) -> str:
    """Which part an article belongs to, whatever else there is: train, held_out or eval."""
    n = int(hashlib.sha256(article.encode()).hexdigest(), 16) % 100
    return "train" if n < _TRAIN else "held_out" if n < _TRAIN + _HELD_OUT else "eval"


def parted(known: Sequence[Passage], unknown: Sequence[Passage]) -> dict[str, list[Passage]]:
    """Passages that something can be asked about, by part; the unknown ones are for `final`."""
    parts: dict[str, list[Passage]] = {"train": [], "held_out": [], "eval": [], "final": []}
    for part, some in (("", known), ("final", unknown)):
        for each in some:
            if facts.facts(each):
                parts[part or part_of(each.article)].append(each)
    return parts


def passages_by_part(out: Path) -> dict[str, list[Passage]]:
    """Those of all sources, fetched if need be."""
    read = {
        of: [each for name in names for each in passages.passages(name, out / "packages")]
        for of, names in SOURCES.items()
    }
    return parted(read["train"], read["final"])


def about_passages(
    task: str, parts: dict[str, list[Passage]], sizes: dict[str, int]
) -> dict[str, list[Made]]:
    """A task's lines by part."""
    made = {}
    for part, some in parts.items():
        split = wordings.of_part(part)
        pages = [tasks.page(each, split) for each in some]
        rng = random.Random(f"{task} {part}")
        free = task == "answerability"
        share = notices.SHARE if free else notices.SHARE / 2
        of_notices = notices.n_lines(sizes[part], share)
        n = sizes[part] - of_notices
        room = n if free else n * 5 // 4  # each wording fits some facts alone
        begun = scenes.scenes(pages, split, room, documents=not free)
        made[part] = ABOUT_PASSAGES[task](begun, Pools(some), split, n, rng)
        made[part] += ABOUT_NOTICES[task](split, part, of_notices, some, rng)
    return made


def rewrites(parts: dict[str, list[Passage]], sizes: dict[str, int]) -> dict[str, list[Made]]:
    """Query rewriting's lines by part."""
    made = {}
    for part, some in parts.items():
        rng, split = random.Random(f"query_rewrite {part}"), wordings.of_part(part)
        made[part] = rewriting.query_rewrite(some, Pools(some), split, sizes[part], rng)
    return made


def jailbreaks(parts: dict[str, list[Passage]], sizes: dict[str, int]) -> dict[str, list[Made]]:
    """Jailbreak detection's lines by part; what stops the training has its framings, too, but no
    conversation of its.
    """
    made: dict[str, list[Made]] = {"train": [], "held_out": []}
    for part in made:
        rng = random.Random(f"jailbreak {part}")
        n, but = sizes[part], made["train"]
        made[part] = jailbreak.jailbreak("train", parts[part], n, rng, but)
    for part, split in _OTHERS:
        rng = random.Random(f"jailbreak {part}")
        made[part] = jailbreak.jailbreak(split, parts[part], sizes[part], rng)
    return made


def n_read(lines: Sequence[Made], last: int) -> int:
    """Words to read before the `last` messages, what lines share once."""
    begun: dict[tuple[str, ...], int] = {}
    for each in lines:
        said = [m["content"] for m in each.line["messages"][:-last]]
        parts = [d["text"] for d in each.line.get("documents", ())]
        whole = "\n\n".join(parts)
        for i in range(len(said) + 1):
            key = (whole, *said[:i])
            begun[key] = len((said[i - 1] if i else whole).split())
    return sum(begun.values())


def _report(out: Path, task: str, made: dict[str, list[Made]]) -> None:
    write(out, task, made)
    last = 2 if task in ("hallucination", "uncertainty") else 1
    n = n_read([*made["train"], *made["held_out"]], last)
    counts = ", ".join(f"{part} {len(lines)}" for part, lines in made.items())
    print(f"{task}: {counts}; {n} words to read before train's and held_out's questions")


def write(out: Path, task: str, made: dict[str, list[Made]]) -> None:
    """The task's three files and their notes."""
    files = {
        task: [(part, each) for part in ("train", "held_out") for each in made[part]],
        f"{task}.eval": [("", each) for each in made["eval"]],
        f"{task}.final": [("", each) for each in made["final"]],
    }
    for name, lines in files.items():
        texts = [{**each.line, **({"split": part} if part else {})} for part, each in lines]
        _write(out / f"{name}.jsonl", texts)
        _write(out / f"{name}.notes.jsonl", [each.notes for _, each in lines])


def _write(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.smollm2.data", description="Makes the intrinsics' data."
    )
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    parts = passages_by_part(args.out)
    for task in ABOUT_PASSAGES:
        made = about_passages(task, parts, SIZES)
        _report(args.out, task, made)
    _report(args.out, "query_rewrite", rewrites(parts, SIZES))
    _report(args.out, "jailbreak", jailbreaks(parts, SIZES))
    if answers := certainty.read(args.out):
        _report(args.out, "uncertainty", certainty.lines(parts, answers))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
