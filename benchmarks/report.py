"""Results as a Markdown table, as JSON, and as a verdict on the floors."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .measure import Result

README = Path(__file__).with_name("README.md")
HEAD = (
    "| row | case | ours | other side | ratio | paired | floor | goal |\n"
    "|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Report:
    """The results of one base with one number of threads."""

    model: str
    n_threads: int
    results: list[Result]

    @property
    def title(self) -> str:
        threads = f"{self.n_threads} thread{'s' if self.n_threads > 1 else ''}"
        return f"### {self.model}, Q4_0, {threads}"


def heading(report: Report) -> str:
    return f"{report.title}\n\n{HEAD}"


def line(result: Result) -> str:
    cells = [
        result.row,
        result.case,
        str(result.ours).strip(),
        "" if result.other is None else str(result.other),
        _ratio(result.ratio),
        _ratio(result.paired),
        _floor(result),
        result.goal,
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}x" if value < 1.5 else f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def _floor(result: Result) -> str:
    if result.floor is None:
        return ""
    if result.kind == "value":
        if result.ours.unit == "s":
            text = f"≤ {result.floor * 1e3:g} ms"
        elif result.ours.unit == "B":
            text = f"≤ {result.floor / 2**20:.3g} MiB"
        else:
            text = f"{result.floor:g}"
    else:
        text = f"{'≥' if result.kind == 'speedup' else '≤'} {result.floor:g}x"
    return text if result.ok else f"**{text} missed**"


def missed(reports: Iterable[Report]) -> list[str]:
    """The lines whose floor is missed."""
    return [f"{r.title}\n{line(x)}" for r in reports for x in r.results if not x.ok]


def write_json(reports: Iterable[Report], path: Path) -> None:
    """Everything, samples included."""
    rows = []
    for report in reports:
        for result in report.results:
            sides = {"ours": result.ours, "other": result.other}
            rows.append(
                {
                    "model": report.model,
                    "threads": report.n_threads,
                    "row": result.row,
                    "case": result.case,
                    "kind": result.kind,
                    "ratio": result.ratio,
                    "paired": result.paired,
                    "floor": result.floor,
                    "ok": result.ok,
                    **{
                        key: side
                        and {
                            "label": side.label,
                            "unit": side.unit,
                            "median": side.median,
                            "samples": list(side.samples),
                        }
                        for key, side in sides.items()
                    },
                }
            )
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1), encoding="utf-8")


def write_readme(reports: Iterable[Report]) -> None:
    """Puts the tables into README.md."""
    tables = "\n\n".join(
        "\n".join([heading(r), *(line(result) for result in r.results)]) for r in reports
    )
    write_section("results", tables)


def write_section(name: str, text: str) -> None:
    """Puts a text, and what it was measured on, between README.md's markers of that name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = README.read_text(encoding="utf-8").split(begin)
    after = rest.split(end)[1]
    README.write_text(
        f"{before}{begin}\nMeasured on {machine()}.\n\n{text}\n{end}{after}", encoding="utf-8"
    )


def machine() -> str:
    """The processor, as far as the system says."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        facts = dict(part.split(":", 1) for part in lines if ":" in part)
        facts = {key.strip(): value.strip() for key, value in facts.items()}
        name = facts.get("model name", name)
        wide = [flag for flag in ("avx2", "avx512f", "amx_int8") if flag in facts.get("flags", "")]
        name += f" ({', '.join(wide)})" if wide else ""
        cores = sum(part.startswith("processor") for part in lines)
        name += f", {cores} cores"
    return f"{name}, {platform.system()}"
