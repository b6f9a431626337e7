"""`python -m examples.demo_model.evaluate`: the shipped files on held-out conversations.

Asks aLoRA, LoRA and the plain base (runtime.py), measures the answers (verdicts.py, metrics.py) and
the time they take (latency.py), and writes results.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from alora_gguf import AloraError, __version__
from alora_gguf.files import write_whole
from alora_gguf.threads import default_threads
from benchmarks.report import machine

from . import latency, metrics, verdicts
from .chat import INTRINSICS
from .metrics import Estimate
from .runtime import BASES, SHIPPED, SIDES, Files, Models, ask, invocations, open_model, read, reply

if TYPE_CHECKING:
    from .entities import Split
    from .tasks import Example, Question

RESULTS: Final = Path(__file__).with_name("results.json")
Say = Callable[[str], None]


class Data(Protocol):
    """Where examples come from: the module tasks, or a test's stand-in."""

    def examples(self, task: str, split: Split, n: int, seed: int = 0) -> list[Example]:
        """The first `n` examples of a task."""

    def questions(self, split: Split, n: int, seed: int = 0) -> list[Question]:
        """Questions for the base itself."""


# Judging -----------------------------------------------------------------------------------------


def judge(
    base: str,
    task: str,
    examples: Sequence[Example],
    answers: Mapping[str, verdicts.Answers],
    seed: int,
) -> list[dict[str, object]]:
    """A row for each side of one task on one base, and one for who never looks."""
    rows = []
    columns: dict[str, verdicts.Answers] = {**answers, "blind": verdicts.blind(task, examples)}
    for side, column in columns.items():
        row: dict[str, object] = {
            "base": base,
            "intrinsic": task,
            "side": side,
            "n": len(examples),
            "unreadable": sum(answer is None for answer in column),
            "figures": _rounded(verdicts.measure(task, examples, column, seed=seed)),
        }
        if side == "alora":
            gap = verdicts.difference(task, examples, column, answers["lora"], seed=seed)
            row["minus_lora"] = _rounded({"": gap})[""]
        rows.append(row)
    return rows


def judge_replies(
    base: str, questions: Sequence[Question], replies: Sequence[tuple[str, str]]
) -> list[dict[str, object]]:
    """How often the base itself is right: a row for each way of sampling, and for questions that
    the documents answer and those they do not (right is to say that it does not know).
    """
    rows: list[dict[str, object]] = []
    for i, sampling in enumerate(("greedy", "temperature 1")):
        for answerable in (True, False):
            right = [
                question.is_right(texts[i])
                for question, texts in zip(questions, replies, strict=True)
                if (question.value is not None) == answerable
            ]
            if right:
                share = metrics.wilson(sum(right), len(right))
                rows.append(
                    {
                        "base": base,
                        "sampling": sampling,
                        "questions": "answerable" if answerable else "unanswerable",
                        "n": len(right),
                        "right": _rounded({"": share})[""],
                    }
                )
    return rows


def _rounded(figures: dict[str, Estimate]) -> dict[str, dict[str, float]]:
    return {
        name: {key: round(value, 5) for key, value in asdict(figure).items()}
        for name, figure in figures.items()
    }


# All of it ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How much is evaluated. `timed` is the number of conversations that are timed."""

    n: int = 1000
    timed: int = 100
    threads: int = 1
    seed: int = 0
    tasks: tuple[str, ...] = INTRINSICS


def evaluate(
    files: Files, data: Data, settings: Settings, *, say: Say, wrong: Path | None = None
) -> dict[str, object]:
    """Everything that results.json holds. `wrong` names a file for the answers that were wrong,
    one JSON object a line.
    """
    examples = {
        task: data.examples(task, "eval", settings.n, settings.seed) for task in settings.tasks
    }
    questions = data.questions("eval", settings.n, settings.seed)
    rows: list[dict[str, object]] = []
    replies: list[dict[str, object]] = []
    mistakes: list[dict[str, object]] = []
    for base, path in files.bases.items():
        with Models(path, files.adapters(settings.tasks), settings.threads) as models:
            for task in settings.tasks:
                texts = _ask_all(models, task, examples[task])
                answers = {
                    side: [read(side, task, text) for text in column]
                    for side, column in texts.items()
                }
                rows += judge(base, task, examples[task], answers, settings.seed)
                mistakes += _mistakes(base, task, examples[task], answers, texts)
                say(_progress(rows))
            told = models.map(
                lambda model, item: reply(model, item[1], settings.seed + item[0]),
                list(enumerate(questions)),
            )
            replies += judge_replies(base, questions, told)
            say("\n".join(_reply_line(row) for row in replies if row["base"] == base))
    if wrong is not None:
        lines = (json.dumps(mistake, ensure_ascii=False) + "\n" for mistake in mistakes)
        wrong.write_text("".join(lines), encoding="utf-8")
    return {
        "machine": machine(),
        "threads": settings.threads,
        "alora_gguf": __version__,
        "seed": settings.seed,
        "n": settings.n,
        "bootstrap_rounds": metrics.ROUNDS,
        "files": files.hashes(),
        "verdicts": rows,
        "replies": replies,
        "latency": _latency(files, examples, settings, say),
    }


