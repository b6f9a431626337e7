"""Tables of public names in reference/python.md, and what the site shows below them.

A page lists them where it wants them, <!-- names MODULE: A, B --> ... <!-- end names -->, or all of
MODULE.__all__ if it names none.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import griffe

from .house import copy_tree

_TABLES: Final = re.compile(
    r"(?P<begin><!-- names (?P<module>[\w.]+)(: (?P<names>[\w, ]+))? -->).*?"
    r"(?P<end><!-- end names -->)",
    re.DOTALL,
)


def with_tables(page: str) -> str:
    """The page with its tables made again."""
    return _TABLES.sub(lambda found: "\n".join(_lines(found)), page)


def errors() -> Iterator[str]:
    """The tree drawn in errors.py, and every class of it for the site."""
    from alora_gguf import errors as module

    lines = (module.__doc__ or "").splitlines()
    tree = [line for line in lines if line.lstrip("│ ").startswith(("AloraError", "├", "└"))]
    yield from ("```text", *tree, "```", "")
    for line in tree:
        found = re.search(r"\w+Error", line)
        yield f"<!-- ::: alora_gguf.errors.{found[0] if found else ''} -->"


def _lines(found: re.Match[str]) -> Iterator[str]:
    objects = list(_objects(found["module"], re.findall(r"\w+", found["names"] or "")))
    yield from (found["begin"], "| name | what it is | file |", "|---|---|---|")
    for each in objects:
        file = _file(each)
        yield f"| `{each.name}` | {_summary(each)} | [{file.name}](../../{file.as_posix()}) |"
    yield ""
    for each in objects:
        yield f"<!-- ::: {each.canonical_path} -->"
    yield found["end"]


def _objects(module: str, names: list[str]) -> Iterator[griffe.Object]:
    """Of a module's names, or of all in its `__all__`, where they are defined."""
    members = (
        _package()[module.removeprefix("alora_gguf").lstrip(".")] if "." in module else _package()
    )
    for name in names or members.exports or ():
        found = members[str(name)]
        yield found.final_target if isinstance(found, griffe.Alias) else found


@functools.cache
def _package() -> griffe.Object:
    """The package's sources, read and not imported."""
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        found = griffe.load(
            "alora_gguf", search_paths=[folder], allow_inspection=False, try_relative_path=False
        )
    return found.final_target if isinstance(found, griffe.Alias) else found


def _file(found: griffe.Object) -> Path:
    """Where it is defined in the repository."""
    parts = Path(str(found.filepath)).parts
    inside = parts[len(parts) - parts[::-1].index("alora_gguf") :]
    return Path(*inside) if inside[0] in ("convert", "cli") else Path("alora_gguf", *inside)


def _summary(found: griffe.Object) -> str:
    """The first sentence of a docstring."""
    text = found.docstring.value if found.docstring else ""
    first = re.split(r"(?<=[.;:])\s(?![^()]*\))|\n\n", text, maxsplit=1)[0]
    return " ".join(first.split()).rstrip(".;:").replace("|", "\\|")
