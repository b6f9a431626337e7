"""Where adapters lie in a library of several, told from their paths alone, and choosing one.

IBM's libraries are laid out as <intrinsic>/<model>/<technology>/ or, the older ones, as
<intrinsic>/<technology>/<model>/; others may lie anyhow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from alora_gguf.errors import InputError
from alora_gguf.files import read_json

from .peft.config import FILE_NAME

TECHNOLOGIES: Final = ("alora", "lora")
_SHOWN: Final = 12  # of a list in a message
# a version or a size in a model's name, such as granite-4.0-micro or gpt-oss-20b
_MODEL: Final = re.compile(r"[a-z].*-v?\d+(\.\d|b\b)", re.IGNORECASE)


@dataclass(frozen=True)
class Pick:
    """Which adapter of a library is meant; what is None may be any.

    intrinsic     such as "answerability"; the difference of `-`, `_` and `.` does not count where
                  that leaves one
    model         the base's name, such as "granite-3.3-2b-instruct"; likewise, nor does "org/"
    technology    "alora" or "lora"

    Raises InputError for an empty name and for an unknown technology.
    """

    intrinsic: str | None = None
    model: str | None = None
    technology: str | None = None

    def __post_init__(self) -> None:
        for option, value in _given(self).items():
            if not value.strip():
                raise InputError(f"{option} is empty; leave it out if any will do")
        if self.technology and self.technology.casefold() not in TECHNOLOGIES:
            raise InputError(f"--technology is '{self.technology}', expected alora or lora")


def _given(pick: Pick) -> dict[str, str]:
    """The options that were given, with the values they have."""
    return {f"--{name}": value for name, value in vars(pick).items() if value is not None}


def _unmet(pick: Pick, path: str, config: Mapping[str, Any] | None = None) -> list[str]:
    """The given options that `path` does not name, nor `config`, an adapter_config.json."""
    parts = [part.casefold() for part in path.split("/")]
    models = [*parts, _base_of(config or {})]
    technologies = set(parts).intersection(TECHNOLOGIES)
    if not technologies and config is not None:
        technologies = {_technology_of(config)}
    meets = {
        "--intrinsic": lambda value: _key(value) in map(_key, parts),
        "--model": lambda value: _key(_name_in(value)) in map(_key, map(_name_in, models)),
        "--technology": lambda value: value.casefold() in technologies,
    }
    return [option for option, value in _given(pick).items() if not meets[option](value)]


def _technology_of(config: Mapping[str, Any]) -> str:
    """What an adapter_config.json says, alora or lora: IBM's older ones have a string for it."""
    tokens = config.get("alora_invocation_tokens")
    return "alora" if tokens is not None or config.get("invocation_string") else "lora"


def _base_of(config: Mapping[str, Any]) -> str:
    """What an adapter_config.json calls the base, PEFT's or mlx-lm's; empty if it does not."""
    return str(config.get("base_model_name_or_path") or config.get("model") or "")


class Layout(NamedTuple):
    """What a library's path says of an adapter."""

    intrinsic: str
    model: str
    technology: str


def layout_of(path: str) -> Layout | None:
    """What the last three parts of a path say, if they are those of a library."""
    intrinsic, *rest = path.split("/")[-3:]
    words = [part.casefold() in TECHNOLOGIES for part in rest]
    if len(rest) != 2 or sum(words) != 1 or not intrinsic:
        return None
    technology, model = rest if words[0] else reversed(rest)
    return Layout(intrinsic, model, technology.casefold())


def lies_in_library(layout: Layout, said: str | None, config: Path, *, is_repo: bool) -> bool:
    """Whether a path that looks like a library's is one's, and not `runs/alora/mine`. `said` is the
    name that the contract gives, if it does.
    """
    intrinsic, model, _ = layout
    if said is not None and _key(said) in map(_key, (intrinsic, model)):
        return _key(said) == _key(intrinsic)
    base = _name_in(_base_of(read_json(config)))
    return is_repo or _key(model) == _key(base) or bool(_MODEL.search(model))


