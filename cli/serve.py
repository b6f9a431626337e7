"""`alora-gguf serve`: a base and its adapters over HTTP."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from alora_gguf.cli import options
from alora_gguf.cli.adapters import adapter_file
from alora_gguf.cli.bases import NamedBase
from alora_gguf.cli.options import DEMO_THREADS, named_contract, named_path
from alora_gguf.cli.render import printable

import alora_gguf as ag

_N_CLOSED: Final = 16  # conversations that are over and kept: clients come back with the next turn
_LOCAL: Final = "127.0.0.1"


@click.command("serve")
@options.model
@options.adapters
@options.contracts
@click.option("--host", default=_LOCAL, show_default=True, help="The address to listen at.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: a free one."
)
@click.option(
    "--name",
    metavar="NAME",
    help="What to call the base; by default what -m says, or a path's file.",
)
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="ALORA_API_KEY",
    help="What requests must bear; better in the environment, as ALORA_API_KEY.",
)
@click.option(
    "--allow-host", "hosts", metavar="NAME", multiple=True, help="A name of this host. Repeatable."
)
@click.option(
    "--cors",
    "origins",
    metavar="ORIGIN",
    multiple=True,
    help="Whose pages may ask, such as http://localhost:3000, or * for any. Repeatable.",
)
@click.option(
    "--adapters-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Let requests load adapters from below DIR, and unload them.",
)
@click.option(
    "--parallel",
    "n_parallel",
    type=click.IntRange(1, 64),
    default=16,
    show_default=True,
    help="Requests that are answered at a time.",
)
@click.option(
    "--queue",
    "n_waiting",
    type=click.IntRange(0, 10_000),
    default=64,
    show_default=True,
    help="Requests that may wait; further ones are told to come again.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    default=10.0,
    show_default=True,
    help="Seconds that requests have to end when the server is stopped.",
)
@click.option(
    "--index",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write an index of the adapters to DIR, with which mellea asks them, and say how.",
)
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="The most tokens of a reply whose request does not say.",
)
@options.n_ctx(
    "Cells of the cache, which all conversations share; by default the context that the model "
    "was trained for, but at most 4096."
)
@options.template
@options.special_tokens
@options.prompt_cache
@options.threads
@options.gpu_layers
@options.rpc
@options.cells
@options.attention
@options.verbose
def command(
    *,
    base: str | None,
    adapters: tuple[str, ...],
    contracts: tuple[str, ...],
    host: str,
    port: int,
    grace: float,
    index: Path | None,
    max_tokens: int,
    n_ctx: int | None,
    template: Path | None,
    special_tokens_in_text: bool,
    prompt_cache: Path | None,
    n_threads: int | None,
    n_gpu_layers: int,
    rpc: tuple[str, ...],
    type_k: options.CacheType,
    type_v: options.CacheType,
    attention: options.Attention,
    verbose: bool,
    **settings: Any,
) -> None:
    """Serve a base and its adapters to clients that speak OpenAI's API, and others.

    All adapters work on one cache: what a conversation begins with is read once, whoever asks.
    docs/serve.md has the doors and a snippet for each client. Ctrl-C ends it.
    """
    if settings["api_key"] is None and os.environ.get("ALORA_API_KEY") == "":
        settings["api_key"] = ""  # refused, as --api-key "" is: a variable that was not set, say
    try:
        from alora_gguf.serve import Server, Settings, program, write_index
    except ModuleNotFoundError as error:
        raise ag.InputError(
            f"serve needs {error.name}, which is not installed: pip install 'alora-gguf[serve]'"
        ) from error

    named = NamedBase.of(base)
    found = dict(named.adapters)
    for text in adapters:
        name, path = named_path(text)
        if name in found:
            raise ag.InputError(f"--adapter: two adapters are named '{name}'; write OTHER=PATH")
        found[name] = adapter_file(path, named.path)
    read = {name: ag.load_contract(path) for name, path in map(named_contract, contracts)}
    if strange := [name for name in read if name not in found]:
        known = ", ".join(found) or "none"
        raise ag.InputError(
            f"--contract: is for '{strange[0]}', which is no adapter here (there are: {known})"
        )
    if settings["name"] is None and (base is None or not ag.Store.is_path(base)):
        settings["name"] = base or "demo"
    n_parallel = settings["n_parallel"]
    load = partial(
        _open,
        named.path,
        found,
        read,
        n_ctx=n_ctx,
        n_threads=n_threads or (DEMO_THREADS if base is None else None),
        n_gpu_layers=n_gpu_layers,
        rpc=rpc,
        type_k=type_k,
        type_v=type_v,
        attention=attention,
        # a conversation and a fork of it for each request, and what is over
        n_seq_max=min(256, 2 * n_parallel + _N_CLOSED + 1),
        n_pooled=_N_CLOSED,
        special_tokens_in_text=special_tokens_in_text,
        prompt_cache=prompt_cache,
        verbose=verbose,
    )
    jinja = None if template is None else options.read_bytes(template).decode("utf-8", "replace")
    given = Settings(**settings, template=jinja, max_tokens=max_tokens)

    def ready(url: str) -> None:
        if index is not None:
            for why in write_index(server.service, index):
                click.echo(f"Not in the index: {printable(why)}", err=True)
            click.echo(program(server.service, url, index))
        click.echo(f"Serving {printable(server.service.name)} at {url}")
        click.echo(f"Adapters: {', '.join(map(printable, found)) or 'none'}")
        key = "An API key is asked for" if settings["api_key"] else "Any API key will do"
        click.echo(f"{key}. Ctrl-C ends it.")

    server = Server(load, given, host=host, port=port, grace=grace, ready=ready)
    if host != _LOCAL and not settings["api_key"]:
        click.echo(
            f"Note: {host} is open to others without a key; --api-key asks for one", err=True
        )
    click.echo(f"Loading {os.fspath(named.path)}", err=True)
    server.serve_until_stopped()


def _open(
    base: Path, adapters: dict[str, Path], contracts: dict[str, ag.Contract], **how: Any
) -> ag.Model:
    model = ag.Model(base, adapters=adapters, **how)
    for name, contract in contracts.items():
        model.set_contract(name, contract)
    return model