def _ask_all(models: Models, task: str, examples: Sequence[Example]) -> dict[str, list[str]]:
    found = models.map(lambda model, example: ask(model, task, example.prompt), examples)
    return {side: [texts[side] for texts in found] for side in SIDES}


def _mistakes(
    base: str,
    task: str,
    examples: Sequence[Example],
    answers: Mapping[str, verdicts.Answers],
    texts: Mapping[str, Sequence[str]],
) -> list[dict[str, object]]:
    truth = verdicts.expected(task, examples)
    return [
        {
            "base": base,
            "intrinsic": task,
            "side": side,
            "expected": right,
            "text": texts[side][i],
            "prompt": examples[i].prompt,
        }
        for side in ("alora", "lora")
        for i, right in enumerate(truth)
        if answers[side][i] != right
    ]


def _latency(
    files: Files, examples: dict[str, list[Example]], settings: Settings, say: Say
) -> list[dict[str, object]]:
    base = SHIPPED if SHIPPED in files.bases else next(iter(files.bases))
    rows: list[dict[str, object]] = []
    adapters = files.adapters(settings.tasks)
    with open_model(files.bases[base], adapters, settings.threads) as model:
        for task in settings.tasks:
            asked = {side: invocations(task)[side] for side in ("alora", "lora")}
            prompts = [example.prompt for example in examples[task]]
            rows += latency.rows(model, base, task, asked, prompts, settings.timed)
            say(f"{base} {task}: timed")
    return rows


def _progress(rows: Sequence[dict[str, Any]]) -> str:
    last = rows[-len(SIDES) - 1 :]
    base, task = last[0]["base"], last[0]["intrinsic"]
    name = verdicts.HEADLINE[task]
    cells = ", ".join(f"{row['side']} {row['figures'][name]['value']:.3f}" for row in last)
    return f"{base} {task}: {name} {cells}"


def _reply_line(row: dict[str, Any]) -> str:
    return (
        f"{row['base']} alone, {row['sampling']}: right on {row['right']['value']:.1%} of "
        f"{row['n']} {row['questions']} questions"
    )


def write_json(results: dict[str, object], path: Path) -> None:
    """In a stable order, whole or not at all."""
    with write_whole(path) as file:
        file.write(json.dumps(results, indent=1).encode() + b"\n")


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(
                f"{', '.join(unknown)} unknown; there are {', '.join(known)}"
            )
        return tuple(name for name in known if name in chosen)

    return parse


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo_model.evaluate", description=__doc__
    )
    parser.add_argument(
        "--n", type=_positive, default=1000, help="examples of each intrinsic (%(default)s)"
    )
    parser.add_argument(
        "--timed", type=_positive, default=100, help="conversations timed (%(default)s)"
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        default=default_threads(),
        help="conversations at a time, one thread each; threads of those timed (%(default)s)",
    )
    parser.add_argument("--bases", type=_names(BASES), default=BASES, help=",".join(BASES))
    parser.add_argument(
        "--intrinsics", type=_names(INTRINSICS), default=INTRINSICS, help=",".join(INTRINSICS)
    )
    parser.add_argument("--json", type=Path, default=RESULTS, help="where to (%(default)s)")
    parser.add_argument("--wrong", type=Path, help="a file for the adapters' wrong answers")
    chosen = parser.parse_args(argv)
    whole = chosen.bases == BASES and chosen.intrinsics == INTRINSICS
    if chosen.json == RESULTS and not whole:
        parser.error("results.json holds all bases and intrinsics; for a part, name another --json")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates, says on stderr how it goes, and writes the results."""
    chosen = arguments(argv)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.0f} s] {text}", file=sys.stderr, flush=True)

    settings = Settings(chosen.n, chosen.timed, chosen.threads, tasks=chosen.intrinsics)
    try:
        from . import tasks

        files = Files.shipped(chosen.bases, chosen.intrinsics)
        results = evaluate(files, tasks, settings, say=say, wrong=chosen.wrong)
        write_json(results, chosen.json)
    except (AloraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    say(f"wrote {chosen.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
