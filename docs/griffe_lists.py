"""Docstrings as the site shows them: aligned names and texts become lists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

_ITEM = re.compile(r"(?P<names>[\w/.()=, ]*?\w[\w/.()]*)\s{2,}(?P<text>\S.*)")


class Lists(griffe.Extension):
    """Writes `name   what it is` blocks as lists."""

    def on_object(self, *, obj: griffe.Object, loader: Any, **kwargs: Any) -> None:
        """Called for everything that was found."""
        if obj.docstring is None:
            return
        text = obj.docstring.value.replace("][", "]\\[")  # brackets, and no reference
        obj.docstring.value = "\n".join(as_lists(text.split("\n")))


def as_lists(lines: list[str]) -> Iterator[str]:
    """Lines with every block of aligned names and texts as a Markdown list."""
    i = 0
    while i < len(lines):
        item = _ITEM.fullmatch(lines[i])
        starts = i > 0 and not lines[i - 1]
        if item is None or not starts or lines[i].startswith(" "):
            yield lines[i]
            i += 1
            continue
        column = item.start("text")
        while (
            i < len(lines) and (item := _ITEM.fullmatch(lines[i])) and item.start("text") == column
        ):
            words = [item["text"]]
            i += 1
            while i < len(lines) and re.match(rf" {{{column}}}\S", lines[i]):
                words.append(lines[i].strip())
                i += 1
            names = ", ".join(f"`{name}`" for name in re.split(r"[/,]\s*", item["names"].strip()))
            yield f"- {names}: {' '.join(words)}"
