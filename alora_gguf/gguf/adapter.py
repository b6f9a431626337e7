"""An adapter's GGUF file: what makes one sound, and reading it, checked before any C sees it.

Stock llama.cpp aborts, crashes or computes nonsense on many of the files that are refused here.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, cast

from alora_gguf._calls import checked
from alora_gguf.errors import AdapterFormatError, AdapterMismatchError, FileFormatError
from alora_gguf.files import open_file

from . import head
from .base import BaseFile
from .decisions import decision_temperatures
from .head import Classifier
from .header import GGUFHeader, read_header
from .parser import ArrayRef, TensorInfo, ValueType

_A, _B = ".lora_a", ".lora_b"
_TYPES: Final = ("F32", "F16", "BF16", "Q8_0")
MAX_RANK: Final = 4096  # of alora.h
ALPHA: Final = "adapter.lora.alpha"
INVOCATION: Final = "adapter.alora.invocation_tokens"
Begins = Literal["start", "invocation", "reply"]  # from where on an adapter changes tokens


@dataclass(frozen=True, slots=True)
class Pair:
    """A target's two matrices, as stored: A [n_in, r], B [r, n_out] in ggml order, with the experts
    as a third dimension where the target has them; for token_embd they are A [r, n_vocab],
    B [r, n_embd].
    """

    target: str
    a: TensorInfo
    b: TensorInfo

    @property
    def rank(self) -> int:
        """r, which A and B share."""
        return self.a.shape[0] if _is_embedding(self.target) else self.a.shape[1]

    @property
    def n_in(self) -> int:
        """The length of what it is multiplied with; for token_embd the vocabulary's size."""
        return self.a.shape[1] if _is_embedding(self.target) else self.a.shape[0]

    @property
    def fits(self) -> bool:
        """Whether A and B can be multiplied."""
        return not any(self._mismatches())

    def problems(self) -> Iterator[Problem]:
        """What no base could take."""
        for info in (self.a, self.b):
            if info.type_name not in _TYPES:
                found = f"'{info.name}' is {info.type_name}"
                yield Problem(f"{found}, expected one of {', '.join(_TYPES)}")
        yield from self._mismatches()
        if self.fits and self.rank > MAX_RANK:
            limit = f"at most {MAX_RANK} is supported"
            yield Problem(
                f"'{self.target}' has rank {self.rank}, {limit}", "train one of a lower rank"
            )

    def _mismatches(self) -> Iterator[Problem]:
        a, b = self.a, self.b
        odd = [info for info in (a, b) if len(info.shape) not in (2, 3) or not min(info.shape)]
        for info in odd:
            yield Problem(
                f"'{info.name}' has the shape {list(info.shape)}, expected 2 dimensions, or 3 with "
                "experts, and none of them 0"
            )
        if odd:
            return
        first, second = f"'{self.target}': A {list(a.shape)}", f"B {list(b.shape)}"
        if self.rank != b.shape[0]:
            yield Problem(f"{first} has rank {self.rank}, but {second} has rank {b.shape[0]}")
        if a.shape[2:] != b.shape[2:]:
            yield Problem(f"{first} and {second} differ in their experts")


