"""`alora-gguf run`: intrinsics asked about conversations, for scripts; JSON in, JSON out."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click
from alora_gguf.cli import options
from alora_gguf.cli.options import read_bytes
from alora_gguf.cli.progress import Progress
from alora_gguf.cli.render import plural, printable

import alora_gguf as ag

if TYPE_CHECKING:
    from .conversations import Entry
    from .plan import Plan
    from .work import Answer, AnswerAll, Settings

_LINES: Final = (".jsonl", ".ndjson")
_REPLY_TOKENS: Final = 512


@click.command("run")
@click.argument("conversations", default="-")
@options.model
@options.adapters
@options.contracts
@click.option(
    "--intrinsic",
    "intrinsics",
    metavar="NAME",
    multiple=True,
    help="What to ask; also [ALIAS=]NAME(ARGUMENTS). Repeatable.",
)
@click.option("--reply", is_flag=True, help="Write the assistant's reply, then ask.")
@options.max_tokens
@options.temperature
@options.seed
@click.option(
    "--reply-adapter",
    "reply_adapters",
    metavar="NAME",
    multiple=True,
    help="The adapter that writes the reply, also as NAME=SCALE; needs --reply. Repeatable: "
    "several write it together.",
)
@options.steer
@click.option("--value", "form", flag_value="value", help="Print nothing but values.")
@click.option(
    "--csv", "form", flag_value="csv", help="Print ids and values as CSV, a column for each."
)
@click.option("--jsonl", is_flag=True, help="Read each line as a conversation.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=options.FilePath(),
    help="Append lines to FILE as they are known; leave out what is there already.",
)
@options.template
@options.special_tokens
@options.prompt_cache
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    help="Conversations at a time; by default 8, or fewer where several intrinsics are asked.",
)
@options.threads
@options.gpu_layers
@options.rpc
@options.cells
@options.attention
@options.n_ctx(
    "Cells of the cache, which conversations that are worked on at a time share; by default "
    "as many as they need, for each at most what the model was trained for."
)
@click.option(
    "--ray",
    "address",
    metavar="ADDRESS",
    help="Share the work with the workers of a Ray cluster, each with a model: its address, auto, "
    "or local. All machines need the same files under the same paths.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Number of workers, with --ray; by default one for each four cores.",
)
@options.verbose
def command(
    *,
    conversations: str,
    base: str | None,
    adapters: tuple[str, ...],
    contracts: tuple[str, ...],
    intrinsics: tuple[str, ...],
    reply: bool,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    reply_adapters: tuple[str, ...],
    steer: tuple[str, ...],
    form: str | None,
    jsonl: bool,
    output: Path | None,
    template: Path | None,
    special_tokens_in_text: bool,
    address: str | None,
    workers: int | None,
    **computing: Any,
) -> None:
    """Ask intrinsics about conversations; print the answers as JSON.

    CONVERSATIONS is a file, or - for stdin: one JSON object with messages and perhaps documents,
    arguments and id, or an array of messages; or JSON lines, each such a conversation. What
    conversations begin with in common is read once. Adapters that are asked for and not given by
    --adapter are the base's own, which the demo model and smollm2 have, or the store's. A reply is
    the likeliest one, of up to 512 tokens, unless options say otherwise; --steer steers it by
    vectors.

    The exit status is 1 if any could not be asked, or was not answered as its contract says.
    """
    _check(intrinsics, reply, conversations)
    if form is not None and output is not None:
        raise click.UsageError(
            f"--{form} leaves out what a later run knows its lines by; leave it or --output out"
        )
    sampling = {"--max-tokens": max_tokens, "--temperature": temperature, "--seed": seed}
    given = {**sampling, "--reply-adapter": reply_adapters or None, "--steer": steer or None}
    if workers is not None and address is None:
        raise click.UsageError("--workers is how many a Ray cluster has for this: give --ray, too")
    if address is not None and computing["rpc"]:
        raise click.UsageError(
            "--ray has whole models on each machine, and --rpc one on several: give one of them"
        )
    known = [options.named_path(each)[0] for each in adapters]
    written = _reply_options(reply, given, known)

    from .conversations import read_input
    from .plan import Plan
    from .work import Settings, answer_all

    ask: AnswerAll = answer_all
    if address is not None:
        from .cluster import Cluster, answer_all_on

        ask = partial(answer_all_on, Cluster(address, workers))

    jinja = None if template is None else read_bytes(template).decode("utf-8", "replace")
    plan = Plan.make(base, adapters, contracts, intrinsics, written, jinja)
    _check_steering(plan, options.named_scales(steer, known=known))
    plan = replace(plan, special_tokens_in_text=special_tokens_in_text)
    if base is None and computing["n_threads"] is None:
        computing["n_threads"] = options.DEMO_THREADS
    settings = Settings(**computing)
    data, name = _read(conversations)
    as_lines = jsonl or conversations.lower().endswith(_LINES)
    labels = [each.label for each in plan.asks]
    entries, as_lines = read_input(data, name, labels, plan.template_text, lines=as_lines)
    with plan.tokenizer() as tokenizer:
        if not entries:
            click.echo(f"{printable(name)}: holds no conversations", err=True)
        _say_unanswered(plan, entries)
        if as_lines or output is not None or form == "csv":
            _many(ask, plan, tokenizer, entries, settings, output, form)
        else:
            _one(ask, plan, tokenizer, entries[0], settings, values_only=form == "value")


def _check(intrinsics: tuple[str, ...], reply: bool, conversations: str) -> None:
    if not intrinsics and not reply:
        talk = f"; to talk with a model: alora-gguf chat {conversations}"
        hint = talk if conversations.lower().endswith(".gguf") else ""
        raise click.UsageError(f"give --intrinsic NAME, what to ask; or --reply{hint}")


def _check_steering(plan: Plan, steered: Iterable[str]) -> None:
    for name in steered:
        if not isinstance(plan.files[name], ag.VectorFile):
            raise click.UsageError(
                f"--steer {name}: is an adapter with weights, not a steering vector; "
                "--reply-adapter has it write the reply"
            )


def _say_unanswered(plan: Plan, entries: Sequence[Entry]) -> None:
    """What judges answers has a number for a question as well, which means nothing."""
    said = [each.conversation.messages for each in entries if each.conversation is not None]
    n = sum(bool(messages) and messages[-1].role == "user" for messages in said)
    judges = [ask.label for ask in plan.asks if plan.contracts[ask.name].judges == "answer"]
    if n and judges and plan.reply is None:
        click.echo(
            f"{plural(n, 'conversation')} without an answer at the end, which is what "
            f"{printable(', '.join(judges))} is about; --reply writes one",
            err=True,
        )


def _reply_options(
    reply: bool, given: dict[str, Any], known: Sequence[str]
) -> ag.GenerateOptions | None:
    if not reply:
        for option, value in given.items():
            if value is not None:
                raise click.UsageError(f"{option} is for a reply; add --reply, or leave it out")
        return None
    writers = options.named_scales(given["--reply-adapter"] or (), "--reply-adapter", known)
    by = options.named_scales(given["--steer"] or (), known=known)
    if twice := writers.keys() & by.keys():
        raise click.UsageError(f"--steer {min(twice)}: is the --reply-adapter too; give it once")
    one = next(iter(writers)) if [*writers.values()] == [1.0] else None
    return ag.GenerateOptions(
        max_tokens=given["--max-tokens"] or _REPLY_TOKENS,
        sampling=ag.Sampling(temperature=given["--temperature"] or 0.0, seed=given["--seed"]),
        adapter=one if one is not None and not by else {**writers, **by} or None,
    )


def _read(source: str) -> tuple[bytes, str]:
    """What the input holds, and what it is called."""
    if source != "-":
        return read_bytes(Path(source)), source
    if sys.stdin is None:
        raise ag.InputError("there is no stdin to read a conversation from; name a file")
    if sys.stdin.isatty():
        click.echo("Type a conversation as JSON; Ctrl-D ends it.", err=True)
    return sys.stdin.buffer.read(), "stdin"


def _stdout() -> BinaryIO:
    if sys.stdout is None:
        raise ag.InputError("there is no stdout to print to; give --output FILE")
    return sys.stdout.buffer


def _one(
    ask: AnswerAll,
    plan: Plan,
    tokenizer: ag.Tokenizer,
    entry: Entry,
    settings: Settings,
    *,
    values_only: bool,
) -> None:
    answers: list[Answer] = []

    def deliver(_: Entry, answer: Answer | None, problem: str) -> None:
        if answer is None:
            raise ag.InputError(f"{entry.where}: {problem}")
        answers.append(answer)

    ask(plan, tokenizer, [entry], settings, deliver)
    (found,) = answers
    problems = "; ".join(found.problems())
    if not values_only:
        _print(json.dumps({**entry.echo, **found.to_dict()}, indent=2, allow_nan=False))
    elif not problems or len(plan.asks) > 1:
        _print(json.dumps(found.value(), allow_nan=False))
    if problems:
        raise ag.OutputError(f"{entry.where}: {problems}")


def _print(text: str) -> None:
    stdout = _stdout()
    stdout.write(f"{text}\n".encode())
    stdout.flush()


def _many(
    ask: AnswerAll,
    plan: Plan,
    tokenizer: ag.Tokenizer,
    entries: Sequence[Entry],
    settings: Settings,
    path: Path | None,
    form: str | None,
) -> None:
    from .output import AppendedFile, InOrder, Lines, Rows, as_value

    setting = plan.setting(tokenizer)
    output = InOrder(_stdout()) if path is None else AppendedFile(path)
    with contextlib.closing(output), Progress("Asking", counted=True) as progress:
        say = {None: None, "value": as_value, "csv": Rows(plan.asked)}[form]
        if isinstance(say, Rows):
            _stdout().write(say.head)
        lines = Lines(entries, setting, output, progress=progress, say=say)
        if skipped := len(entries) - len(lines.todo):
            there = printable(str(path))
            click.echo(f"{skipped} of {len(entries)} are in {there} already", err=True)
        ask(plan, tokenizer, lines.todo, settings, lines.deliver)
    if lines.failed:
        raise ag.OutputError(
            f"{lines.failed} of {len(entries)} conversations failed; their lines say why"
        )
