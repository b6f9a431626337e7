"""`alora-gguf rpc-server`: lets another machine compute layers of its model here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from alora_gguf.cli import options

import alora_gguf as ag

_LOCAL = "127.0.0.1"


@click.command("rpc-server")
@click.option(
    "--host", default=_LOCAL, show_default=True, help="This machine's IPv4 address to listen at."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=50052, show_default=True, help="0: a free one."
)
@click.option(
    "--cache",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for large tensors: what is in it is not sent again.",
)
@options.threads
@options.verbose
def command(
    *, host: str, port: int, cache: Path | None, n_threads: int | None, verbose: bool
) -> None:
    """Compute layers of a model that another machine has, as --rpc says there.

    It needs no model of its own: layers come over the network when one is opened, and so do their
    adapters. One process at a time is served, on the GPUs of this machine or on its processors.
    There is no password, and whoever connects can do here what this program can: listen only in a
    network that is yours alone. Ctrl-C ends it.
    """

    def ready(endpoint: str) -> None:
        if host != _LOCAL:
            click.echo(f"Note: whoever reaches {host} can use this machine as you can", err=True)
        click.echo(f"Serving at {endpoint}. Ctrl-C ends it.")

    if not verbose:
        _silence()
    try:
        ag.serve_rpc(host, port, n_threads=n_threads, cache=cache, ready=ready)
    except KeyboardInterrupt:
        click.echo("Ended.", err=True)
        sys.stdout.flush()
        os._exit(0)  # while a thread may compute, with libraries that an ordinary end takes down


def _silence() -> None:
    """Leaves out what llama.cpp prints at each connection; what Python prints goes where it did."""
    sys.stdout.flush()
    kept = os.dup(1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    sys.stdout = open(kept, "w", 1, encoding, errors)  # noqa: SIM115, PTH123
