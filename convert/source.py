"""The adapters of a directory tree: choosing one, its files, and what is not as it should be.

What is in the files is for others to read, but for the licence that a README gives.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alora_gguf.errors import (
    AloraError,
    ContractError,
    InputError,
    MissingFileError,
    UnsupportedAdapterError,
)
from alora_gguf.files import read_small

from .adapter import WEIGHTS, weights_name
from .library import (
    Pick,
    adapter_paths,
    check_wanted,
    choose,
    layout_of,
    lies_in_library,
    listing,
)
from .mlx.config import MLX_WEIGHTS
from .peft.config import FILE_NAME
from .snapshot import Snapshot, find_configs

PICKLE: Final = "adapter_model.bin"
_CHECKPOINT: Final = re.compile(r"\d+_adapters\.safetensors")  # of mlx-lm, beside the last weights
IO_YAML: Final = ("io.yaml", "io.yml")
CONFIG: Final = "config.json"  # of a base
README: Final = "README.md"
HEAD: Final = "classifier_head.safetensors"  # of Granite Switch's: on a base's last state
MAX_TEXT: Final = 1 << 20  # bytes of an io.yaml, and of a README that are looked at
_MAX_LICENCE: Final = 200
_FRONT_MATTER: Final = re.compile(r"---\s*?\n(.*?)^---\s*?\n", re.DOTALL | re.MULTILINE)
_LICENCE: Final = re.compile(r"^license:.{,200}\n([ -].{,200}\n){,9}", re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """An adapter's files, and where they came from.

    directory  the local directory that holds them
    config     adapter_config.json
    weights    adapter_model.safetensors, or mlx-lm's adapters.safetensors
    io_yaml    the intrinsic's contract, if there is one
    licence    what a README gives, such as "apache-2.0": the adapter's own, or the library's
    name       what to call it: the intrinsic of a library's path, or as its contract says, or
               its directory or repository
    stem       the same with model and technology, as far as a library says, fit for a file name
    repo       "owner/repo" on the hub, if it is a copy of one
    revision   the commit's hash
    path       the adapter's directory in the repository; None for its root
    has_head   whether a classifier's head lies beside it, which is no part of it
    """

    directory: Path
    config: Path
    weights: Path
    io_yaml: Path | None
    licence: str | None
    name: str
    stem: str
    repo: str | None
    revision: str | None
    path: str | None
    has_head: bool = False


def find_in(
    snapshot: Snapshot,
    inside: str,
    wanted: Pick,
    where: str,
    is_base: Callable[[str], bool] | None = None,
) -> Source:
    """The one adapter at or below the directory `inside` of a tree, which `where` names; see
    choose().
    """
    own = f"{inside}/{FILE_NAME}" if inside else FILE_NAME
    if snapshot.file(own) is not None:
        return describe(snapshot, inside, wanted)
    configs, skipped = find_configs(snapshot, inside)
    if not configs:
        raise no_adapter(where, snapshot.names(inside), skipped)
    path = choose(adapter_paths(configs), wanted, where, is_base)
    return describe(snapshot, path, wanted)


def describe(snapshot: Snapshot, path: str, wanted: Pick) -> Source:
    """The adapter at `path` of a tree, whose adapter_config.json is known to be there."""
    prefix = f"{path}/" if path else ""
    directory = snapshot.root.joinpath(*path.split("/"))
    config = snapshot.require(prefix + FILE_NAME)
    file = weights_name(config)
    check_weights(snapshot.names(path), str(directory), file)
    # where the tree is not a repository, the names of the directories above it tell as much
    full = path if snapshot.repo else directory.resolve().as_posix()
    names = f"{path}/{'/'.join(full.split('/')[-3:])}"
    check_wanted(names, config, wanted, str(directory))
    found = (snapshot.file(name) for name in contracts(path))
    io_yaml = next((file for file in found if file is not None), None)
    said = None if io_yaml is None else _name_in(read_small(io_yaml, MAX_TEXT))
    layout = layout_of(full)
    own_name = full.rpartition("/")[2] or (snapshot.repo or "").rpartition("/")[2] or "adapter"
    if io_yaml is None and layout_of(path) is None:
        layout = None  # somebody's own directories, not a library's
    elif layout and not lies_in_library(layout, said, config, is_repo=snapshot.repo is not None):
        layout = None
    name = layout.intrinsic if layout else said or own_name
    return Source(
        directory=directory,
        config=config,
        weights=snapshot.require(prefix + file),
        io_yaml=io_yaml,
        licence=_licence(snapshot, path),
        name=name.encode("utf-8", "replace").decode(),  # a directory's may be no Unicode
        stem=_file_name("-".join(layout or [name])),
        repo=snapshot.repo,
        revision=snapshot.revision,
        path=(path or None) if snapshot.repo else None,
        has_head=snapshot.file(prefix + HEAD) is not None,
    )


def _name_in(io_yaml: bytes) -> str | None:
    """The name that a contract gives, if it can be a file's; a broken one is refused later."""
    from alora_gguf.intrinsics.contract import Contract  # imports PyYAML

    with contextlib.suppress(ContractError):
        name = Contract.parse(io_yaml).name
        return name if name and _file_name(name) == name else None
    return None