@checked
@dataclass(frozen=True)
class AdapterFile:
    """A checked adapter.

    `identity` is the hash of what it computes (weights and alpha), whatever the file is called.
    `invocation` is () for a plain LoRA, which is on from the first token; `invocation_text` is what
    the file says it reads as, None if it does not say. `rank` is the largest of its pairs; `alpha`
    is 0 if the file has none (then the scale is 1, as in llama.cpp). `io_yaml` is the text of its
    contract (intrinsics/), None if it has none. `temperatures` are those of typed decisions, by
    question type. `classifier` is the head that was trained with it, which scores labels in place
    of tokens; None if it has none.
    """

    path: Path
    name: str
    architecture: str
    alpha: float
    invocation: tuple[int, ...]
    invocation_text: str | None
    io_yaml: str | None = field(repr=False)
    pairs: tuple[Pair, ...] = field(repr=False)
    identity: str
    data: bytes = field(repr=False)
    temperatures: Mapping[str, float] = field(default_factory=dict, repr=False)
    classifier: Classifier | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """What its classifier tells apart."""
        return self.classifier.labels if self.classifier else ()

    @property
    def weights_alone(self) -> bytes:
        """Its data as llama.cpp reads it, which does not know of heads beside weights."""
        if self.classifier is None:
            return self.data
        from .writer import OutTensor, gguf_bytes

        text, number = ValueType.STRING, ValueType.FLOAT32
        data = memoryview(self.data)
        return gguf_bytes(
            [
                ("general.type", text, "adapter"),
                ("adapter.type", text, "lora"),
                ("general.architecture", text, self.architecture),
                (ALPHA, number, self.alpha),
            ],
            [
                OutTensor(i.name, i.shape, i.type, partial(bytes, data[i.offset :][: i.nbytes]))
                for pair in self.pairs
                for i in (pair.a, pair.b)
            ],
        )

    @property
    def rank(self) -> int:
        """The largest rank of its pairs."""
        return max(pair.rank for pair in self.pairs)

    @property
    def targets(self) -> tuple[str, ...]:
        """The base weights it changes, sorted."""
        return tuple(pair.target for pair in self.pairs)

    @property
    def kind(self) -> Literal["alora", "lora"]:
        """What it is."""
        return "alora" if self.invocation else "lora"

    @property
    def begins(self) -> Begins:
        """Where it is on from: an activated LoRA at its invocation, a plain one at the start."""
        return "invocation" if self.invocation else "start"

    def scale_of(self, pair: Pair) -> float:
        """What B A of one of its pairs is multiplied with: alpha/rank; 1 without an alpha, as
        llama.cpp has it.
        """
        return self.alpha / pair.rank if self.alpha else 1.0

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> AdapterFile:
        """Reads a file and checks everything that needs no base. Raises AdapterFormatError, and
        MissingFileError.
        """
        file = Path(path)
        what = "an adapter's GGUF file (`alora-gguf convert` makes one of a PEFT directory)"
        data, header = read_sound(file, what, problems)
        pairs = tuple(sorted(pairs_in(header), key=lambda pair: pair.target))
        for pair in pairs:
            _check_finite(header, pair.a)
            _check_finite(header, pair.b)
        alpha = cast(float, header.metadata.get(ALPHA, 0.0))
        classifier = Classifier.of(header)
        return cls(
            path=file,
            name=_text(header, "general.name") or file.stem,
            architecture=header.architecture,
            alpha=alpha,
            invocation=header.array(INVOCATION) if INVOCATION in header.metadata else (),
            invocation_text=_text(header, "alora.invocation_text"),
            io_yaml=_text(header, "alora.io_yaml"),
            pairs=pairs,
            identity=_identity(header, pairs, alpha, classifier),
            data=data,
            temperatures=decision_temperatures(header),
            classifier=classifier,
        )

    def check_base(self, base: BaseFile, n_vocab: int) -> None:
        """Raises AdapterMismatchError unless the adapter fits this base of `n_vocab` tokens."""
        check_trained_on(self, base, n_vocab)
        for pair in self.pairs:
            self._check_target(pair, base)
        if self.classifier is not None:
            check_head(self.classifier, self.path, base)

    def _check_target(self, pair: Pair, base: BaseFile) -> None:
        weight = base.tensors.get(pair.target)
        if weight is None:
            tied = pair.target == "output.weight" and "token_embd.weight" in base.tensors
            raise AdapterMismatchError(
                f"{self.path}: {base.path} has no tensor '{pair.target}', which the adapter changes"
                + ("; this base ties its output to token_embd.weight" if tied else "")
                + "; use the base it was trained on"
            )
        shape = weight.shape
        expected: tuple[tuple[int, ...], tuple[int, ...]]
        if _is_embedding(pair.target):
            expected = ((pair.rank, shape[1]), (pair.rank, shape[0]))
        elif len(shape) == 3:
            expected = ((shape[0], pair.rank, shape[2]), (pair.rank, shape[1], shape[2]))
        elif len(shape) == 2:
            expected = ((shape[0], pair.rank), (pair.rank, shape[1]))
        else:
            raise AdapterMismatchError(
                f"{self.path}: '{pair.target}' has {len(shape)} dimensions in {base.path}; only "
                "matrices can have an adapter"
            )
        if (pair.a.shape, pair.b.shape) != expected:
            raise AdapterMismatchError(
                f"{self.path}: '{pair.target}' has the shape {list(shape)} in {base.path}, which "
                f"wants A {list(expected[0])} and B {list(expected[1])}, but the adapter has "
                f"A {list(pair.a.shape)} and B {list(pair.b.shape)}; use the base it was trained on"
            )

    def without_data(self) -> AdapterFile:
        """The same without the file's bytes, which the bank does not keep."""
        return replace(self, data=b"")


