"""`alora-gguf decide`: typed questions about one state, for scripts; JSON in, JSON out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from alora_gguf.cli import options
from alora_gguf.cli.bases import NamedBase
from alora_gguf.cli.options import named_contract, named_path, read_bytes
from alora_gguf.cli.progress import Progress

import alora_gguf as ag
from alora_gguf.decide import (
    openai_request,
    openai_response,
    systemone_request,
    systemone_response,
)

_SEQUENCES: Final = 64  # so many orders of questions are asked at a time


@click.command("decide")
@click.argument("state", default="-")
@click.option(
    "--questions",
    metavar="FILE",
    help="The questions by their names, as JSON; without it STATE has them.",
)
@options.model
@options.adapters
@options.contracts
@click.option(
    "--orders",
    type=click.IntRange(1, 255),
    help="How many orders a question's options are asked in; by default all rotations of up to 8 "
    "options, and fewer of more.",
)
@options.template
@options.special_tokens
@options.threads
@options.gpu_layers
@options.rpc
@options.cells
@options.attention
@options.n_ctx("Cells of the cache; by default as many as the model was trained for, up to 4096.")
@options.verbose
def command(
    *,
    state: str,
    questions: str | None,
    base: str | None,
    adapters: tuple[str, ...],
    contracts: tuple[str, ...],
    orders: int | None,
    template: Path | None,
    **computing: Any,
) -> None:
    """Ask typed questions about a state; print a probability for every option.

    STATE is a file, or - for stdin: text or JSON that --questions are about; or without them a
    request as System One takes it, {"state": ..., "questions": {...}}, or as OpenAI's Decisions
    do, {"input": ..., "questions": [...]}. The answer has the same form. A question is
    {"type": "noul", "instructions": ...}, "choice" with "criteria" {"OPTION": null, ...}, or
    "score" with "criteria" ["LOWEST", ...]; it may name an "adapter", or is {"intrinsic": NAME}.
    Adapters that are named and not given by --adapter are the base's own, which the demo model and
    smollm2 have, or the store's.

    The exit status is 1 if a question could not be answered.
    """
    if state == questions == "-":
        raise click.UsageError("STATE and --questions cannot both be stdin")
    asked = _read(state, questions)
    jinja = None if template is None else read_bytes(template).decode("utf-8", "replace")
    named, given = NamedBase.of(base), dict(map(named_path, adapters))
    names = dict.fromkeys([*given, *asked.adapters])
    files = {name: named.adapter(name, given) for name in names}
    if base is None and computing["n_threads"] is None:
        computing["n_threads"] = options.DEMO_THREADS
    with Progress("Loading") as progress:
        model = ag.Model(
            named.path,
            adapters=files,
            n_seq_max=_SEQUENCES,
            max_adapters=max(1, len(files)),
            progress=progress.fraction,
            **computing,
        )
    with model:
        for name, contract in map(named_contract, contracts):
            model.set_contract(name, contract)
        found = model.decide(asked.state, asked.questions, orders=orders, template=jinja)
    said = json.dumps(asked.write(found, named.path.stem), indent=2, ensure_ascii=False)
    click.echo(said.encode())  # in UTF-8, whatever the output's encoding is
    failed = [name for name, each in found.answers.items() if isinstance(each, ag.FailedAnswer)]
    if failed:
        raise ag.OutputError(f"{len(failed)} of {len(found.answers)} questions got no answer")


@dataclass(frozen=True)
class _Asked:
    """What is asked about what, and what writes the answer's JSON, with a model's name."""

    state: Any
    questions: Mapping[str, Any]
    write: Callable[[ag.Decision, str], dict[str, Any]]

    @property
    def adapters(self) -> list[str]:
        """The names of the adapters that answer."""
        asked = self.questions.values()
        named = [
            each.name if isinstance(each, ag.IntrinsicCall) else each.adapter for each in asked
        ]
        return [name for name in dict.fromkeys(named) if name is not None]


def _read(state: str, questions: str | None) -> _Asked:
    """What files, or stdin, say. Raises InputError, which names the file."""
    text, name = _text(state)
    names = {"state": name}
    if questions is None:
        body = _json(text, name)
    else:
        about = _json(text, name) if text.lstrip()[:1] in ("{", "[") else text
        text, name = _text(questions)
        body = {"state": about, "questions": _json(text, name)}
    try:
        if questions is None and isinstance(body, Mapping) and "input" in body:
            openai = openai_request(body)
            return _Asked(openai.state, openai.questions, partial(openai_response, openai))
        asked = systemone_request(body)
    except ag.FieldError as error:
        name = names.get(str(next(iter(error.path), "")), name)
        raise ag.InputError(f"{name}: {error}") from error
    return _Asked(asked.state, asked.questions, systemone_response)


def _text(source: str) -> tuple[str, str]:
    """What a file holds, and what it is called."""
    if source != "-":
        data, name = read_bytes(Path(source)), source
    elif sys.stdin is None:
        raise ag.InputError("there is no stdin to read from; name a file")
    else:
        data, name = sys.stdin.buffer.read(), "stdin"
    try:
        return data.decode("utf-8-sig"), name
    except UnicodeDecodeError as error:
        raise ag.InputError(f"{name}: is not UTF-8: byte {error.start}") from error


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ag.InputError(f"{name}: is not JSON: {error}") from error
