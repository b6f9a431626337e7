"""The `alora-gguf` command: one module per subcommand, and the one place that knows the statuses.

Subcommands are imported when they are asked for, so that `--help` needs nothing but click.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Final

import click

from alora_gguf import __version__
from alora_gguf.errors import AloraError, CancelledError

from .render import printable_lines

# name -> what `alora-gguf --help` says of it; the module of that name has it as `command`, except
# for those in _MODULES
_COMMANDS = {
    "analyse": "Say what adapters change and where, by their weights.",
    "bench": "Measure what adapters cost on this machine.",
    "chat": "Chat, with adapters that judge the conversation while it stays cached.",
    "convert": "Turn an adapter of PEFT or MLX into an adapter GGUF.",
    "decide": "Ask typed questions about a state: a probability for every option.",
    "demo": "Chat with a small model while five adapters judge what is said.",
    "export": "Turn an adapter GGUF back into a PEFT directory.",
    "export-index": "Write adapter GGUFs as a library of PEFT directories, for engines on GPUs.",
    "inspect": "Say what an adapter's or a base's GGUF holds.",
    "list": "Show the adapters and bases in the store.",
    "merge": "Write a base with a plain LoRA in its weights, as one GGUF.",
    "pull": "Fetch an adapter or a base from the hub into the store.",
    "rm": "Remove an adapter or a base from the store.",
    "rpc-server": "Compute layers of a model that another machine has.",
    "run": "Ask intrinsics about conversations, for scripts: JSON in, JSON out.",
    "serve": "Serve a base and its adapters over HTTP.",
    "steer": "Make steering vectors of contrast pairs or of a prompt, and measure them.",
    "train": "Train an adapter on conversations and their right answers.",
    "verify": "Measure what an adapter does to a base, and whether that is right.",
}

# where that is another name; this package's `run` is the function below
_MODULES = {"export-index": "export_index", "rpc-server": "rpc_server", "run": "running"}

EXIT_USER = 1  # the user can mend it
EXIT_BUG = 3  # only we can
EXIT_INTERRUPTED = 130


class _LazyGroup(click.Group):
    """A group that lists its commands without importing them."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = _module(cmd_name).command
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{_MODULES.get(name, name)}")


@click.group(
    cls=_LazyGroup,
    epilog="See `alora-gguf COMMAND --help` for a command's options.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="alora-gguf")
def group() -> None:
    """Activated LoRA for llama.cpp: many adapters on one cached conversation."""


# what messages of the package say to programs, as it is said on a command line
_OPTIONS: Final = {
    "exists already; pass overwrite=True": "exists already; pass --force",
    "pass another as template=": "pass another with --chat-template",
}


def run(arguments: list[str]) -> int:
    """Runs the command line and returns its exit status.

    0 done; 1 something the user can mend, said in one sentence; 2 wrong usage; 130 interrupted;
    3 a bug of ours, with a log file. Where nobody reads the output any more, as after `| head -1`,
    click ends it with 1 and without a word.
    """
    # what it has no character for is no reason to fail; on Windows a pipe is not in UTF-8
    if getattr(sys.stdout, "errors", None) == "strict" and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    try:
        # click returns the status of its Exit, as after --help
        status: int | None = group.main(arguments, prog_name="alora-gguf", standalone_mode=False)
    except click.ClickException as error:  # wrong usage; click has the wording
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        return EXIT_INTERRUPTED
    except CancelledError as error:  # in order, and it says what is left
        click.echo(f"Interrupted: {_with_options(error)}", err=True)
        return EXIT_INTERRUPTED
    except (AloraError, OSError) as error:
        click.echo(f"Error: {_with_options(error)}", err=True)
        return EXIT_USER
    except Exception:
        click.echo(
            f"Error: a bug in alora-gguf. Please report it with this file: {_write_log(arguments)}",
            err=True,
        )
        return EXIT_BUG
    return status or 0


def _with_options(error: Exception) -> str:
    """What an error says, of options as the command line has them."""
    text = str(error)
    for python, option in _OPTIONS.items():
        text = text.replace(python, option)
    return printable_lines(text)


def _write_log(arguments: list[str]) -> Path:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="alora-gguf-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write(f"alora-gguf {__version__}\nPython {sys.version}\n{arguments}\n\n")
        traceback.print_exc(file=log)
    return Path(log.name)
