"""A classifier's head alone in a GGUF file, on what the base computes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alora_gguf._calls import checked

from . import head
from .adapter import (
    INVOCATION,
    Begins,
    Problem,
    check_head,
    check_trained_on,
    invocation_problems,
    read_sound,
)
from .base import BaseFile
from .head import Classifier
from .header import GGUFHeader


@checked
@dataclass(frozen=True, eq=False)
class ClassifierFile:
    """A checked classifier's head.

    It is asked as an activated LoRA is: `invocation` follows the conversation, and at its last
    token the labels are scored. Nothing is computed otherwise than by the base. `identity` is the
    hash of labels and numbers. Of `temperatures` it has none; `rank` is 0 and `targets` are none,
    for it changes no weights.
    """

    path: Path
    name: str
    architecture: str
    classifier: Classifier
    invocation: tuple[int, ...]
    invocation_text: str | None
    io_yaml: str | None = field(repr=False)
    identity: str
    temperatures: Mapping[str, float] = field(default_factory=dict, repr=False)
    rank: int = 0
    targets: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["classifier"]:
        """What it is."""
        return head.KIND

    @property
    def labels(self) -> tuple[str, ...]:
        """What it tells apart."""
        return self.classifier.labels

    @property
    def begins(self) -> Begins:
        """At its invocation."""
        return "invocation"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ClassifierFile:
        """Reads a file and checks everything that needs no base. Raises AdapterFormatError, and
        MissingFileError.
        """
        file = Path(path)
        _, header = read_sound(file, "a classifier's GGUF file", problems)
        found = Classifier.of(header)
        assert found is not None  # noqa: S101 - problems() has looked
        told = hashlib.sha256()
        for part in found.parts():
            told.update(part)

        def text(key: str) -> str | None:
            value = header.metadata.get(key)
            return value if isinstance(value, str) and value else None

        return cls(
            path=file,
            name=text("general.name") or file.stem,
            architecture=header.architecture,
            classifier=found,
            invocation=header.array(INVOCATION),
            invocation_text=text("alora.invocation_text"),
            io_yaml=text("alora.io_yaml"),
            identity=told.hexdigest(),
        )

    def check_base(self, base: BaseFile, n_vocab: int) -> None:
        """Raises AdapterMismatchError unless the head fits this base of `n_vocab` tokens."""
        check_trained_on(self, base, n_vocab)
        check_head(self.classifier, self.path, base)

    def without_data(self) -> ClassifierFile:
        """Itself: it is its numbers."""
        return self


def is_classifier(header: GGUFHeader) -> bool:
    """Whether a header says that its file is a classifier's head."""
    return header.metadata.get("adapter.type") == head.KIND


def problems(header: GGUFHeader) -> Iterator[Problem]:
    """Everything that is wrong with a classifier's file, as far as its header and no base tell."""
    if INVOCATION not in header.metadata:
        yield Problem(f"{INVOCATION} is missing: the token at which its head reads")
    yield from invocation_problems(header)
    yield from map(Problem, head.problems(header))
    for name in header.tensors:
        if name not in (head.WEIGHT, head.BIAS):
            yield Problem(f"tensor '{name}' is no part of a classifier's head")