class Trained(Protocol):
    """What was trained on a base, and switches on at an invocation if it has one."""

    @property
    def path(self) -> Path:
        """Its file."""

    @property
    def architecture(self) -> str:
        """The base's."""

    @property
    def invocation(self) -> tuple[int, ...]:
        """Token ids."""


def check_trained_on(file: Trained, base: BaseFile, n_vocab: int) -> None:
    """Raises AdapterMismatchError for another architecture, and for a base without its tokens."""
    if file.architecture != base.architecture:
        raise AdapterMismatchError(
            f"{file.path}: was made for the architecture '{file.architecture}', but "
            f"{base.path} is '{base.architecture}'; use the base it was trained on"
        )
    for token in file.invocation:
        if token >= n_vocab:
            raise AdapterMismatchError(
                f"{file.path}: invocation token {token} is outside the vocabulary of "
                f"{base.path} ({n_vocab} tokens); use the base it was trained on"
            )


def check_head(classifier: Classifier, path: Path, base: BaseFile) -> None:
    """Raises AdapterMismatchError unless a file's head reads states of this base."""
    if base.n_embd != classifier.n_embd:
        raise AdapterMismatchError(
            f"{path}: its head reads states of {classifier.n_embd} values, but {base.path} "
            f"computes {base.n_embd}; use the base it was trained on"
        )


# What makes an adapter file sound -------------------------------------------------------------


class Problem(NamedTuple):
    """What is wrong with a header that should be an adapter's, and the way out."""

    text: str
    fix: str = "convert the adapter again"


def problems(header: GGUFHeader) -> Iterator[Problem]:
    """Everything that is wrong with an adapter, as far as its header and no base tell."""
    yield from _kind_problems(header)
    yield from _alpha_problems(header)
    yield from invocation_problems(header)
    yield from _tensor_problems(header)


def pairs_in(header: GGUFHeader) -> list[Pair]:
    """The targets with both matrices, sound or not, in the file's order."""
    halves = _halves(header)
    return [Pair(name, two[_A], two[_B]) for name, two in halves.items() if len(two) == 2]


def _kind_problems(header: GGUFHeader) -> Iterator[Problem]:
    if header.metadata.get("general.architecture") == "controlvector":
        yield Problem(
            "is a steering vector, expected an adapter with weights",
            "name it where replies are steered (--steer, /steer, adapter=)",
        )
        return
    if header.metadata.get("adapter.type") == head.KIND:
        yield Problem(
            "is a classifier's head, expected an adapter with weights",
            "it is asked like an intrinsic (invoke, --intrinsic)",
        )
        return
    ways_out = {"adapter": "this is not an adapter's file", "lora": "only LoRA is supported"}
    for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
        if key not in header.metadata:
            yield Problem(f"{key} is missing, expected '{wanted}'", ways_out[wanted])
        elif header.types[key] is not ValueType.STRING:
            yield Problem(f"{key} is {header.type_of(key)}, expected a string")
        elif (found := header.metadata[key]) != wanted:
            yield Problem(f"{key} is '{found}', expected '{wanted}'", ways_out[wanted])
    key = "general.architecture"
    if not header.metadata.get(key) and header.types.get(key) in (None, ValueType.STRING):
        yield Problem(f"{key} is missing or empty; it names the base's kind")
    elif header.types[key] is not ValueType.STRING:
        yield Problem(f"{key} is {header.type_of(key)}, expected a string")


def _alpha_problems(header: GGUFHeader) -> Iterator[Problem]:
    if ALPHA in header.metadata:
        value = header.metadata[ALPHA]
        if header.types[ALPHA] is not ValueType.FLOAT32:
            yield Problem(f"{ALPHA} is {header.type_of(ALPHA)}, expected a float32")
        if isinstance(value, float) and not math.isfinite(value):
            yield Problem(f"{ALPHA} is {value}, expected a finite number")


def invocation_problems(header: GGUFHeader) -> Iterator[Problem]:
    """What is wrong with the invocation that a header has, if it has one."""
    if INVOCATION not in header.metadata:
        return
    ref = header.metadata[INVOCATION]
    if not isinstance(ref, ArrayRef) or ref.type is not ValueType.UINT32:
        yield Problem(f"{INVOCATION} is {header.type_of(INVOCATION)}, expected an array of uint32")
    elif not ref.count:
        yield Problem(
            f"{INVOCATION} is empty, which makes it a plain LoRA that is on for every token; "
            "leave the key out if that is meant"
        )
    elif (largest := max(header.array(INVOCATION))) > 2**31 - 1:
        yield Problem(f"{INVOCATION} holds {largest}, which is not a token id")


