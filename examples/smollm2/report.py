"""`python -m examples.smollm2.report`: results.json as the README's tables, and the project's front
page's.

With --check it writes nothing and fails if the README says something else, or if the results are of
other files than those that are here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from alora_gguf import AloraError
from examples.demo_model.report import other_files, publish, with_section
from examples.demo_model.tables import (
    FIGURES,
    ROWS,
    Figure,
    gap_text,
    milliseconds,
    parity_text,
    read_record,
)

from . import surface
from .evaluate import EXAMPLE, FEW, LOGPROBS, LORA, ROOT, SHIPPED, TURNS

MARK: Final = "smollm2-results"
FRONT: Final = ROOT / "README.md"
FRONT_MARK: Final = "smollm2"
WAY_OUT: Final = "make smollm2-eval"
SYSTEMS: Final = {
    "adapter": "aLoRA",
    LORA: "LoRA",
    "base": "base, asked",
    FEW: FEW,
    "last message": "last message as it is",
    **{name: f"the base's {name}" for name in LOGPROBS},
    surface.WORDS: "naive Bayes of the last message's words",
    surface.OVERLAP: "how many of its words one sentence has",
    "never looking": "never looking",
}
Entry = Mapping[str, Any]


def headline(entry: Entry) -> str:
    """The figure that systems are compared by."""
    if entry["intrinsic"] == "uncertainty":
        return "auroc"
    return "accuracy" if "accuracy" in entry["figures"] else "exact_match"


_FINAL: Final = (
    "The final look, at documents of other sources and in wordings of their own, which is taken "
    "when adapters are done, and chooses nothing:"
)


class Results:
    """results.json."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.entries: dict[tuple[str, str, str], Entry] = {
            (each["intrinsic"], each["base"], each["system"]): each for each in record["entries"]
        }

    @property
    def bases(self) -> list[str]:
        """The base's types, that which is shipped first."""
        found = dict.fromkeys(base for _, base, _ in self.entries)
        return sorted(found, key=lambda base: base != SHIPPED)

    @property
    def tasks(self) -> list[str]:
        """The intrinsics evaluated."""
        present = {task for task, _, _ in self.entries}
        return [task for task in ROWS if task in present]

    def of(self, task: str, base: str) -> dict[str, Entry]:
        """The entries of an intrinsic on a base, by system."""
        found = {name: self.entries.get((task, base, name)) for name in SYSTEMS}
        return {name: each for name, each in found.items() if each is not None}


def section(
    results: Results, parity: dict[str, Any] | None = None, final: Results | None = None
) -> str:
    """All that stands between the README's markers; `parity` and `final` are those of the files of
    these names, if there are such.
    """
    record, base = results.record, results.bases[0]
    most = max(entry["n"] for entry in record["entries"])
    workers = record["workers"]
    at_once = f", {workers} conversations at a time" if workers > 1 else ""
    return "\n\n".join(
        [
            f"{most:,} conversations of each intrinsic, 95 % intervals; `{WAY_OUT}` repeats it. "
            f"Taken on {record['machine']}{at_once}, one thread each.",
            *([] if final is None else [_FINAL, headlines(final)]),
            "\n".join(_comparison(results, base)),
            *_temperatures(results, base),
            *([] if parity is None else [parity_text(parity, "make smollm2-parity")]),
            "\n".join(_after_turns(results, base)),
            "\n".join(_types(results)),
            "\n".join(_times(results, base)),
        ]
    )


