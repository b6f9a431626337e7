"""`alora-gguf chat`: a conversation in the terminal, judged by adapters while it stays cached."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from alora_gguf.cli import options
from alora_gguf.cli.bases import packaged
from alora_gguf.cli.render import colour, printable, whole

import alora_gguf as ag

if TYPE_CHECKING:
    from .commands import Commands
    from .lines import Lines
    from .opening import Given
    from .talk import Talk
    from .view import Record, View

_SHOWN: Final = 3  # documents, when a chat begins
_SMOLLM2: Final = (
    "It is a real model of 135 million parameters: it chats about anything, and makes facts up.\n"
    "/doc FILE gives it a text to keep to."
)
_PATH: Final = options.FilePath()


@click.command("chat")
@click.argument(
    "path", metavar="[BASE]", required=False, shell_complete=options.store_names("base")
)
@options.model
@options.adapters
@options.contracts
@click.option("--system", metavar="TEXT", help="The system message.")
@click.option(
    "--doc", "docs", metavar="FILE", multiple=True, type=_PATH, help="A text to talk about. "
    "Repeatable.",
)  # fmt: skip
@click.option(
    "-w",
    "--watch",
    metavar="NAMES",
    multiple=True,
    help="Intrinsics to ask at every turn, as by /watch. Repeatable.",
)
@options.steer
@click.option(
    "-p",
    "--prompt",
    metavar="TEXT",
    help="Say this, and what comes through a pipe, print the reply and leave; - for the pipe's "
    "text alone.",
)
@click.option("--restore", metavar="FILE", type=_PATH, help="Go on with a saved conversation.")
@click.option(
    "--transcript",
    metavar="FILE",
    type=_PATH,
    help="Append every turn to this file, as JSON lines.",
)
@options.template
@options.special_tokens
@options.prompt_cache
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines instead of text.")
@options.temperature
@options.seed
@options.max_tokens
@click.option(
    "-c",
    "--ctx",
    "n_ctx",
    type=click.IntRange(min=16),
    help="Tokens that the KV cache has room for.",
)
@click.option(
    "--drop-oldest", is_flag=True, help="Drop the oldest turns where the next one has no room."
)
@options.threads
@options.gpu_layers
@options.rpc
@options.cells
@options.attention
@options.verbose
def command(path: str | None, base: str | None, **given: Any) -> None:
    """Chat, with adapters that judge the conversation while it stays in the cache.

    BASE is what -m takes.

    Lines that begin with a slash are commands: /help shows them. Without a terminal each line of
    the input is a message, and only replies and what is asked for go to the output.
    """
    from .opening import Given

    if sys.stdout is None:
        raise ag.InputError("there is no output to print to; give one, such as a file or /dev/null")
    if path is not None and base is not None:
        raise click.UsageError(f"two bases are named: {path} and -m {base}")
    if not _run(Given(base=base or path, **given)):
        raise click.exceptions.Exit(1)  # what went wrong was said when it did


def _run(given: Given) -> bool:
    """Leads the chat to its end; says whether nothing went wrong."""
    from .loop import Loop
    from .opening import opened
    from .room import beyond
    from .tables import place_note
    from .view import Record, Transcript, write_json

    if given.restore is not None and (
        given.system is not None or given.docs or given.template is not None
    ):
        raise click.UsageError("--restore brings its own system message, documents and template")
    by = options.named_scales(given.steer)
    if hasattr(sys.stdin, "reconfigure"):  # a byte that is no text is no reason to fail
        sys.stdin.reconfigure(errors="replace")
    typed = given.prompt is None and not given.as_json
    typed = typed and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    with contextlib.ExitStack() as stack:
        records = [Record("the output", write_json)] if given.as_json else []
        if (path := given.transcript) is not None:
            transcript = stack.enter_context(Transcript(path))
            records.append(Record(str(path), transcript.write_text))
        talk = stack.enter_context(opened(given))
        view = _view(given, records, typed)
        view.began(talk.model)
        if given.n_ctx is not None and (told := beyond(talk.model)):
            view.note(told)
        if given.docs and not typed and (told := place_note(talk.chat)):
            view.note(told)
        loop = Loop(talk, view, _lines(given, talk, typed))
        _set_up(given, loop.commands, by)
        if given.prompt is not None:
            loop.say(whole(_prompt(given.prompt)))
            return not view.failed
        if typed:
            _greet(given, talk, view)
        loop.run()
    return typed or not view.failed


def _set_up(given: Given, commands: Commands, by: Mapping[str, float]) -> None:
    """Watches and steers as was said, or else as when a restored conversation was saved."""
    restored = given.restore is not None
    if given.watch:
        commands.watch(" ".join(given.watch))
    elif restored:
        commands.watch_as_saved()
    if given.steer:
        commands.steer(by)
    elif restored:
        commands.steer_as_saved()


def _prompt(given: str) -> str:
    """What was given, and what comes through a pipe."""
    from .lines import piped

    if given == "-":
        return sys.stdin.read() if sys.stdin is not None else ""
    note = "waiting for the end of the input, which is said too (< /dev/null for none)"
    return "\n\n".join(filter(str.strip, (given, piped(lambda: click.echo(note, err=True)))))


def _view(given: Given, records: Sequence[Record], typed: bool) -> View:
    from .view import Piped, View

    if given.as_json:
        return View(records)
    if not typed:
        return Piped(records)
    from rich.console import Console

    from .screen import Screen

    plain = True if colour() is False else None
    return Screen(records, Console(highlight=False, emoji=False, no_color=plain))


def _lines(given: Given, talk: Talk, typed: bool) -> Lines:
    from .lines import Keyboard, Pipe, Plain, history_file, is_dumb

    if not typed:
        return Pipe(sys.stdin or ())
    if is_dumb():
        return Plain()
    return Keyboard(
        words=lambda command: _words(talk, command),
        below=lambda width: _below(given, talk, width),
        history=history_file(ag.Store().home),
        colour=colour() is not False,
    )


def _below(given: Given, talk: Talk, width: int) -> str:
    """Where one is, in one line."""
    from .steering import shown

    used = f"{talk.chat.session.cached} of {talk.model.n_ctx} tokens"
    watched = [each.short for each in talk.watched]
    steered = [shown(talk.steering)] if talk.steering else []
    line = ""
    for names in (" ".join(watched), str(len(watched))):
        watching = [f"watching {names}"] if watched else []
        parts = (_title(given, talk), used, *steered, *watching, "/help")
        line = printable(f" {' · '.join(parts)}")
        if len(line) <= width:
            break
    return line


def _title(given: Given, talk: Talk) -> str:
    return "demo model" if given.is_demo else Path(talk.model.path).stem


def _words(talk: Talk, command: str) -> dict[str, str]:
    """What can stand behind a command, and what it is; behind none, the commands."""
    from .arguments import SETTINGS, shown_setting
    from .commands import COMMANDS
    from .steering import vectors_of
    from .talk import intrinsics_of

    vectors = dict.fromkeys(vectors_of(talk.model), "vector")
    adapters = {**dict.fromkeys(talk.model.adapters, "adapter"), **vectors}
    asked = intrinsics_of(talk.model)
    calls = [
        f"{name}({asked[name].arguments[0]}=" if name in asked and asked[name].arguments else name
        for name in adapters
        if name not in vectors
    ]
    words = {
        "": {**{name: each.help for name, each in COMMANDS.items()}, **adapters},
        "watch": {**dict.fromkeys(calls, "adapter"), "off": "ask nothing"},
        "steer": {**vectors, "off": "steer no more"},
        "unload": adapters,
        "set": {name: shown_setting(talk.options, name) for name in SETTINGS},
        "doc": {"off": "drop all documents"},
        "system": {"off": "drop the system message"},
    }
    return words.get(command, {})


def _greet(given: Given, talk: Talk, view: View) -> None:
    """What there is, and what to try."""
    from .asking import in_words
    from .steering import in_words as steered
    from .tables import place_note, said

    names = ", ".join(map(printable, talk.model.adapters)) or "no adapters"
    view.note(f"{printable(_title(given, talk))} with {names}")
    if given.watch:
        view.note(in_words(talk.watched))
    if talk.steering:
        view.note(steered(talk.steering))
    if given.restore is not None:
        view.note(f"{said(talk.chat)}, restored; nothing was read again")
    documents = talk.chat.documents
    if documents:
        view.note("It talks about these documents:")
    for i, document in enumerate(documents[:_SHOWN], 1):
        view.note(f"  {i}  {document.title or document.text}")
    if len(documents) > _SHOWN:
        view.note(f"     and {len(documents) - _SHOWN} more; /doc shows them")
    if note := place_note(talk.chat):
        view.note(note)
    if given.is_demo and given.restore is None and not given.docs:
        view.note(
            "It is a toy of 4.6 million parameters, trained to talk about such documents.\n"
            "Try:\n"
            "  When does the Bomel library open?\n"
            "  /all\n"
            "  /watch jailbreak! answerability uncertainty hallucination"
        )
    if Path(talk.model.path) in packaged().values() and given.restore is None:
        view.note(_SMOLLM2 + ("\n/all asks what adapters judge." if talk.model.adapters else ""))
    view.note("/help shows the commands, Ctrl-D leaves.")