def adapter_paths(files: Iterable[str]) -> list[str]:
    """The directories of `files` (paths with "/") that hold an adapter; "" is their root."""
    found = (file.rpartition("/") for file in files)
    return sorted(directory for directory, _, name in found if name == FILE_NAME)


def choose(
    paths: Sequence[str], wanted: Pick, where: str, is_base: Callable[[str], bool] | None = None
) -> str:
    """The one of `paths` that is wanted; the only one there is, whatever is wanted. Where that
    leaves several, `is_base` says which model's, by its name, and an aLoRA comes before a LoRA.
    """
    if len(paths) == 1:
        return paths[0]
    left = [path for path in paths if not _unmet(wanted, path)]
    for name in filter(None, (wanted.intrinsic, wanted.model)):  # as written beats similar
        if len(left) > 1:
            left = [path for path in left if name.casefold() in path.casefold().split("/")] or left
    left = _likeliest(left, wanted, is_base)
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


def _likeliest(paths: list[str], wanted: Pick, is_base: Callable[[str], bool] | None) -> list[str]:
    found = [(path, layout) for path in paths if (layout := layout_of(path)) is not None]
    if len(found) < len(paths):  # not a library's
        return paths
    if wanted.model is None and is_base is not None and len({each.model for _, each in found}) > 1:
        fitting = {model for model in {each.model for _, each in found} if is_base(model)}
        found = [each for each in found if each[1].model in fitting] or found
    if wanted.technology is None and len({each[:2] for _, each in found}) == 1:
        found = [each for each in found if each[1].technology == "alora"] or found
    return [path for path, _ in found]


def check_wanted(path: str, config: Path, wanted: Pick, where: str) -> None:
    """Raises InputError if neither the path of a chosen adapter nor its configuration is what the
    given options say.
    """
    given = _given(wanted)
    fields = read_json(config) if given else {}
    for option in _unmet(wanted, path, fields):
        found = {
            "--intrinsic": "nothing in its path says so",
            "--model": f"its base is called {_base_of(fields)!r}",
            "--technology": f"it is an adapter of the technology {_technology_of(fields)}",
        }[option]
        if option == "--technology" and given[option].casefold() == _technology_of(fields):
            found = "its path says otherwise"
        raise InputError(
            f"{where}: is not what {option} {given[option]} asks for: {found}; leave the option "
            "out, or give another directory"
        )


def listing(names: Iterable[str]) -> str:
    """Names for a message: a bounded number of them, and nothing that a terminal would obey."""
    all_names = list(names)
    shown = [name or "." for name in all_names[:_SHOWN]]
    text = ", ".join(name if name.isprintable() else ascii(name) for name in shown)
    more = len(all_names) - len(shown)
    return f"{text} and {more} more" if more else text


def _that_match(wanted: Pick) -> str:
    given = " ".join(f"{option} {value}" for option, value in _given(wanted).items())
    return f" for {given}" if given else ""


def _way_out(paths: Sequence[str], wanted: Pick) -> str:
    """The options by which all of `paths` could be told apart, with their values."""
    layouts = [layout_of(path) for path in paths]
    options = []
    for option in ("intrinsic", "model", "technology"):
        values = sorted({getattr(layout, option) for layout in layouts if layout})
        if len(values) > 1 and f"--{option}" not in _given(wanted):
            options.append(f"--{option} ({listing(values)})")
    if not options:
        return "give the directory of one"
    chosen = f"choose with {', '.join(options)}"
    return f"{chosen} or give the directory of one" if None in layouts else chosen


def _key(name: str) -> str:
    """An intrinsic's or a model's name, in one spelling of all that `-`, `_` and `.` make of it."""
    return re.sub(r"[-_.]", "-", name.casefold())


def _name_in(model: str) -> str:
    """A model's name without its organisation."""
    return model.rpartition("/")[2]
