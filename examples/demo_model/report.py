"""`python -m examples.demo_model.report`: results.json as the README's tables and a chart.

With --check it writes nothing and fails if the README or the chart say something else, or if the
results are of other files than those that are here.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alora_gguf import AloraError
from alora_gguf.errors import FileFormatError

from . import chart, tables
from .runtime import EXAMPLE, ROOT
from .tables import Results

MARK: Final = "demo-results"
BEGIN, END = (f"<!-- {MARK}:{end} -->" for end in ("begin", "end"))


@dataclass(frozen=True)
class Places:
    """What is read, and what is written. Paths in the records are relative to `root`."""

    results: Path = EXAMPLE / "results.json"
    parity: Path = EXAMPLE / "parity.json"
    readme: Path = EXAMPLE / "README.md"
    chart: Path = EXAMPLE / "results.svg"
    root: Path = ROOT


def main(argv: Sequence[str] | None = None, places: Places | None = None) -> int:
    """Writes or checks the pages; 1 if something is stale or cannot be read."""
    places = places or Places()
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo_model.report", description=__doc__
    )
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale")
    chosen = parser.parse_args(argv)
    try:
        results = Results.read(places.results)
        parity = _read_parity(places.parity)
        wanted = _pages(results, parity, places)
    except (AloraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    problems = other_files(results.found, places.results, places.root, "make demo-eval")
    if parity is not None:
        problems += other_files(parity, places.parity, places.root, "make demo-parity")
    return publish(wanted, problems, check=chosen.check, program=parser.prog)


def publish(wanted: dict[Path, str], problems: list[str], *, check: bool, program: str) -> int:
    """Writes the pages that say something else than is `wanted`; or, to `check`, tells which those
    are, and other `problems`: 1 if there are any.
    """
    stale = [
        path
        for path, text in wanted.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if check:
        told = [f"{path} differs from results.json; run `{program}`" for path in stale]
        for problem in (*told, *problems):
            print(problem, file=sys.stderr)
        return 1 if stale or problems else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8", newline="\n")
        print(f"wrote {path}", file=sys.stderr)
    return 0


def with_section(page: str, section: str, name: str = "README.md", mark: str = MARK) -> str:
    """The page with `section` between its markers. Raises FileFormatError if it lacks them."""
    first, last = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise FileFormatError(f"{name}: lacks the markers {first} and {last}, in this order")
    return f"{before}{first}\n{section}\n{last}{after}"


def other_files(record: dict[str, Any], path: Path, root: Path, way_out: str) -> list[str]:
    """Complaints about files that are not what `record`, read from `path`, was made with. Files in
    build/ are made again each time and are not looked at.
    """
    problems = []
    for name, known in record["files"].items():
        file = root / name
        if Path(name).parts[0] == "build":
            continue
        if not file.is_file():
            problems.append(f"{path.name} was made with {name}, which is missing; run `{way_out}`")
        elif hashlib.sha256(file.read_bytes()).hexdigest() != known["sha256"]:
            problems.append(f"{path.name} was made with another {name}; run `{way_out}`")
    return problems


def _read_parity(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    return tables.read_record(path, ("base", "same", "total", "files"), "make demo-parity")


def _pages(results: Results, parity: dict[str, Any] | None, places: Places) -> dict[Path, str]:
    page = places.readme.read_text(encoding="utf-8")
    section = tables.section(results, parity)
    return {
        places.readme: with_section(page, section, places.readme.name),
        places.chart: chart.svg(results),
    }


if __name__ == "__main__":
    sys.exit(main())
