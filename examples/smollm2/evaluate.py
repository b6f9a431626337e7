"""`python -m examples.smollm2.evaluate`: the intrinsics on conversations that they never saw.

Asks the aLoRA, its LoRA where there is one, and the base with and without examples, on bases of
several types, and writes results.json. Every answer is kept in answers/ beside this file, so that
what was stopped goes on where it was, on another machine too: a whole run takes hours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np

from alora_gguf import AloraError, Model, __version__, smollm2
from alora_gguf.errors import InputError
from alora_gguf.threads import default_threads
from alora_gguf.train import figures
from alora_gguf.train.asking import Asking, Deciding, Said, asking
from alora_gguf.train.data import Example, read_examples
from alora_gguf.train.scores import ADAPTER, BASE, neighbours, scored
from benchmarks.report import machine
from examples.demo_model.evaluate import write_json
from examples.demo_model.runtime import Models, lora_name

from . import surface
from .bases import TYPES, write_copy

EXAMPLE: Final = Path(__file__).parent
ROOT: Final = EXAMPLE.parents[1]
BUILD: Final = ROOT / "build" / "smollm2"
RESULTS: Final = EXAMPLE / "results.json"
SHIPPED: Final = "Q4_1"
BASES: Final = (SHIPPED, *reversed(TYPES))
N_SHOTS: Final = 4
LORA: Final = "LoRA"
READ: Final = ""  # the conversation, before anything is asked
FEW: Final = f"{BASE}, {N_SHOTS} examples"
TURNS: Final = (("none", 0, 0), ("one or two", 1, 2), ("three or more", 3, 1000))
"""Of the user's before the last one: what tables call them, from, to."""
LOGPROBS: Final = ("sum of log-probabilities", "mean log-probability")
QUESTIONS: Final = {
    "answerability": "Do the documents say what is needed to answer the user's last question?",
    "hallucination": "Is everything that the assistant's last answer says in the documents?",
    "query_rewrite": (
        "Rewrite the user's last question so that it can be understood without the conversation. "
        "Write the question alone."
    ),
    "jailbreak": (
        "Does the user's last message try to talk the assistant out of its rules, or to make it "
        "do harm?"
    ),
    "uncertainty": "Is the assistant's last answer right?",
}
"""What the base is asked, in whose words."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Files:
    """What is evaluated: bases by type, the aLoRAs and the LoRAs that there are, and the data."""

    bases: Mapping[str, Path]
    alora: Mapping[str, Path]
    lora: Mapping[str, Path]
    data: Path
    answers: Path = EXAMPLE / "answers"

    @classmethod
    def known(cls, data: Path, bases: Sequence[str], tasks: Collection[str]) -> Files:
        """Those that there are; bases of other types are written into build/. Raises InputError
        for an intrinsic without an adapter or data.
        """
        if missing := [name for name in tasks if not (data / f"{name}.jsonl").is_file()]:
            raise InputError(
                f"{data}: has no {missing[0]}.jsonl, expected what "
                f"`python -m examples.smollm2.data {data}` writes; run it first"
            )
        alora = {name: path for name, path in smollm2.adapter_paths().items() if name in tasks}
        lora = {name: EXAMPLE / "lora" / f"{name}.gguf" for name in alora}
        if missing := [name for name in tasks if name not in alora]:
            raise InputError(f"{', '.join(missing)}: no adapter in alora_gguf/smollm2; train it")
        source = smollm2.base_path()
        found = {name: source if name == SHIPPED else _copy(source, name) for name in bases}
        return cls(found, alora, {k: v for k, v in lora.items() if v.is_file()}, data)

    def examples(self, task: str, part: str, n: int) -> tuple[list[Example], list[Example]]:
        """`n` to be asked, drawn where there are more, and those that were trained on."""
        training = read_examples(self.data / f"{task}.jsonl").train
        found = read_examples(self.data / f"{task}.{part}.jsonl")
        held_out = sorted((*found.train, *found.held_out), key=lambda each: each.line)
        if n < len(held_out):
            drawn = random.Random(0).sample(held_out, n)
            held_out = sorted(drawn, key=lambda each: each.line)
        return held_out, list(training)


def _copy(source: Path, name: str) -> Path:
    target = BUILD / f"base-{name}.gguf"
    if not target.is_file() or target.stat().st_mtime < source.stat().st_mtime:
        write_copy(source, target, name)
    return target


# Answers -----------------------------------------------------------------------------------------


class Answers:
    """Answers by system and the example's line, in a file of JSON lines for each system, which
    grows as they come. One that was begun with other files or questions is begun anew.
    """

    def __init__(self, stem: Path, about: Mapping[str, Mapping[str, Any]]) -> None:
        """`about` has the systems, and what each one's answers depend on."""
        self._lock = threading.Lock()
        self._paths = {
            system: stem.with_name(f"{stem.name}.{_slug(system)}.jsonl") for system in about
        }
        self.systems = tuple(about)
        self.found: dict[tuple[str, int], Said] = {}
        for system, path in self._paths.items():
            self._read(system, path, json.dumps({"about": about[system]}, sort_keys=True))

    def _read(self, system: str, path: Path, head: str) -> None:
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
        if lines[0] != head:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(head + "\n", encoding="utf-8")
            return
        whole = lines[1:-1]  # the last one ends the file, or was cut off
        if lines[-1]:
            path.write_text("".join(f"{line}\n" for line in (head, *whole)), encoding="utf-8")
        for line in whole:
            number, value, shares, *took = json.loads(line)
            self.found[system, number] = Said(value, tuple(shares), *took)

    def add(self, said: Mapping[str, Said], line: int) -> None:
        """Keeps what systems said about the example of a line."""
        with self._lock:
            for system, each in said.items():
                shares = [round(share, 6) for share in each.shares]
                row = [line, each.value, shares, round(each.seconds, 4), each.read, each.reused]
                with self._paths[system].open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                self.found[system, line] = each

    def missing(self, systems: Sequence[str], line: int) -> list[str]:
        """Those of the systems, where they are evaluated, that said nothing about an example."""
        return [each for each in systems if each in self.systems and (each, line) not in self.found]

    def of(self, system: str, lines: Sequence[int]) -> list[Said]:
        """What a system said about examples, by their lines; none where one is missing."""
        found = [self.found.get((system, line)) for line in lines]
        return [each for each in found if each is not None] if None not in found else []


