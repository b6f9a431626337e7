"""Options that several commands have, so that they are called and do the same everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

import click
from click.shell_completion import CompletionItem

import alora_gguf as ag

from .bases import packaged

MAX_SCALE: Final = 1000  # as a scale can be anywhere

Attention = Literal["auto", "upstream"]
"""What --attention says."""
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
"""What --cache-type-k and --cache-type-v say."""
_F = TypeVar("_F", bound=Callable[..., Any])
Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


class FilePath(click.Path):
    """A path, which is not empty: that would be the directory at hand."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        """The path; a usage error for an empty one."""
        if value == "":
            self.fail("the path is empty; name a file", param, ctx)
        return super().convert(value, param, ctx)


def store_names(kind: Literal["adapter", "base"] | None = None) -> Completer:
    """Completes names in the store, of one kind or of all, and those of packages' bases; a shell
    completes files where none fits. A store that cannot be read has none.
    """

    def complete(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
        files = [CompletionItem(begun, type="file")] if kind is not None else []
        try:
            entries = ag.Store().contents().entries
        except ag.AloraError:
            return files
        names = {e.name: e.about.repository for e in entries if kind in (None, e.about.kind)}
        if kind == "base":
            names = {**dict.fromkeys(packaged()), **names}
        found = {name: told for name, told in names.items() if name.startswith(begun)}
        return files + [CompletionItem(name, help=told) for name, told in found.items()]

    return complete


def _on_gpu(ctx: click.Context, _param: click.Parameter, layers: int | None) -> int:
    """As many as there can be; says so if there can be none, for nobody should believe otherwise of
    what is measured.
    """
    if layers is None:
        layers = -1 if ctx.params.get("rpc") else 0
    if not layers or ctx.params.get("rpc"):
        return layers
    if ag.Model.can_offload():
        return layers
    click.echo(
        "Note: this build computes on the CPU only, so --gpu-layers changes nothing; README.md "
        "says how to build for a GPU",
        err=True,
    )
    return 0


def named_path(text: str) -> tuple[str, str]:
    """The name and the path that NAME=PATH says, or a path alone, or a name in the store. Raises
    InputError.
    """
    name, equals, path = text.partition("=")
    if equals and ag.Store.is_path(name):  # a path with a sign in it
        name, equals = text, ""
    if not name or (equals and not path):
        raise ag.InputError(f"'{text}': expected NAME=PATH, a path, or a name in the store")
    return (name, path) if equals else (Path(text).name.removesuffix(".gguf"), text)


def named_contract(text: str) -> tuple[str, str]:
    """The adapter's name and the path of an io.yaml that NAME=PATH says. Raises InputError."""
    name, _, path = text.partition("=")
    if not (name and path):
        raise ag.InputError(f"'{text}': expected NAME=PATH, an adapter's name and an io.yaml")
    return name, os.path.expanduser(path)  # noqa: PTH111 - leaves what it cannot


def named_scales(
    texts: Sequence[str], option: str = "--steer", known: Collection[str] = ()
) -> dict[str, float]:
    """The adapters' names and the scales that NAME=SCALE say, or a name alone, at 1; those at 0 are
    left out. Of names that are `known` the sign may be a part. Raises InputError, for a name that
    comes twice too.
    """
    found = dict[str, float]()
    for text in texts:
        name, equals, scale = (text, "", "") if text in known else text.partition("=")
        if not name or (equals and not scale):
            raise ag.InputError(f"{option} {text}: expected NAME=SCALE, such as formal=0.8")
        if name in found:
            raise ag.InputError(f"{option} {name}: is given twice; give it one scale")
        found[name] = read_scale(scale or "1", f"{option} {name}")
    return {name: scale for name, scale in found.items() if scale}


def read_scale(text: str, what: str) -> float:
    """A scale as it is typed. Raises InputError."""
    try:
        scale = float(text)
    except ValueError:
        scale = float("nan")
    if not abs(scale) <= MAX_SCALE:
        raise ag.InputError(
            f"{what}: expected a scale from -{MAX_SCALE} to {MAX_SCALE}, found '{text}'"
        )
    return scale


