"""Where adapters lie in a library of several, told from their paths alone, and choosing one.

IBM's libraries are laid out as <intrinsic>/<model>/<technology>/ or, the older ones, as
<intrinsic>/<technology>/<model>/; others may lie anyhow. No file is opened here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from alora_gguf.errors import InputError

from .peft.config import FILE_NAME

TECHNOLOGIES: Final = ("alora", "lora")
_SHOWN: Final = 12  # of a list in a message


@dataclass(frozen=True)
class Layout:
    """What a library's path says of an adapter."""

    intrinsic: str
    model: str
    technology: str

    @property
    def stem(self) -> str:
        """A file name that tells all three."""
        return f"{self.intrinsic}-{self.model}-{self.technology}"


@dataclass(frozen=True)
class Wanted:
    """Which adapter of a library is meant; what is None may be any.

    Raises InputError for an empty name and for an unknown technology.
    """

    intrinsic: str | None = None
    model: str | None = None
    technology: str | None = None

    def __post_init__(self) -> None:
        for option, value in self.given().items():
            if not value.strip():
                raise InputError(f"{option} is empty; leave it out if any will do")
        if self.technology and self.technology.casefold() not in TECHNOLOGIES:
            raise InputError(f"--technology is '{self.technology}', expected alora or lora")

    def given(self) -> dict[str, str]:
        """The options that were given, with the values they have."""
        options = {
            "--intrinsic": self.intrinsic,
            "--model": self.model,
            "--technology": self.technology,
        }
        return {option: value for option, value in options.items() if value is not None}

    def unmet(self, path: str, config: Mapping[str, Any] | None = None) -> list[str]:
        """The given options that `path` does not name, nor `config`, an adapter_config.json."""
        parts = [part.casefold() for part in path.split("/")]
        out = []
        if self.intrinsic is not None and self.intrinsic.casefold() not in parts:
            out.append("--intrinsic")
        models = [*parts, str((config or {}).get("base_model_name_or_path") or "")]
        if self.model is not None and _model_key(self.model) not in map(_model_key, models):
            out.append("--model")
        technologies = set(parts).intersection(TECHNOLOGIES)
        if not technologies and config is not None:
            technologies = {technology_of(config)}
        if self.technology is not None and self.technology.casefold() not in technologies:
            out.append("--technology")
        return out


def technology_of(config: Mapping[str, Any]) -> str:
    """What an adapter_config.json says, alora or lora: IBM's older ones have a string for it."""
    tokens = config.get("alora_invocation_tokens")
    return "alora" if tokens is not None or config.get("invocation_string") else "lora"


def layout_of(path: str) -> Layout | None:
    """What the last three parts of a path say, if they are those of a library."""
    intrinsic, *rest = path.split("/")[-3:]
    words = [part.casefold() in TECHNOLOGIES for part in rest]
    if len(rest) != 2 or sum(words) != 1 or not intrinsic:
        return None
    technology, model = rest if words[0] else reversed(rest)
    return Layout(intrinsic, model, technology.casefold())


def adapter_paths(files: Iterable[str]) -> list[str]:
    """The directories of `files` (paths with "/") that hold an adapter; "" is their root."""
    found = (file.rpartition("/") for file in files)
    return sorted(directory for directory, _, name in found if name == FILE_NAME)


def choose(paths: Sequence[str], wanted: Wanted, where: str) -> str:
    """The one of `paths` that is wanted; the only one there is, whatever is wanted.

    Raises InputError, with the candidates and the options that would tell them apart, if there is
    not exactly one. `paths` must not be empty; `where` stands for the library in messages.
    """
    if len(paths) == 1:
        return paths[0]
    left = [path for path in paths if not wanted.unmet(path)]
    if wanted.model is not None and len(left) > 1:  # a name as it is written beats a similar one
        name = wanted.model.casefold()
        left = [path for path in left if name in path.casefold().split("/")] or left
    if len(left) == 1:
        return left[0]
    if left:
        raise InputError(
            f"{where}: holds {len(left)} adapters{_that_match(wanted)}, expected one; "
            f"{_way_out(left, wanted)}: {listing(left)}"
        )
    raise InputError(
        f"{where}: none of its {len(paths)} adapters is{_that_match(wanted)}; there are "
        f"{listing(paths)}"
    )


def check_wanted(path: str, config: Mapping[str, Any], wanted: Wanted, where: str) -> None:
    """Raises InputError if neither the path of a chosen adapter nor its configuration is what the
    given options say.
    """
    unmet = wanted.unmet(path, config)
    if unmet:
        option = unmet[0]
        said = wanted.given()[option]
        found = {
            "--intrinsic": "nothing in its path says so",
            "--model": f"its base_model_name_or_path is {config.get('base_model_name_or_path')!r}",
            "--technology": f"it is an adapter of the technology {technology_of(config)}",
        }[option]
        if option == "--technology" and said.casefold() == technology_of(config):
            found = "its path says otherwise"
        raise InputError(
            f"{where}: is not what {option} {said} asks for: {found}; leave the option out, or "
            "give another directory"
        )


def listing(names: Iterable[str]) -> str:
    """Names for a message: a bounded number of them, and nothing that a terminal would obey."""
    all_names = list(names)
    shown = [name or "." for name in all_names[:_SHOWN]]
    text = ", ".join(name if name.isprintable() else ascii(name) for name in shown)
    more = len(all_names) - len(shown)
    return f"{text} and {more} more" if more else text


def _that_match(wanted: Wanted) -> str:
    given = " ".join(f"{option} {value}" for option, value in wanted.given().items())
    return f" for {given}" if given else ""


def _way_out(paths: Sequence[str], wanted: Wanted) -> str:
    """The options by which all of `paths` could be told apart, with their values."""
    layouts = [layout_of(path) for path in paths]
    options = []
    for option in ("intrinsic", "model", "technology"):
        values = sorted({getattr(layout, option) for layout in layouts if layout})
        if len(values) > 1 and f"--{option}" not in wanted.given():
            options.append(f"--{option} ({listing(values)})")
    if not options:
        return "give the directory of one"
    chosen = f"choose with {', '.join(options)}"
    return f"{chosen} or give the directory of one" if None in layouts else chosen


def _model_key(name: str) -> str:
    """A model's name without its organisation; `-`, `_` and `.` count as the same."""
    return re.sub(r"[-_.]", "-", name.rpartition("/")[2].casefold())