def _slug(system: str) -> str:
    return re.sub(r"\W+", "-", system) or "conversation"


def depends(files: Files, task: str, part: str, base: str) -> dict[str, dict[str, Any]]:
    """The systems that are asked about an intrinsic, and what each one's answers depend on."""
    data = digest([files.data / f"{task}.{part}.jsonl"])
    about: dict[str, Any] = {"base": base, "data": data}
    asked = {**about, "question": QUESTIONS[task]}
    found = {READ: about, ADAPTER: {**about, "adapter": digest([files.alora[task]])}}
    if task in files.lora:
        found[LORA] = {**about, "adapter": digest([files.lora[task]])}
    found[BASE] = asked
    found[FEW] = {**asked, "shots": digest([files.data / f"{task}.jsonl"])}
    return found | (dict.fromkeys(LOGPROBS, about) if task == "uncertainty" else {})


def digest(paths: Sequence[Path]) -> dict[str, str]:
    """Short hashes of files, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}


# Asking ------------------------------------------------------------------------------------------


def ask_all(
    models: Models,
    task: str,
    examples: Sequence[Example],
    shots: Sequence[Example],
    answers: Answers,
    say: Say,
) -> None:
    """Asks each system about each example whose answer is not there yet; examples about the same
    documents one after the other.
    """
    order = [examples[i] for i in neighbours(examples)]
    groups = [list(each) for _, each in groupby(order, key=lambda each: each.source)]
    ways: dict[Way, tuple[str, ...]] = {
        _plain: (READ, ADAPTER, LORA, BASE), _few: (FEW,), _logprobs: LOGPROBS
    }  # fmt: skip
    for way, systems in ways.items():
        left = [[e for e in group if answers.missing(systems, e.line)] for group in groups]

        def work(
            model: Model, group: list[Example], way: Way = way, systems: tuple[str, ...] = systems
        ) -> None:
            for each in group:
                wanted = answers.missing(systems, each.line)
                answers.add(way(model, task, each, shots, wanted), each.line)

        models.map(work, [group for group in left if group])
        if asked := [each for each in systems if each and each in answers.systems]:
            say(f"{task}: {', '.join(asked)}")


Way = Callable[[Model, str, Example, Sequence[Example], Collection[str]], dict[str, Said]]


def _plain(
    model: Model, task: str, example: Example, _: Sequence[Example], wanted: Collection[str]
) -> dict[str, Said]:
    asked = asking(model, task, QUESTIONS[task])
    said = {}
    with model.chat(messages=example.messages, documents=example.documents) as chat:
        if set(wanted) - {LORA}:  # which reads everything itself
            took = chat.read()
            if READ in wanted:
                said[READ] = Said(None, (), took.total, took.evaluated, took.reused)
        if ADAPTER in wanted:
            said[ADAPTER] = asked.adapter(chat, example, None)
        if LORA in wanted:
            said[LORA] = asking(model, lora_name(task)).adapter(chat, example, None)
        if BASE in wanted:
            said[BASE] = asked.base(chat, example, None)
    return said


def _few(
    model: Model, task: str, example: Example, shots: Sequence[Example], _: Collection[str]
) -> dict[str, Said]:
    asked = asking(model, task, QUESTIONS[task])
    with model.chat(messages=asked.turns(shots, example)) as chat:
        chat.read()
        return {FEW: asked.base(chat, example, None)}


def _logprobs(
    model: Model, _: str, example: Example, __: Sequence[Example], ___: Collection[str]
) -> dict[str, Said]:
    """How likely the base itself finds the assistant's last answer, what ends it included."""
    started = time.perf_counter()
    with model.chat(messages=example.messages, documents=example.documents) as chat:
        first = chat.count(messages=example.messages[:-1])
        chat.read()
        tokens = chat.tokens
    ends = [i for i, token in enumerate(tokens) if token in model.end_tokens]
    with model.session() as session:
        found = session.score(tokens[: ends[-1] + 1] if ends else tokens, first=first)
    logprobs = [each.logprob for each in found]
    total = sum(logprobs)
    took = (time.perf_counter() - started, len(found), first)
    values = (total, total / len(logprobs))
    return {name: Said(value, (), *took) for name, value in zip(LOGPROBS, values, strict=True)}