def given_contract(file: Path | None, without: bool) -> Path | bool:
    """What --contract and --no-contract say to the converter."""
    if file is not None and without:
        raise click.UsageError("give --contract or --no-contract, not both")
    return not without if file is None else file


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """A file's bytes, or its first ones. Raises InputError."""
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise ag.InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def no_template(base: str | Path) -> ag.ModelError:
    """The error for a base that has none, where none was given."""
    return ag.ModelError(
        f"{base}: has no chat template, so it does not say how a conversation is written; give one "
        "with --chat-template FILE, or use a base that was tuned to chat"
    )


model: Final = click.option(
    "-m",
    "--model",
    "base",
    metavar="BASE",
    shell_complete=store_names("base"),
    help="A base's GGUF, its name in the store, or smollm2. Without one: the demo model and its "
    "adapters.",
)
adapters: Final = click.option(
    "-a",
    "--adapter",
    "adapters",
    metavar="NAME=PATH",
    multiple=True,
    shell_complete=store_names("adapter"),
    help="An adapter or steering vector; also a path alone, or a name in the store. Repeatable.",
)
steer: Final = click.option(
    "--steer",
    metavar="NAME=SCALE",
    multiple=True,
    help="Steer replies by a vector, such as formal=0.8; without a scale by 1. Repeatable.",
)
contracts: Final = click.option(
    "--contract",
    "contracts",
    metavar="NAME=PATH",
    multiple=True,
    help="The io.yaml of an adapter that has none, or another one than it has. Repeatable.",
)
contract: Final = click.option(
    "--contract",
    metavar="FILE",
    type=FilePath(),
    help="The io.yaml to put into the GGUF, in place of the one beside the adapter.",
)
no_contract: Final = click.option(
    "--no-contract", is_flag=True, help="Put no io.yaml into the GGUF."
)
template: Final = click.option(
    "--chat-template",
    "template",
    metavar="FILE",
    type=FilePath(),
    help="Jinja to write conversations with, in place of the base's own.",
)
special_tokens: Final = click.option(
    "--special-tokens-in-text",
    "special_tokens_in_text",
    is_flag=True,
    help="Read control tokens that messages and documents quote as such: for text you trust.",
)
prompt_cache: Final = click.option(
    "--prompt-cache",
    "prompt_cache",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="A folder for what conversations begin with (instructions, documents): what is in it is "
    "not read again.",
)
max_tokens: Final = click.option(
    "-n", "--max-tokens", type=click.IntRange(min=1), help="The most tokens of a reply."
)
temperature: Final = click.option(
    "--temperature", "--temp", type=click.FloatRange(min=0), help="0 for the likeliest reply."
)
seed: Final = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), help="For replies that repeat."
)
verbose: Final = click.option("--verbose", is_flag=True, help="Show llama.cpp's own log.")
DEMO_THREADS: Final = 1  # by default: the demo model is so small that a second costs more
threads: Final = click.option(
    "-t",
    "--threads",
    "n_threads",
    type=click.IntRange(1, 512),
    help="Threads to compute with; by default one for each core, on Linux of those that are free.",
)

attention: Final = click.option(
    "--attention",
    type=click.Choice(["auto", "upstream"]),
    default="auto",
    show_default=True,
    help="How the CPU computes attention: by whichever way is faster; or the base's tokens by "
    "llama.cpp's own, bit for bit.",
)


def cells(command: _F) -> _F:
    """Of which types the cache's keys and values are."""
    for name, of, more in (
        ("v", "values", ""),
        ("k", "keys", " Both as q8_0 take half the memory, as q4_0 a quarter (docs/models.md)."),
    ):
        command = click.option(
            f"-ct{name}",
            f"--cache-type-{name}",
            f"type_{name}",
            type=click.Choice(get_args(CacheType)),
            default="f16",
            show_default=True,
            help=f"Type of the cache's {of}.{more}",
        )(command)
    return command


def n_ctx(text: str) -> Callable[[_F], _F]:
    """How many cells a command's cache has; `text` says what for, and how many by default."""
    return click.option("-c", "--n-ctx", "--ctx", type=click.IntRange(min=1), help=text)


gpu_layers: Final = click.option(
    "-ngl",
    "--gpu-layers",
    "n_gpu_layers",
    type=int,
    callback=_on_gpu,
    help="Layers on the GPU, -1 for all; by default none.",
)
rpc: Final = click.option(
    "--rpc",
    metavar="HOST:PORT",
    multiple=True,
    is_eager=True,  # before --gpu-layers, which it says the default of
    help="Compute layers on another machine, where `alora-gguf rpc-server` runs: all, or as many "
    "as --gpu-layers says. Repeatable.",
)
