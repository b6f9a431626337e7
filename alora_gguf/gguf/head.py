"""A classifier's head: labels, and a linear layer that scores them by the state at one token. Its
tensors and keys are called what llama.cpp calls those of its own classifiers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from alora_gguf.errors import AdapterFormatError

from .header import GGUFHeader
from .parser import ArrayRef, ValueType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KIND: Final[Literal["classifier"]] = "classifier"
"""The adapter.type of a file with nothing else."""
WEIGHT: Final = "cls.output.weight"
BIAS: Final = "cls.output.bias"
LABELS: Final = "{}.classifier.output_labels"
MAX_LABELS: Final = 64
"""As many answers as are told apart in one pass."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """Scores `labels` by a state h [n_embd] after the last norm: softmax(weight · h + bias), with
    weight [n_labels, n_embd] and bias [n_labels] in float32.
    """

    labels: tuple[str, ...]
    weight: NDArray[np.float32] = field(repr=False)
    bias: NDArray[np.float32] = field(repr=False)

    @property
    def n_embd(self) -> int:
        """The length of the states that it reads."""
        return int(self.weight.shape[1])

    @classmethod
    def of(cls, header: GGUFHeader) -> Classifier | None:
        """That of a header without problems(), of a whole file; None if it has none. Raises
        AdapterFormatError.
        """
        if not has_head(header):
            return None
        import numpy as np

        weight, bias = (
            np.frombuffer(bytes(header.tensor_data(name)), "<f4") for name in (WEIGHT, BIAS)
        )
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise AdapterFormatError(
                f"{header.name}: its classifier's head holds NaN or infinite values; its training "
                "has diverged, or the file is damaged"
            )
        labels = labels_in(header)
        return cls(labels, weight.reshape(len(labels), -1), bias)

    def parts(self) -> Iterator[bytes]:
        """What it is, for a hash."""
        yield repr((self.labels, self.weight.shape)).encode()
        yield self.weight.tobytes()
        yield self.bias.tobytes()


def has_head(header: GGUFHeader) -> bool:
    """Whether a header has a part of a classifier's head."""
    return not header.tensors.keys().isdisjoint((WEIGHT, BIAS))


def labels_in(header: GGUFHeader) -> tuple[str, ...]:
    """The labels of a header, none where they are not as they should be."""
    key = LABELS.format(header.metadata.get("general.architecture"))
    ref = header.metadata.get(key)
    is_texts = isinstance(ref, ArrayRef) and ref.type is ValueType.STRING
    return header.array(key) if is_texts else ()


def label_problem(labels: Sequence[Any]) -> str | None:
    """Why these cannot be a classifier's labels, if they cannot."""
    if not 2 <= len(labels) <= MAX_LABELS:
        return f"has {len(labels)} label{'s' * (len(labels) != 1)}, expected 2 to {MAX_LABELS}"
    if odd := [each for each in labels if not isinstance(each, str) or not each.strip()]:
        return f"has the label {odd[0]!r}, expected a word"
    if len(set(labels)) < len(labels):
        twice = next(each for i, each in enumerate(labels) if each in labels[:i])
        return f"has the label '{twice}' twice"
    return None


def problems(header: GGUFHeader) -> Iterator[str]:
    """Everything that is wrong with a header's head, as far as it and no base tell."""
    labels = labels_in(header)
    if problem := label_problem(labels):
        yield problem
    for name, n_dims in ((WEIGHT, 2), (BIAS, 1)):
        info = header.tensors.get(name)
        if info is None:
            yield f"tensor '{name}' is missing"
        elif info.type_name != "F32":
            yield f"'{name}' is {info.type_name}, expected F32"
        elif len(info.shape) != n_dims or not min(info.shape) or info.shape[-1] != len(labels):
            expected = f"[n_embd, {len(labels)}]" if n_dims == 2 else f"[{len(labels)}]"
            yield f"'{name}' has the shape {list(info.shape)}, expected {expected}"