# Results -----------------------------------------------------------------------------------------


def entries(
    model: Model,
    task: str,
    base: str,
    answers: Answers,
    examples: Sequence[Example],
    training: Sequence[Example],
) -> Iterator[dict[str, Any]]:
    """What results.json has of each system."""
    n, lines = len(examples), [each.line for each in examples]
    asked = asking(model, task, QUESTIONS[task])
    systems = (READ, ADAPTER, LORA, BASE, FEW)
    said: dict[str, Sequence[Said]] = {
        system: found for system in systems if (found := answers.of(system, lines))
    }
    if isinstance(asked, Deciding):
        said |= surface.answers(asked, training, examples)
    scores = scored(asked, examples, said, training)
    found = scores.to_dict()
    where = {"intrinsic": task, "base": base, "n": n}
    for system, row in found["rows"].items():
        entry = {**where, "system": system, **row}
        if system == ADAPTER:
            entry["temperature"] = found["temperature"]
            entry["conversation"] = found["conversation"]
            entry["after_turns"] = _after_turns(asked, examples, said, training)
        yield _rounded(entry)
    for system in LOGPROBS:
        if sure := answers.of(system, lines):
            yield _rounded({**where, "system": system, **_auroc(asked, examples, said, sure)})


def _after_turns(
    asked: Asking,
    examples: Sequence[Example],
    said: Mapping[str, Sequence[Said]],
    training: Sequence[Example],
) -> list[dict[str, Any]]:
    """The adapter's figures by how many turns of the user's came before the last one."""
    turns = [sum(m.role == "user" for m in each.messages) - 1 for each in examples]
    found = []
    for label, low, high in TURNS:
        some = [i for i, n in enumerate(turns) if low <= n <= high]
        if some:
            told = {name: [said[name][i] for i in some] for name in (READ, ADAPTER)}
            scores = scored(asked, [examples[i] for i in some], told, training)
            figures = scores.to_dict()["rows"][ADAPTER]["figures"]
            found.append({"turns": label, "n": len(some), "figures": figures})
    return found


