"""`python -m examples.demo_model.report`: results.json as the README's tables and a chart.

With --check it writes nothing and fails if the README or the chart say something else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from alora_gguf import AloraError
from alora_gguf.errors import FileFormatError

from . import chart, tables
from .tables import Results

RESULTS: Final = Path(__file__).with_name("results.json")
CHART: Final = Path(__file__).with_name("results.svg")
README: Final = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- demo-results:begin -->", "<!-- demo-results:end -->"


def with_section(page: str, section: str, name: str = "README.md") -> str:
    """The page with `section` between its markers. Raises FileFormatError if it lacks them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise FileFormatError(f"{name}: lacks the markers {BEGIN} and {END}, in this order")
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


def pages(results: Results, readme: Path = README, svg: Path = CHART) -> dict[Path, str]:
    """What each file should hold."""
    page = readme.read_text(encoding="utf-8")
    return {
        readme: with_section(page, tables.section(results), readme.name),
        svg: chart.svg(results),
    }


def main(
    argv: Sequence[str] | None = None,
    *,
    source: Path = RESULTS,
    readme: Path = README,
    svg: Path = CHART,
) -> int:
    """Writes or checks the pages made of `source`; 1 if something is stale or cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo_model.report", description=__doc__
    )
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale")
    chosen = parser.parse_args(argv)
    try:
        wanted = pages(Results.read(source), readme, svg)
    except (AloraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stale = [
        path
        for path, text in wanted.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if chosen.check:
        way_out = "run `make demo-eval`, or only `python -m examples.demo_model.report`"
        for path in stale:
            print(f"{path} differs from {source.name}; {way_out}", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8", newline="\n")
        print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