def _tensor_problems(header: GGUFHeader) -> Iterator[Problem]:
    if head.has_head(header):
        yield from map(Problem, head.problems(header))
    for name in header.tensors:
        if name in (head.WEIGHT, head.BIAS):
            continue
        if name.endswith("_norm.weight"):
            yield Problem(
                f"'{name}' is a trained norm, which llama.cpp ignores",
                "train the adapter without norms and convert it again",
            )
        elif not name.endswith((_A, _B)):
            yield Problem(f"tensor '{name}' ends in neither {_A} nor {_B}")
    if not header.tensors:
        yield Problem("holds no weights, so it does nothing")
    for target, two in _halves(header).items():
        for missing in {_A, _B} - two.keys():
            yield Problem(f"'{target}{missing}' is missing, its counterpart is there")
    for pair in pairs_in(header):
        yield from pair.problems()


def _halves(header: GGUFHeader) -> dict[str, dict[str, TensorInfo]]:
    """Each target's matrices by their suffixes."""
    halves: dict[str, dict[str, TensorInfo]] = {}
    for name, info in header.tensors.items():
        if name.endswith((_A, _B)):
            halves.setdefault(name[: -len(_A)], {})[name[-len(_A) :]] = info
    return halves


def read_sound(
    path: Path, what: str, wrong: Callable[[GGUFHeader], Iterator[Problem]]
) -> tuple[bytes, GGUFHeader]:
    """A file's bytes and header; of a large one that is not `what` it should be, in which something
    is `wrong`, only its header is read. Raises AdapterFormatError, and MissingFileError.
    """

    def checked(header: GGUFHeader) -> int:
        for problem in wrong(header):
            raise AdapterFormatError(f"{header.name}: {problem.text}; {problem.fix}")
        return max(info.offset + info.nbytes for info in header.tensors.values())

    with open_file(path, what, AdapterFormatError) as file:
        try:
            size = checked(read_header(path))
            data = file.read(size)
            header = read_header(data, name=str(path))  # of these very bytes
            checked(header)
        except FileFormatError as error:
            raise AdapterFormatError(str(error)) from error
    return data, header


def _check_finite(header: GGUFHeader, info: TensorInfo) -> None:
    import numpy as np

    # Q8_0: blocks of an f16 scale and 32 int8
    block = np.dtype([("scale", "<u2"), ("q", "i1", 32)])
    kinds: dict[str, tuple[Any, int]] = {
        "F32": ("<u4", 0x7F800000),
        "F16": ("<u2", 0x7C00),
        "BF16": ("<u2", 0x7F80),
        "Q8_0": (block, 0x7C00),
    }
    kind, exponent = kinds[info.type_name]
    bits = np.frombuffer(header.tensor_data(info.name), kind)
    bits = bits["scale"] if info.type_name == "Q8_0" else bits
    mask = bits.dtype.type(exponent)
    if np.any((bits & mask) == mask):  # all exponent bits: NaN and the infinities have them
        raise AdapterFormatError(
            f"{header.name}: tensor '{info.name}' holds NaN or infinite values; its training has "
            "diverged, or the file is damaged"
        )


def _identity(
    header: GGUFHeader, pairs: Iterable[Pair], alpha: float, classifier: Classifier | None
) -> str:
    """sha256 of alpha and, sorted by name, every tensor's name, type, shape and bytes; and of its
    head.
    """
    digest = hashlib.sha256(struct.pack("<f", alpha))
    for info in sorted((i for p in pairs for i in (p.a, p.b)), key=lambda i: i.name):
        name = info.name.encode()
        digest.update(struct.pack("<QIQ", len(name), info.type, len(info.shape)))
        digest.update(name)
        digest.update(struct.pack(f"<{len(info.shape)}Q", *info.shape))
        digest.update(header.tensor_data(info.name))
    for part in classifier.parts() if classifier else ():
        digest.update(part)
    return digest.hexdigest()


def _text(header: GGUFHeader, key: str) -> str | None:
    value = header.metadata.get(key)
    return value if isinstance(value, str) and value else None


def _is_embedding(target: str) -> bool:
    return target.endswith("token_embd.weight")