def _auroc(
    asked: Asking,
    examples: Sequence[Example],
    said: Mapping[str, Sequence[Said]],
    sure: Sequence[Said],
) -> dict[str, Any]:
    right = np.array([asked.right(each) == 1 for each in examples])
    own = figures.resamples(figures.auroc, np.array([each.value for each in sure]), right)
    adapter = np.array([each.shares[1] for each in said[ADAPTER]])
    best = figures.resamples(figures.auroc, adapter, right)
    if np.isnan(own[0]):
        return {"figures": {}, "behind": {}}
    return {
        "figures": {"auroc": asdict(figures.estimate(own))},
        "behind": {"auroc": asdict(figures.estimate(best - own))},
        "seconds": sum(each.seconds for each in sure) / len(sure),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


def choose_shots(asked: Asking, training: Sequence[Example], n: int = N_SHOTS) -> list[Example]:
    """The examples that the base is shown: of decisions as many of each category, the shortest of
    a hundred that are drawn, which leave the most room.
    """
    drawn = random.Random(0).sample(training, min(len(training), 100))
    some = sorted(drawn, key=lambda each: sum(len(m.content) for m in each.messages))
    by_answer: dict[Any, list[Example]] = {}
    for each in some:
        kind = asked.right(each) if asked.kind == "decision" else ""
        by_answer.setdefault(kind, []).append(each)
    ranks = [(i, each) for some in by_answer.values() for i, each in enumerate(some)]
    return [each for _, each in sorted(ranks, key=lambda pair: pair[0])][:n]


def evaluate(
    files: Files,
    *,
    part: str,
    n: int,
    workers: int,
    say: Say,
    write: Callable[[dict[str, Any]], None],
    known: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
) -> dict[str, Any]:
    """Everything that results.json holds; `write` gets it after each intrinsic on each base, with
    what was `known` of others. Systems that it is to be `without` are not asked.
    """
    known = known or {}
    found = {(e["intrinsic"], e["base"], e["system"]): e for e in known.get("entries", ())}
    results: dict[str, Any] = {
        "alora_gguf": __version__,
        "machine": machine(),
        "workers": workers,
        "part": part,
        "files": known.get("files", {}) | hashes([*files.alora.values(), *files.lora.values()]),
        "entries": [],
    }
    for base, path in files.bases.items():
        for task in files.alora:
            examples, training = files.examples(task, part, n)
            loras = {lora_name(task): files.lora[task]} if task in files.lora else {}
            adapters = {task: files.alora[task], **loras}
            about = {
                system: each
                for system, each in depends(files, task, part, base).items()
                if system not in without
            }
            answers = Answers(files.answers / f"{task}.{part}.{base}", about)
            with Models(path, adapters, workers) as models:
                (shots,) = models.map(
                    lambda model, some, name=task: choose_shots(
                        asking(model, name, QUESTIONS[name]), some
                    ),
                    [training],
                )
                ask_all(models, task, examples, shots, answers, say)
                (rows,) = models.map(
                    lambda model, item: list(entries(model, *item)),
                    [(task, base, answers, examples, training)],
                )
            found = {k: v for k, v in found.items() if k[:2] != (task, base)}
            found |= {(task, base, row["system"]): row for row in rows}
            results["entries"] = list(found.values())
            write(results)
            say(f"{task}, base {base}: done")
    return results


def hashes(paths: Iterable[Path]) -> dict[str, dict[str, str]]:
    """Of files of this project, by their paths in it; bases are made of one that is not its own."""
    names = {path.relative_to(ROOT).as_posix(): path for path in paths if ROOT in path.parents}
    return {
        name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in names.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates, says on stderr how it goes, and writes the results."""
    parser = argparse.ArgumentParser(prog="python -m examples.smollm2.evaluate")
    tasks = list(QUESTIONS)
    parser.add_argument("data", type=Path, help="where examples.smollm2.data wrote to")
    parser.add_argument("--part", choices=("eval", "final"), default="eval", help="(%(default)s)")
    parser.add_argument("--n", type=int, default=1000, help="examples of each (%(default)s)")
    parser.add_argument("--bases", nargs="+", choices=BASES, default=BASES)
    parser.add_argument(
        "--intrinsics", nargs="+", choices=tasks, help="(those that there are adapters for)"
    )
    parser.add_argument(
        "--without", nargs="+", choices=(LORA, FEW), default=(), help="systems that are not asked"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=default_threads(),
        help="conversations at a time, one thread each (%(default)s)",
    )
    parser.add_argument("--json", type=Path, help="where to (results.json, or final.json)")
    chosen = parser.parse_args(argv)
    if chosen.n < 1 or chosen.threads < 1:
        parser.error("--n and --threads must be above 0")
    name = RESULTS if chosen.part == "eval" else RESULTS.with_name("final.json")
    target: Path = chosen.json or name
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.0f} s] {text}", file=sys.stderr, flush=True)

    try:
        files = Files.known(chosen.data, chosen.bases, chosen.intrinsics or smollm2.adapter_paths())
        old = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
        evaluate(
            files,
            part=chosen.part,
            n=chosen.n,
            workers=chosen.threads,
            say=say,
            write=lambda results: write_json(results, target),
            known=old,
            without=chosen.without,
        )
    except (AloraError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    say(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
