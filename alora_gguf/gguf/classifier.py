"""A classifier's head in a GGUF file: labels, and a linear layer that scores them by the state that
the base computes at one token. Names of tensors and keys are llama.cpp's for its own classifiers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alora_gguf._calls import checked
from alora_gguf.errors import AdapterFormatError, AdapterMismatchError

from .adapter import (
    INVOCATION,
    Begins,
    Problem,
    check_trained_on,
    invocation_problems,
    read_sound,
)
from .base import BaseFile
from .header import GGUFHeader
from .parser import ArrayRef, ValueType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KIND: Final = "classifier"  # adapter.type
WEIGHT: Final = "cls.output.weight"
BIAS: Final = "cls.output.bias"
LABELS: Final = "{}.classifier.output_labels"
MAX_LABELS: Final = 64
"""As many answers as are told apart in one pass."""


@checked
@dataclass(frozen=True, eq=False)
class ClassifierFile:
    """A checked classifier's head.

    It is asked as an activated LoRA is: `invocation` follows the conversation, and at its last
    token the labels are scored: softmax(weight · h + bias), h being the base's state [n_embd] there
    after the last norm. Nothing is computed otherwise than by the base. `weight` is [n_labels,
    n_embd], `bias` [n_labels], float32. `identity` is the hash of both and of the labels. Of
    `temperatures` it has none; `rank` is 0 and `targets` are none, for it changes no weights.
    """

    path: Path
    name: str
    architecture: str
    labels: tuple[str, ...]
    invocation: tuple[int, ...]
    invocation_text: str | None
    io_yaml: str | None = field(repr=False)
    weight: NDArray[np.float32] = field(repr=False)
    bias: NDArray[np.float32] = field(repr=False)
    identity: str
    temperatures: Mapping[str, float] = field(default_factory=dict, repr=False)
    rank: int = 0
    targets: tuple[str, ...] = ()

    @property
    def begins(self) -> Begins:
        """At its invocation."""
        return "invocation"

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ClassifierFile:
        """Reads a file and checks everything that needs no base. Raises AdapterFormatError, and
        MissingFileError.
        """
        import numpy as np

        file = Path(path)
        _, header = read_sound(file, "a classifier's GGUF file", problems)
        weight, bias = (
            np.frombuffer(bytes(header.tensor_data(name)), "<f4") for name in (WEIGHT, BIAS)
        )
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise AdapterFormatError(
                f"{file}: its head holds NaN or infinite values; its training has diverged, or the "
                "file is damaged"
            )
        labels = labels_in(header)
        told = hashlib.sha256(repr((labels, header.tensors[WEIGHT].shape)).encode())
        for values in (weight, bias):
            told.update(values.tobytes())

        def text(key: str) -> str | None:
            value = header.metadata.get(key)
            return value if isinstance(value, str) and value else None

        return cls(
            path=file,
            name=text("general.name") or file.stem,
            architecture=header.architecture,
            labels=labels,
            invocation=header.array(INVOCATION),
            invocation_text=text("alora.invocation_text"),
            io_yaml=text("alora.io_yaml"),
            weight=weight.reshape(len(labels), -1),
            bias=bias,
            identity=told.hexdigest(),
        )

    def check_base(self, base: BaseFile, n_vocab: int) -> None:
        """Raises AdapterMismatchError unless the head fits this base of `n_vocab` tokens."""
        check_trained_on(self, base, n_vocab)
        n_embd = self.weight.shape[1]
        if base.n_embd != n_embd:
            raise AdapterMismatchError(
                f"{self.path}: its head reads states of {n_embd} values, but {base.path} computes "
                f"{base.n_embd}; use the base it was trained on"
            )

    def without_data(self) -> ClassifierFile:
        """Itself: it is its numbers."""
        return self


def is_classifier(header: GGUFHeader) -> bool:
    """Whether a header says that its file is a classifier's head."""
    return header.metadata.get("adapter.type") == KIND


def labels_in(header: GGUFHeader) -> tuple[str, ...]:
    """The labels of a header, none where they are not as they should be."""
    key = LABELS.format(header.metadata.get("general.architecture"))
    ref = header.metadata.get(key)
    is_texts = isinstance(ref, ArrayRef) and ref.type is ValueType.STRING
    return header.array(key) if is_texts else ()


def label_problem(labels: Sequence[Any]) -> str | None:
    """Why these cannot be a classifier's labels, if they cannot."""
    if not 2 <= len(labels) <= MAX_LABELS:
        return f"has {len(labels)} labels, expected 2 to {MAX_LABELS}"
    if odd := [each for each in labels if not isinstance(each, str) or not each.strip()]:
        return f"has the label {odd[0]!r}, expected a word"
    if len(set(labels)) < len(labels):
        twice = next(each for i, each in enumerate(labels) if each in labels[:i])
        return f"has the label '{twice}' twice"
    return None


def problems(header: GGUFHeader) -> Iterator[Problem]:
    """Everything that is wrong with a classifier's file, as far as its header and no base tell."""
    labels = labels_in(header)
    if problem := label_problem(labels):
        yield Problem(problem)
    if INVOCATION not in header.metadata:
        yield Problem(f"{INVOCATION} is missing: the token at which its head reads")
    yield from invocation_problems(header)
    for name, n_dims in ((WEIGHT, 2), (BIAS, 1)):
        info = header.tensors.get(name)
        if info is None:
            yield Problem(f"tensor '{name}' is missing")
        elif info.type_name != "F32":
            yield Problem(f"'{name}' is {info.type_name}, expected F32")
        elif len(info.shape) != n_dims or not min(info.shape) or info.shape[-1] != len(labels):
            expected = f"[n_embd, {len(labels)}]" if n_dims == 2 else f"[{len(labels)}]"
            yield Problem(f"'{name}' has the shape {list(info.shape)}, expected {expected}")
    for name in header.tensors.keys() - {WEIGHT, BIAS}:
        yield Problem(f"tensor '{name}' is no part of a classifier's head")
