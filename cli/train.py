"""`alora-gguf train`: an adapter of one's own, on the GGUF that will serve it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from alora_gguf.cli import options
from alora_gguf.cli.progress import Progress
from alora_gguf.cli.render import printable

import alora_gguf as ag
from alora_gguf.train import Estimate, Task, TrainReport, TrainSettings, Watcher, train
from alora_gguf.train.scores import MIN_FITTED


@click.command("train")
@click.argument("base", shell_complete=options.store_names("base"))
@click.argument("data", required=False, type=options.FilePath())
@click.option(
    "-o",
    "--output",
    "out",
    type=options.FilePath(),
    help="The GGUF to write, or the directory for several; by default named after DATA, here.",
)
@click.option(
    "--task",
    "more",
    metavar="DATA",
    multiple=True,
    type=options.FilePath(),
    help="One more adapter, trained on this file and named after it. Conversations that tasks "
    "share are read once. Repeatable.",
)
@click.option(
    "--contract",
    "contracts",
    metavar="[NAME=]FILE",
    multiple=True,
    help="The io.yaml of an adapter; without one, it is made of the answers and written beside "
    "the output.",
)
@click.option(
    "--invocation",
    "invocations",
    metavar="[NAME=]TEXT",
    multiple=True,
    help="The text that switches an adapter on; by default one of the base's control tokens, or, "
    "with an instruction, its name in angle brackets. \\n is a line break.",
)
@click.option(
    "--repeat",
    is_flag=True,
    help="Say the last message once more behind the invocation, where the adapter reads it itself: "
    "for answers that depend on what stands before that message. Costs as many tokens.",
)
@click.option("--rank", type=click.IntRange(1), default=8, show_default=True, help="Of the LoRA.")
@click.option("--alpha", type=click.FloatRange(0, min_open=True), help="By default twice the rank.")
@click.option(
    "--targets",
    default="attention",
    show_default=True,
    help="attention, all-linear, or names of weights such as attn_q,ffn_up.",
)
@click.option(
    "--epochs",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="How often each example is seen, at most.",
)
@click.option(
    "--batch", type=click.IntRange(1), default=8, show_default=True, help="Examples of a step."
)
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=1e-3,
    show_default=True,
    help="The highest learning rate.",
)
@click.option(
    "--patience",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="Looks at the held-out examples that may bring nothing better before it stops; 0: never.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="What the base computes in; auto is bfloat16 where the processor multiplies it faster.",
)
@options.threads
@click.option(
    "--cache-gb",
    type=click.FloatRange(0),
    default=16,
    show_default=True,
    help="The most disk that what is read once may take; the rest is read again in each epoch.",
)
@click.option("--also-lora", is_flag=True, help="Train the plain LoRA as well, for comparison.")
@click.option(
    "--peft-out",
    type=options.FilePath(),
    help="A directory for the adapter in PEFT's format; one in it for each of several.",
)
@click.option(
    "--from",
    "start",
    type=options.FilePath(),
    metavar="DIR",
    help="Train an adapter in PEFT's format further; its rank, alpha and targets are needed.",
)
@click.option("--question", metavar="TEXT", help="What to ask the bare base, for comparison.")
@click.option("--resume", is_flag=True, help="Go on with a training that ended before its end.")
@click.option("--force", "overwrite", is_flag=True, help="Replace the output, or begin anew.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    *,
    base: str,
    data: Path | None,
    out: Path | None,
    more: tuple[Path, ...],
    contracts: tuple[str, ...],
    invocations: tuple[str, ...],
    repeat: bool,
    also_lora: bool,
    peft_out: Path | None,
    start: Path | None,
    question: str | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    cache_gb: float,
    targets: str,
    n_threads: int | None,
    **chosen: Any,
) -> None:
    """Train an adapter on conversations and their right answers.

    BASE is the GGUF that will serve it, its name in the store, or smollm2. DATA has a conversation
    a line, as JSON: {"messages": [...], "answer": ...}, and if need be "documents", "arguments" for
    the contract's instruction, and "split": "train" or "held_out"; without splits a tenth is held
    out.

    What stands before an adapter's invocation is read once, so that a step costs the few tokens
    after it. The adapter is then converted, verified, and asked about the held-out conversations,
    beside the bare base. Ctrl-C ends training and keeps the best so far; --resume goes on.

    Needs the extra `train`: pip install 'alora-gguf[train]'.
    """
    # threads that wait for each other while another process has their core would spin for it
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    path = ag.Store().resolve(base, "base")
    settings = TrainSettings(
        threads=n_threads,
        cache_bytes=int(cache_gb * 1e9),
        targets=targets if "," not in targets else [each.strip() for each in targets.split(",")],
        **chosen,
    )
    tasks = [
        replace(each, repeat=repeat)
        for each in _tasks(
            [*([] if data is None else [data]), *more], out, contracts, invocations, peft_out, start
        )
    ]
    with _Shown(quiet=as_json) as watcher:
        reports = train(
            path,
            tasks,
            settings=settings,
            also_lora=also_lora,
            question=question,
            resume=resume,
            overwrite=overwrite,
            watcher=watcher,
        )
    if as_json:
        click.echo(json.dumps([each.to_dict() for each in reports], indent=2))
    else:
        for report in reports:
            _print(report, path)
    if reports[-1].over == "stopped":
        raise KeyboardInterrupt
    for report in reports:
        if report.over == "diverged":
            raise ag.AdapterError(
                f"{report.out}: the loss was no number any more at step {report.steps + 1}; what "
                f"was written is the best before, of step {report.best_step}: try a lower rate"
            )


def _tasks(
    files: Sequence[Path],
    out: Path | None,
    contracts: Sequence[str],
    invocations: Sequence[str],
    peft_out: Path | None,
    start: Path | None,
) -> list[Task]:
    """A task for each file; options that name none are the only one's."""
    if not files:
        raise click.UsageError("Missing argument 'DATA'")
    several = len(files) > 1
    if several and out is not None and out.suffix == ".gguf":
        raise click.UsageError(
            "with several tasks -o is a directory; each GGUF is named after DATA"
        )
    if several and start is not None:
        raise click.UsageError("--from is one adapter's; train several one by one")
    names = {file.name.removesuffix(".jsonl"): file for file in files}
    if len(names) < len(files):
        raise click.UsageError("two of the files have one name, and adapters are named after them")
    asked = _by_task("--contract", contracts, names), _by_task("--invocation", invocations, names)
    tasks = []
    for name, file in names.items():
        target = (out or Path()) / f"{name}.gguf" if several or out is None else out
        text = asked[1].get(name)
        if text == "":
            raise click.UsageError("--invocation is empty, expected a text")
        tasks.append(
            Task(
                data=file,
                out=target,
                contract=asked[0].get(name),
                invocation=None if text is None else text.replace("\\n", "\n"),
                peft_out=peft_out / name if several and peft_out is not None else peft_out,
                start=start,
            )
        )
    return tasks


