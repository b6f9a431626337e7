"""hf://owner/repo[@revision][/path]: a reference to a hub, in huggingface_hub's form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alora_gguf.errors import InputError

FORM: Final = "hf://owner/repo[@revision][/path]"


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

    def to(self, path: str) -> str:
        """The reference to another path of the same revision."""
        return f"hf://{self.repo}{(self.revision and f'@{self.revision}') or ''}/{path}"


def is_reference(text: str | Path) -> bool:
    """Whether it means something on a hub; a Path has made one slash of the two in `hf://`."""
    return re.match(r"hf:[/\\]", str(text)) is not None


def parse_reference(text: str | Path) -> HubReference:
    """Takes a reference apart. Raises InputError, with the expected form, if it is not one."""
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    text = re.sub(r"^hf:[/\\]+", "hf://", text.as_posix() if isinstance(text, Path) else text)
    if not text.startswith("hf://"):
        raise _bad(text, "it begins with hf://")
    try:
        uri = parse_hf_uri(text)
    except HfUriError as error:
        raise _bad(text, error.msg.strip(". ")) from None
    if uri.type != "model":
        raise _bad(text, f"only model repositories can be read, without '{uri.type}s/' before them")
    path, at, revision = uri.path_in_repo.rpartition("@")
    if at and uri.revision is None:
        right, literal = (f"hf://{uri.id}@{part}" for part in (f"{revision}/{path}", "main/"))
        raise _bad(
            text,
            f"the revision stands before the path: {right}, or, if the '@' is part of a name, "
            f"{literal}{uri.path_in_repo}",
        )
    if uri.path_in_repo and not is_safe(uri.path_in_repo):
        raise _bad(text, "its path must stay inside the repository: names with '/' between them")
    if uri.revision is not None and not is_safe(uri.revision):
        raise _bad(text, "after the '@' comes a branch, a tag or a commit")
    return HubReference(uri.id, uri.path_in_repo, uri.revision, text)


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


def _bad(text: str, problem: str) -> InputError:
    shown = text if text.isprintable() else ascii(text)
    problem = problem if problem.isprintable() else ascii(problem)
    return InputError(f"{shown}: is not a reference to a hub, expected {FORM}; {problem}")
