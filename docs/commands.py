"""The commands of `alora-gguf` as a page: what --help says, and which page says more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
from alora_gguf.cli import group

FOLDER = Path(__file__).parent
_WIDTH: Final = 78  # what click leaves of a terminal's 80 columns

# the page about a command that has none of its own name
_PAGES: Final = {
    "demo": "tutorial",
    "export": "convert",
    "export-index": "convert",
    "inspect": "convert",
    "list": "pull",
    "merge": "convert",
    "rm": "pull",
    "steer": "steering",
}


def names() -> list[str]:
    """All commands, and behind each those that it has."""
    found = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        inner = sorted(command.commands) if isinstance(command, click.Group) else []
        found += [name, *(f"{name} {each}" for each in inner)]
    return found


def help_text(name: str | None = None) -> list[str]:
    """The lines of a command's --help, or of the program's own, as 80 columns show it."""
    settings = {**group.context_settings, "terminal_width": _WIDTH}
    program = click.Context(group, info_name="alora-gguf", **settings)
    if name is None:
        return group.get_help(program).splitlines()
    found: click.Command | None = group
    context = program
    for word in name.split():
        found = found.get_command(context, word) if isinstance(found, click.Group) else None
        if found is None:
            raise SystemExit(f"there is no command {name}")
        # the program's settings, such as -h, count for its commands
        context = click.Context(
            found, parent=context, info_name=word, terminal_width=_WIDTH, **found.context_settings
        )
    assert found is not None  # noqa: S101 - there is a word in every name
    return found.get_help(context).splitlines()


def chat_commands() -> Iterator[str]:
    """What a line of `alora-gguf chat` that begins with a slash does."""
    from alora_gguf.cli.chat.commands import COMMANDS

    yield from ("| command | |", "|---|---|")
    for command in dict.fromkeys(COMMANDS.values()):
        usage = command.usage.replace("|", "\\|")
        yield f"| `{usage}` | {command.help.replace('|', chr(92) + '|')} |"
    yield "| `/NAME [ARGUMENTS]` | ask the adapter of that name |"


def commands() -> Iterator[str]:
    """Every command with its --help."""
    yield from ("```text", *help_text(), "```")
    for name in names():
        yield from ("", f"## alora-gguf {name}", "")
        page = f"{_PAGES.get(name.split()[0], name)}.md"
        if (FOLDER / page).is_file():
            yield from (f"More: [{page}](../{page})", "")
        yield from ("```text", *help_text(name), "```")