def _by_task(option: str, given: Sequence[str], names: Mapping[str, Path]) -> dict[str, str]:
    """What an option says of each task."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (equals and name in names):
            if len(names) > 1:
                raise click.UsageError(
                    f"{option} {text}: expected NAME=..., where NAME is one of {', '.join(names)}"
                )
            name, value = next(iter(names)), text
        found[name] = value
    return found


class _Shown(Watcher):
    """What happens, on stderr. As a context manager, it has the first Ctrl-C end training in order,
    and the second at once.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._stopped = False
        self._before: Any = None

    def __enter__(self) -> _Shown:
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        self._end()

    def stage(self, text: str) -> None:
        self._end()
        self._bar = Progress(text, counted=True).__enter__()
        if not self._quiet:
            click.echo(printable(text), err=True)

    def moved(self, done: int, total: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar(done, total, note)

    def estimated(self, found: Estimate) -> None:
        if not self._quiet:
            click.echo(_told(found), err=True)

    def stopped(self) -> bool:
        return self._stopped

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.__exit__()

    def _interrupt(self, *_: object) -> None:
        if self._stopped:
            raise KeyboardInterrupt
        self._stopped = True
        click.echo(
            "\nEnding after this step; Ctrl-C again ends at once. --resume goes on.", err=True
        )


def _told(found: Estimate) -> str:
    """An estimate in words."""
    whole = timedelta(seconds=round(found.prefix_seconds + found.step_seconds))
    parts = [f"{timedelta(seconds=round(found.step_seconds))} of steps, if it does not stop early"]
    if found.n_tokens:
        once = (
            f"{found.n_tokens:,} tokens before invocations, once ({found.n_given:,} as they stand)"
        )
        parts.insert(0, f"{timedelta(seconds=round(found.prefix_seconds))} for {once}")
    return (
        f"Takes about {whole}: {'; '.join(parts)}. "
        f"{found.memory / 1e9:.1f} GB of memory, {found.disk / 1e9:.1f} GB of disk."
    )


def _print(report: TrainReport, base: Path) -> None:
    size = report.out.stat().st_size / 1e6
    ended = {"early": "stopped early", "stopped": "interrupted", "epochs": "to the end"}
    ended["diverged"] = "where the loss was no number any more"
    seconds = timedelta(seconds=round(report.seconds + report.prefix_seconds))
    rows = [
        ("kind", "aLoRA" if report.kind == "alora" else "LoRA"),
        ("contract", f"made of the answers: {report.contract_file}" if report.made else "as given"),
        ("examples", f"{report.n_train}, and {report.n_held_out} held out"),
        ("steps", f"{report.steps}, {ended[report.over]}; the best was {report.best_step}"),
    ]
    if report.invocation:
        ids = ", ".join(map(str, report.invocation))
        rows.insert(1, ("invocation", f"{json.dumps(report.invocation_text)} = {ids}"))
    click.echo(f"{report.out}: {size:.2f} MB in {seconds}")
    for label, text in rows:
        click.echo(f"  {label:<12}  {printable(text)}")
    if report.scores is not None:
        click.echo(f"\n{report.scores}")
        if report.n_held_out < MIN_FITTED:
            click.echo(
                f"\n{report.n_held_out} held-out examples tell little, as the intervals show, and "
                f"below {MIN_FITTED} no temperature is fitted."
            )
    click.echo(f"\nTry it: alora-gguf chat {base} --adapter {report.out}")
