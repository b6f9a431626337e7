"""results.json as its readers need it, and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alora_gguf.errors import FileFormatError

from .chat import INTRINSICS
from .verdicts import HEADLINE

ROWS: Final = {
    "answerability": "answerability",
    "uncertainty": "uncertainty",
    "query_rewrite": "query rewrite",
    "hallucination": "hallucination",
    "jailbreak": "jailbreak",
}
FIGURES: Final = {
    "weighted_f1": "weighted F1",
    "accuracy": "accuracy",
    "tpr": "true positive rate",
    "fpr": "false positive rate",
    "exact_match": "exact match",
    "mae": "mean absolute error",
    "ece": "calibration error",
    "auroc": "AUROC",
    "macro_f1": "macro F1",
    "brier": "Brier score",
    "log_loss": "log loss",
    "token_f1": "token F1",
}
_PLAIN: Final = (
    "mae",
    "ece",
    "auroc",
    "brier",
    "log_loss",
)  # not shares of examples: shown as they are, not in percent
_SIDES: Final = ("alora", "lora", "base", "blind")


@dataclass(frozen=True)
class Figure:
    """A figure of results.json by its name."""

    name: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.name in _PLAIN:
            return f"{self.value:.3f} ({self.low:.3f} .. {self.high:.3f})"
        return f"{self.value:.1%} ({100 * self.low:.1f} .. {100 * self.high:.1f})".replace(
            "%", " %"
        )

    def as_share(self) -> tuple[float, float, float]:
        """(low, value, high), larger being better: of an error, what it leaves of 1."""
        if self.name in ("mae", "ece"):
            return 1 - self.high, 1 - self.value, 1 - self.low
        return self.low, self.value, self.high


@dataclass(frozen=True)
class Results:
    """results.json."""

    found: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Results:
        """Raises FileFormatError if it is missing or is something else."""
        keys = ("machine", "threads", "n", "files", "verdicts", "replies", "latency")
        return cls(read_record(path, keys, "make demo-eval"))

    @property
    def n(self) -> int:
        """Examples of each intrinsic."""
        return int(self.found["n"])

    @property
    def bases(self) -> list[str]:
        """The base's types, in the order evaluated."""
        return list(dict.fromkeys(row["base"] for row in self.found["verdicts"]))

    @property
    def base(self) -> str:
        """The shipped base's type, or the first."""
        return "Q8_0" if "Q8_0" in self.bases else self.bases[0]

    @property
    def tasks(self) -> list[str]:
        """The intrinsics evaluated."""
        present = {row["intrinsic"] for row in self.found["verdicts"]}
        return [task for task in INTRINSICS if task in present]

    def row(self, task: str, side: str, base: str | None = None) -> dict[str, Any]:
        """What one side achieved on one base (the shipped one). Raises FileFormatError."""
        wanted = (base or self.base, task, side)
        for row in self.found["verdicts"]:
            if (row["base"], row["intrinsic"], row["side"]) == wanted:
                found: dict[str, Any] = row
                return found
        raise FileFormatError(f"results.json has no row of {', '.join(wanted)}")

    def figure(self, task: str, side: str, name: str, base: str | None = None) -> Figure:
        """One figure. Raises FileFormatError if it is not there."""
        figures = self.row(task, side, base)["figures"]
        if name not in figures:
            raise FileFormatError(f"results.json has no {name} of {task}, {side}")
        return Figure(name, **figures[name])

    def headline(self, task: str, side: str, base: str | None = None) -> Figure:
        """The figure that sides are compared by."""
        return self.figure(task, side, HEADLINE[task], base)

    def long_latency(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Times by intrinsic and side, behind the longest conversations that were timed."""
        rows = self.found["latency"]
        longest = "long" if any(row["length"] == "long" for row in rows) else "as they are"
        return {(row["intrinsic"], row["side"]): row for row in rows if row["length"] == longest}


def read_record(path: Path, keys: Sequence[str], way_out: str) -> dict[str, Any]:
    """A JSON object with at least `keys`. Raises FileFormatError, which names the way out."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileFormatError(
            f"{path}: cannot be read ({error.strerror}); `{way_out}` writes it"
        ) from error
    except ValueError as error:
        raise FileFormatError(f"{path}: is not JSON ({error}); run `{way_out}`") from error
    lacking = [key for key in keys if not isinstance(found, dict) or key not in found]
    if lacking:
        raise FileFormatError(f"{path}: lacks {', '.join(lacking)}; run `{way_out}`")
    record: dict[str, Any] = found
    return record


def figure_name(task: str) -> str:
    """What the chart shows of an intrinsic."""
    return "1 − mean error" if HEADLINE[task] == "mae" else FIGURES[HEADLINE[task]]