def headlines(results: Results) -> str:
    """The front page's table: one figure of each intrinsic, by system."""
    shown = {name: SYSTEMS[name] for name in ("adapter", LORA, "base", FEW, LOGPROBS[0])}
    base = results.bases[0]
    rows = {task: results.of(task, base) for task in results.tasks}
    # of all intrinsics, but what only one can have
    there = [
        name
        for name in shown
        if (any if name in LOGPROBS else all)(name in entries for entries in rows.values())
    ]
    lines = [
        f"| {max(e['n'] for e in results.record['entries']):,} conversations each | "
        + " | ".join(shown[name] for name in there)
        + " |",
        "|---|" + "---|" * len(there),
    ]
    for task, entries in rows.items():
        name = headline(entries["adapter"])
        cells = [
            str(Figure(name, **entries[system]["figures"][name]))
            if system in entries and name in entries[system]["figures"]
            else ""
            for system in there
        ]
        lines.append(f"| {ROWS[task]}, {FIGURES[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _comparison(results: Results, base: str) -> Iterator[str]:
    yield f"| base {base} | | value | the aLoRA is above it by |"
    yield "|---|---|---|---|"
    for task in results.tasks:
        entries = results.of(task, base)
        for name in entries["adapter"]["figures"]:
            for system, entry in entries.items():
                if name not in entry["figures"]:
                    continue
                first = system == "adapter"
                title = f"**{ROWS[task]}**, {FIGURES.get(name, name)}" if first else ""
                value = str(Figure(name, **entry["figures"][name]))
                if first and name == headline(entry) and entry["unreadable"]:
                    value += f"; {100 * entry['unreadable'] / entry['n']:.1f} % unreadable"
                gap = "" if first else gap_text(name, entry["behind"][name])
                yield f"| {title} | {SYSTEMS[system]} | {value} | {gap} |"


def _temperatures(results: Results, base: str) -> Iterator[str]:
    for task in results.tasks:
        heat = results.of(task, base)["adapter"].get("temperature")
        if heat is not None:
            figures = [f"{FIGURES[k]} {Figure(k, **v)}" for k, v in heat["figures"].items()]
            yield (
                f"A temperature of {heat['value']:.2f} calibrates {ROWS[task]}: "
                f"{', '.join(figures)}, measured with temperatures that were fitted on other "
                "examples."
            )


def _after_turns(results: Results, base: str) -> Iterator[str]:
    labels = [label for label, _, _ in TURNS]
    yield f"| the aLoRA after so many turns of the user's | | {' | '.join(labels)} |"
    yield "|---|---|" + "---|" * len(labels)
    for task in results.tasks:
        entry = results.of(task, base)["adapter"]
        name, found = headline(entry), {each["turns"]: each for each in entry["after_turns"]}
        cells = [
            f"{Figure(name, **found[label]['figures'][name])}, {found[label]['n']} asked"
            if label in found
            else ""
            for label in labels
        ]
        yield f"| {ROWS[task]} | {FIGURES[name]} | {' | '.join(cells)} |"


def _types(results: Results) -> Iterator[str]:
    columns = [f"{side}, {base}" for side in ("aLoRA", "LoRA") for base in results.bases]
    yield f"| what a base's type costs | | {' | '.join(columns)} |"
    yield "|---|---|" + "---|" * len(columns)
    for task in results.tasks:
        name = headline(results.of(task, results.bases[0])["adapter"])
        cells = []
        for system in ("adapter", LORA):
            for base in results.bases:
                entry = results.entries.get((task, base, system))
                cells.append("" if entry is None else str(Figure(name, **entry["figures"][name])))
        yield f"| {ROWS[task]} | {FIGURES[name]} | {' | '.join(cells)} |"


def _times(results: Results, base: str) -> Iterator[str]:
    yield "| mean of a question | system | time | tokens read | tokens reused |"
    yield "|---|---|---|---|---|"
    for task in results.tasks:
        for system, entry in results.of(task, base).items():
            if entry.get("read"):
                title = ROWS[task] if system == "adapter" else ""
                time = f"{milliseconds(1e3 * entry['seconds'])} ms"
                counts = f"{entry['read']:,.0f} | {entry['reused']:,.0f}"
                yield f"| {title} | {SYSTEMS[system]} | {time} | {counts} |"


def main(
    argv: Sequence[str] | None = None,
    folder: Path = EXAMPLE,
    front: Path = FRONT,
    root: Path = ROOT,
) -> int:
    """Writes or checks the two pages; 1 if one is stale or the results cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m examples.smollm2.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale")
    chosen = parser.parse_args(argv)
    page, path = folder / "README.md", folder / "results.json"
    beside, parity = folder / "parity.json", None
    last, final = folder / "final.json", None
    needed = ("machine", "workers", "files", "entries")
    try:
        record = read_record(path, needed, WAY_OUT)
        if last.is_file():
            final = Results(read_record(last, needed, f"{WAY_OUT}, with --part final"))
        if beside.is_file():
            parity = read_record(beside, ("base", "same", "total", "files"), "make smollm2-parity")
        results = Results(record)
        sections = {
            page: (section(results, parity, final), MARK),
            front: (headlines(results), FRONT_MARK),
        }
        wanted = {
            each: with_section(each.read_text(encoding="utf-8"), text, each.name, mark)
            for each, (text, mark) in sections.items()
        }
    except (AloraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    problems = other_files(record, path, root, WAY_OUT)
    return publish(wanted, problems, check=chosen.check, program=parser.prog)


if __name__ == "__main__":
    sys.exit(main())
