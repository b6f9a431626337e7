"""`python -m examples.smollm2.training DATA`: the five intrinsics' adapters, one after another.

Each goes into alora_gguf/smollm2/, its plain twin into lora/ beside this file, and the PEFT
directories of both into build/smollm2/peft. What was stopped goes on where it was: an adapter takes
an hour or more.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

from alora_gguf import smollm2
from alora_gguf.errors import InputError
from alora_gguf.train import Task, TrainReport, TrainSettings, Watcher, train
from examples.demo_model import program
from examples.demo_model.runtime import lora_name

from .evaluate import BUILD, EXAMPLE, QUESTIONS

RANK: Final = 12  # attention alone: 2.8 MB in F16
EPOCHS: Final = 2
FURTHER: Final = 5e-4  # the rate of what goes on from an adapter that has learned something
LOOKS: Final = 2  # in an epoch: one takes as long as a dozen steps
Kind = Literal["alora", "lora"]
HOMES: Final[dict[Kind, Path]] = {
    "alora": Path(smollm2.__file__).parent,
    "lora": EXAMPLE / "lora",
}


class Said(Watcher):
    """Lines on stdout, now and then."""

    def __init__(self) -> None:
        self._done = -1.0

    def stage(self, text: str) -> None:
        self._done = -1.0
        print(text, flush=True)

    def moved(self, done: int, total: int, note: str = "") -> None:
        if done / max(total, 1) >= self._done + 0.05:
            self._done = done / max(total, 1)
            print(f"  {self._done:.0%} {note}", flush=True)


def contract(task: str, kind: Kind) -> Path:
    """An intrinsic's contract. A plain LoRA reads the whole conversation itself, and nothing is
    said to it twice.
    """
    given = EXAMPLE / "intrinsics" / task / "io.yaml"
    if kind == "alora":
        return given
    text, n = re.subn(
        r"^instruction: .*$",
        "instruction: ~",
        given.read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    if n != 1:
        raise InputError(f"{given}: has {n} lines with an instruction, expected one")
    made = BUILD / f"{lora_name(task)}.io.yaml"
    made.write_text(text, encoding="utf-8")
    return made


def trained(
    task: str, kind: Kind, data: Path, threads: int | None, start: Path | None
) -> TrainReport:
    """An intrinsic's adapter, from its lines in `data`, beginning with the weights in `start`."""
    settings = TrainSettings(rank=RANK, epochs=EPOCHS, looks=LOOKS, threads=threads)
    if start is not None:
        settings = replace(settings, rate=FURTHER)
    name = task if kind == "alora" else lora_name(task)
    (report,) = train(
        smollm2.base_path(),
        [
            Task(
                data=data / f"{task}.jsonl",
                out=BUILD / f"{name}.gguf",
                name=name,
                contract=contract(task, kind),
                peft_out=BUILD / "peft" / name,
                start=start,
                kind=kind,
            )
        ],
        settings=settings,
        question=QUESTIONS[task],
        resume=True,
        overwrite=True,
        watcher=Said(),
    )
    HOMES[kind].mkdir(exist_ok=True)
    shutil.copyfile(report.out, HOMES[kind] / f"{task}.gguf")
    return report


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="what examples.smollm2.data wrote")
    parser.add_argument("--tasks", default=",".join(QUESTIONS))
    parser.add_argument("--kinds", nargs="+", choices=[*HOMES], default=[*HOMES])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--from", dest="start", type=Path, help="a PEFT directory to train further")
    args = parser.parse_args(argv)
    tasks = args.tasks.split(",")
    if args.start is not None and (len(tasks) > 1 or len(args.kinds) > 1):
        parser.error("--from is one adapter's: name it with --tasks and --kinds")
    BUILD.mkdir(parents=True, exist_ok=True)
    for kind in args.kinds:
        for task in tasks:
            there = HOMES[kind] / f"{task}.gguf"
            if there.is_file():
                print(f"{task}, {kind}: is there; remove {there} to train it again", flush=True)
                continue
            report = trained(task, kind, args.data, args.threads, args.start)
            print(f"{report.scores}\n", flush=True)
    return 0


if __name__ == "__main__":
    program.run(main)