def milliseconds(value: float) -> str:
    """Two digits at least, and nothing below a tenth."""
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def section(results: Results, parity: dict[str, Any] | None = None) -> str:
    """All that stands between the README's markers; `parity` is parity.json's, if there is one."""
    found = results.found
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    paragraphs = [
        f"The shipped files on {results.n:,} held-out conversations for each intrinsic, greedy "
        "decoding, 95 % intervals; `make demo-eval` repeats it. Times were taken on "
        f"{found['machine']}, {threads}.",
        "![The results as a chart](results.svg)",
        "\n".join(_comparison(results)),
        "*Base alone* is without an adapter: it goes on, or is asked whether the documents say "
        "that, and its words are taken for a verdict (that it does not know for unanswerable, a "
        "refusal for a jailbreak); to rewrite it is merely told. *Never looking* always gives the "
        "commonest answer (or repeats the question as it is).",
        *_base_alone(results),
        *([] if parity is None else [parity_text(parity, "make demo-parity")]),
        "\n".join(_quantized(results)),
        "\n".join(_latency(results)),
    ]
    return "\n\n".join(paragraphs)


def _comparison(results: Results) -> Iterator[str]:
    yield f"| base {results.base} | | aLoRA | LoRA | aLoRA − LoRA | base alone | never looking |"
    yield "|---|---|---|---|---|---|---|"
    for task in results.tasks:
        rows = {side: results.row(task, side) for side in _SIDES}
        for i, name in enumerate(rows["alora"]["figures"]):
            cells = [ROWS[task] if i == 0 else "", FIGURES[name]]
            for side in _SIDES:
                shown = name in rows[side]["figures"]
                cells.append(str(results.figure(task, side, name)) if shown else "")
                if i == 0 and side != "blind":
                    cells[-1] += _unreadable(rows[side])
                if side == "lora":
                    gap = rows["alora"]["minus_lora"]
                    cells.append(gap_text(name, gap) if name == HEADLINE[task] else "")
            yield f"| {' | '.join(cells)} |"


def _unreadable(row: dict[str, Any]) -> str:
    if not row["unreadable"]:
        return ""
    return f"; {100 * row['unreadable'] / row['n']:.1f} % unreadable"


def gap_text(name: str, gap: dict[str, float]) -> str:
    """A difference of two figures of a name, with its interval."""
    if name in _PLAIN:
        return f"{gap['value']:+.3f} ({gap['low']:+.3f} .. {gap['high']:+.3f})"
    value, low, high = (100 * gap[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} .. {high:+.1f})"


def _base_alone(results: Results) -> Iterator[str]:
    rows = [row for row in results.found["replies"] if row["base"] == results.base]
    shown = {
        "answerable": "is right on {} of the {:,} questions that the documents answer",
        "unanswerable": "says that it does not know on {} of the {:,} that they do not",
    }
    for sampling in dict.fromkeys(row["sampling"] for row in rows):
        parts = [
            shown[row["questions"]].format(Figure("accuracy", **row["right"]), row["n"])
            for row in rows
            if row["sampling"] == sampling
        ]
        yield f"The base itself, {sampling}, {' and '.join(parts)}."


def parity_text(found: dict[str, Any], way_out: str) -> str:
    """What parity.json beside the page says."""
    others = ", the others are in [parity.json](parity.json)"
    return (
        f"PEFT (computing in F32) and this runtime (base {found['base']}) give the same answer, "
        f"letter by letter, on {found['same']:,} of {found['total']:,} held-out conversations"
        f"{others if found['same'] < found['total'] else ''}; `{way_out}` repeats it."
    )


def _quantized(results: Results) -> Iterator[str]:
    bases = results.bases
    columns = [f"{side}, {base}" for side in ("aLoRA", "LoRA") for base in bases]
    yield f"| what a quantized base costs | | {' | '.join(columns)} |"
    yield "|---|---|" + "---|" * len(columns)
    for task in results.tasks:
        cells = [
            str(results.headline(task, side, base)) for side in ("alora", "lora") for base in bases
        ]
        yield f"| {ROWS[task]} | {FIGURES[HEADLINE[task]]} | {' | '.join(cells)} |"


def _latency(results: Results) -> Iterator[str]:
    yield (
        "| median times | tokens | aLoRA reads | first token | answer | LoRA reads | first token "
        "| answer | first token, ratio |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    rows = {(r["intrinsic"], r["length"], r["side"]): r for r in results.found["latency"]}
    lengths = list(dict.fromkeys(length for _, length, _ in rows))
    for length in lengths:
        for task in results.tasks:
            alora, lora = (rows.get((task, length, side)) for side in ("alora", "lora"))
            if alora is None or lora is None:
                continue
            cells = [ROWS[task], f"{alora['conversation_tokens']:,}"]
            for row in (alora, lora):
                cells += [
                    f"{row['evaluated']:,}",
                    milliseconds(row["first_token_ms"]["median"]) + " ms",
                    milliseconds(row["total_ms"]["median"]) + " ms",
                ]
            ratio = lora["first_token_ms"]["median"] / alora["first_token_ms"]["median"]
            yield f"| {' | '.join(cells)} | {ratio:.{0 if ratio >= 10 else 1}f}x |"
