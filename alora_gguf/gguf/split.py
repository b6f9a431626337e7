"""How the files of a model in several parts are called: NAME-00001-of-00003.gguf and so on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_PART: Final = re.compile(
    r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.IGNORECASE
)
MAX_PARTS: Final = 1000


def parts_of(name: str) -> list[str]:
    """The names of all parts of the model that a GGUF is of, in order: [name] if it is whole."""
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    count = int(match["count"])
    if not 0 < int(match["number"]) <= count <= MAX_PARTS:
        return [name]
    ending = name[-len(".gguf") :]
    return [f"{match['stem']}-{i:05}-of-{match['count']}{ending}" for i in range(1, count + 1)]


def stem_of(name: str) -> str:
    """A GGUF's name, with its directories, without its part and ending."""
    match = _PART.fullmatch(name)
    return match["stem"] if match and len(parts_of(name)) > 1 else name[: -len(".gguf")]


def models_in(names: Iterable[str]) -> list[list[str]]:
    """The models among files, by name, each as the names of all its parts, missing ones too."""
    ggufs = sorted(name for name in names if name.lower().endswith(".gguf"))
    return [list(parts) for parts in dict.fromkeys(tuple(parts_of(name)) for name in ggufs)]