def contracts(path: str) -> list[str]:
    """Where a library may keep the io.yaml of the adapter at `path`, the likeliest place first."""
    layout = layout_of(path)
    folders = [f"{path}/" if path else ""]
    folders += [f"io_configs/{layout.intrinsic}/"] if layout else []
    return [f"{folder}{name}" for folder in folders for name in IO_YAML]


def readmes(path: str) -> list[str]:
    """The READMEs that may give the licence of the adapter at `path`, its own first."""
    return [f"{path}/{README}", README] if path else [README]


def check_weights(names: Collection[str], where: str, file: str) -> None:
    """Refuses a directory without the weights that its configuration belongs to, or with a pickle,
    several files or another program's in their place.
    """
    if file in names:
        return
    other = MLX_WEIGHTS if file == WEIGHTS else WEIGHTS
    if other in names:
        whose = "PEFT's" if file == WEIGHTS else "mlx-lm's"
        raise UnsupportedAdapterError(
            f"{where}: its {FILE_NAME} is {whose}, but its weights are not ({other}, expected "
            f"{file}); copy the {FILE_NAME} that was saved with the weights beside them"
        )
    if file == MLX_WEIGHTS:
        raise _no_mlx_weights(names, where)
    if PICKLE in names:
        raise UnsupportedAdapterError(
            f"{where}: holds only {PICKLE}, a pickle, which can run any code when it is loaded; "
            "load it with PEFT where you trust it and save it again: save_pretrained(..., "
            f"safe_serialization=True) writes {WEIGHTS}"
        )
    parts = [name for name in names if re.fullmatch(r"adapter_model.*\.(index\.json|\d+)", name)]
    parts += [n for n in names if re.fullmatch(r"adapter_model-\d+-of-\d+\.(safetensors|bin)", n)]
    if parts:
        raise UnsupportedAdapterError(
            f"{where}: its weights are in several files ({listing(sorted(parts))}), expected one "
            f"{WEIGHTS}; load the adapter with PEFT and save it again with save_pretrained()"
        )
    raise MissingFileError(
        f"{where}/{WEIGHTS}: there is no such file; download the adapter again, or save it with "
        f"PEFT's save_pretrained(), which writes it beside {FILE_NAME}",
        f"{where}/{WEIGHTS}",
    )


def _no_mlx_weights(names: Collection[str], where: str) -> AloraError:
    checkpoints = sorted(filter(_CHECKPOINT.fullmatch, names))
    if checkpoints:
        return InputError(
            f"{where}: holds checkpoints of a training ({listing(checkpoints)}) and no "
            f"{MLX_WEIGHTS}; copy the one that you mean to that name"
        )
    if "adapters.npz" in names:
        return UnsupportedAdapterError(
            f"{where}: holds only adapters.npz, as mlx-lm wrote it until 2024, expected "
            f"{MLX_WEIGHTS}; load it with mx.load() and save it with mx.save_safetensors()"
        )
    return MissingFileError(
        f"{where}/{MLX_WEIGHTS}: there is no such file; mlx_lm.lora writes it beside {FILE_NAME}: "
        "copy it from there",
        f"{where}/{MLX_WEIGHTS}",
    )


