"""hf://owner/repo[/path][@revision]: what a reference to a hub looks like."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alora_gguf.errors import InputError

FORM: Final = "hf://owner/repo[/path][@revision]"
# as huggingface_hub wants names to be; `--` separates them in its cache
_NAME: Final = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
_OTHER_KINDS: Final = ("datasets", "spaces", "kernels", "buckets", "models")
_MAX_NAME: Final = 96


@dataclass(frozen=True)
class HubReference:
    """What a reference stands for.

    repo      "owner/repo"
    path      inside the repository, with "/"; "" for its root
    revision  a branch, tag or commit; None for the default branch
    text      the reference as it was written
    """

    repo: str
    path: str
    revision: str | None
    text: str


def is_reference(text: str | Path) -> bool:
    """Whether it means something on a hub; a Path has made one slash of the two in `hf://`."""
    return re.match(r"hf:[/\\]", str(text)) is not None


def parse_reference(text: str | Path) -> HubReference:
    """Takes a reference apart. Raises InputError, with the expected form, if it is none."""
    text = re.sub(r"^hf:[/\\]+", "hf://", text.as_posix() if isinstance(text, Path) else text)
    address, at, revision = text.removeprefix("hf://").rpartition("@")
    if not at:
        address, revision = revision, ""
    owner, _, rest = address.removesuffix("/").partition("/")
    name, _, path = rest.partition("/")
    if not text.startswith("hf://") or not all(map(_is_name, (owner, name))):
        raise _bad(text, "the owner or the name of the repository is missing or none")
    if owner in _OTHER_KINDS:
        raise _bad(text, f"only model repositories can be read, without '{owner}/' before them")
    if path and not is_safe(path):
        raise _bad(text, "its path must stay inside the repository: names with '/' between them")
    if at and not is_safe(revision):
        raise _bad(text, "its revision is none: after the '@' comes a branch, a tag or a commit")
    return HubReference(f"{owner}/{name}", path, revision if at else None, text)


def is_safe(path: str) -> bool:
    """Whether a path of a repository, with "/", also stays inside a local directory, on any system:
    no `..`, nothing absolute, no drives, no backslashes, no control characters.
    """
    parts = path.split("/")
    return (
        # Windows takes no notice of dots and spaces at a name's end
        all(part.rstrip(". ") and not re.match("[A-Za-z]:", part) for part in parts)
        and "\\" not in path
        and path.isprintable()
    )


def _is_name(text: str) -> bool:
    return len(text) <= _MAX_NAME and _NAME.fullmatch(text) is not None


def _bad(text: str, problem: str) -> InputError:
    shown = text if text.isprintable() else ascii(text)
    return InputError(f"{shown}: is no reference to a hub, expected {FORM}; {problem}")