def no_adapter(where: str, names: Collection[str], skipped: Collection[str] = ()) -> AloraError:
    """Why there is no adapter in a directory, of which `where` stands for the path; it holds
    `names`, and `skipped` was not looked into.
    """
    weights = [name for name in (WEIGHTS, PICKLE, MLX_WEIGHTS) if name in names]
    if weights:
        file = MLX_WEIGHTS if weights == [MLX_WEIGHTS] else WEIGHTS
        return MissingFileError(
            f"{where}/{FILE_NAME}: there is no such file; an adapter's directory holds "
            f"{FILE_NAME} and {file}: copy it from where the weights came from",
            f"{where}/{FILE_NAME}",
        )
    models = [n for n in sorted(names) if re.fullmatch(r"(pytorch_)?model.*\.(safetensors|bin)", n)]
    if CONFIG in names or models:
        return InputError(
            f"{where}: holds a whole model ({listing(models or [CONFIG])}), not an "
            f"adapter; one that was merged cannot be taken out again. Give the directory with "
            f"{FILE_NAME}, as PEFT's save_pretrained() writes it before merging"
        )
    ggufs = [name for name in sorted(names) if name.endswith(".gguf")]
    if ggufs:
        return InputError(
            f"{where}: holds GGUF files ({listing(ggufs)}), which need no conversion "
            f"(`alora-gguf pull --file` stores one), and no {FILE_NAME}; give the PEFT adapter's "
            "directory"
        )
    if HEAD in names:
        return InputError(
            f"{where}: holds a classifier's head ({HEAD}) and no adapter; give its directory here, "
            "and say what its rows stand for, in their order (--labels LABEL,LABEL)"
        )
    unread = f" (not looked into: {listing(skipped)})" if skipped else ""
    return InputError(
        f"{where}: holds no PEFT adapter: there is no {FILE_NAME} in it or below it{unread}; "
        "give the directory that PEFT's save_pretrained() wrote"
    )


def check_base(where: str, names: Collection[str], prefix: str = "") -> None:
    """Raises InputError, with what to write instead, where a model's directory has no config.json.

    It holds `names`, each of which is written with the prefix.
    """
    if CONFIG in names:
        return
    ggufs = [prefix + name for name in names if name.endswith(".gguf")]
    if ggufs:
        raise InputError(
            f"{where}: holds GGUF files and no {CONFIG}; name one of them: {listing(ggufs)}"
        )
    what = "is an adapter, not a base" if FILE_NAME in names else f"has no {CONFIG}"
    raise InputError(
        f"{where}: {what}; expected a model's directory or repository, or the name of a GGUF in "
        f"it. It holds {listing(names) or 'nothing'}"
    )


def _licence(snapshot: Snapshot, path: str) -> str | None:
    for readme in filter(None, map(snapshot.file, readmes(path))):
        with contextlib.suppress(OSError), readme.open("rb") as file:
            found = licence_of(file.read(MAX_TEXT).decode("utf-8-sig", "replace"))
            if found:
                return found
    return None


def licence_of(readme: str) -> str | None:
    """The `license` of a README's front matter, the YAML between its first line `---` and the next.

    None if there is none, or if it is not one: a README is prose, and no reason to fail.
    """
    front = _FRONT_MATTER.match("\n".join(readme.splitlines()) + "\n")
    # of the whole, only this key and the indented lines after it: front matter may be long
    entry = front and _LICENCE.search(front[1])
    if not entry:
        return None
    import yaml

    try:
        value: Any = yaml.safe_load(entry[0])["license"]
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError):
        return None
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, str) and v.isprintable() and v.strip() for v in values):
        return None
    text = ", ".join(v.strip() for v in values)
    return text if len(text) <= _MAX_LICENCE else None


def _file_name(text: str) -> str:
    """Letters, digits, `-`, `_` and `.` of a name, not beginning with a dot or a dash."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:100]
    return safe or "adapter"
