"""An adapter's GGUF file, read once and checked before any C sees it.

stock llama.cpp aborts, crashes or computes nonsense on many of the files that are refused here.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from alora_gguf.engine.vocab import Vocabulary
from alora_gguf.errors import AdapterFormatError, AdapterMismatchError, FileFormatError

from .base import BaseFile
from .header import GGUFHeader, read_header
from .types import ArrayRef, TensorInfo, ValueType

_A, _B = ".lora_a", ".lora_b"
_TYPES: Final = ("F32", "F16", "BF16", "Q8_0")
_MAX_RANK: Final = 4096  # of alora.h
_FIX = "convert the adapter again"


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


@dataclass(frozen=True)
class AdapterFile:
    """A checked adapter.

    `identity` is the hash of what it computes (weights and alpha), whatever the file is called.
    `invocation` is () for a plain LoRA, which is on from the first token; `invocation_text` is what
    the file says it reads as, None if it does not say. `rank` is the largest of its pairs; `alpha`
    is 0 if the file has none (then the scale is 1, as in llama.cpp). `io_yaml` is the text of its
    contract (intrinsics/), None if it has none.
    """

    path: Path
    name: str
    architecture: str
    alpha: float
    invocation: tuple[int, ...]
    invocation_text: str | None
    io_yaml: str | None
    pairs: tuple[Pair, ...]
    identity: str
    data: bytes

    @property
    def rank(self) -> int:
        """The largest rank of its pairs."""
        return max(pair.rank for pair in self.pairs)

    @property
    def targets(self) -> tuple[str, ...]:
        """The base weights it changes, sorted."""
        return tuple(pair.target for pair in self.pairs)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> AdapterFile:
        """Reads a file and checks everything that needs no base. Raises AdapterFormatError."""
        file = Path(path)
        try:
            data = file.read_bytes()
            header = read_header(data, name=str(file))
        except FileNotFoundError:
            raise AdapterFormatError(f"{file}: there is no such file") from None
        except IsADirectoryError:
            raise AdapterFormatError(
                f"{file}: is a directory, expected an adapter's GGUF file; a PEFT directory must "
                "be converted first"
            ) from None
        except OSError as error:
            raise AdapterFormatError(f"{file}: cannot be read: {error.strerror}") from error
        except FileFormatError as error:
            raise AdapterFormatError(str(error)) from error
        return _Check(file, header).run(data)

    def check_base(self, base: BaseFile, n_vocab: int) -> None:
        """Raises AdapterMismatchError unless the adapter fits this base of `n_vocab` tokens."""
        if self.architecture != base.architecture:
            raise AdapterMismatchError(
                f"{self.path}: was made for the architecture '{self.architecture}', but "
                f"{base.path} is '{base.architecture}'; use the base it was trained on"
            )
        for token in self.invocation:
            if token >= n_vocab:
                raise AdapterMismatchError(
                    f"{self.path}: invocation token {token} is outside the vocabulary of "
                    f"{base.path} ({n_vocab} tokens); use the base it was trained on"
                )
        for pair in self.pairs:
            self._check_target(pair, base)

    def check_vocabulary(self, base: BaseFile, vocab: Vocabulary) -> None:
        """Raises AdapterMismatchError if the invocation's ids read otherwise in this base than they
        did in the one that the adapter was converted for.
        """
        text = self.invocation_text
        if not self.invocation or text is None or not vocab.has_text:
            return
        reads = vocab.detokenize(self.invocation, special=True)
        # spaces do not count: some vocabularies put one before a text that had none
        if reads.replace(" ", "") == text.replace(" ", ""):
            return
        # the text may have more spellings in tokens than one
        if tuple(vocab.tokenize(text, add_special=False, parse_special=True)) != self.invocation:
            raise AdapterMismatchError(
                f"{self.path}: its invocation {list(self.invocation)} reads {text!r}, but "
                f"{reads!r} in {base.path}, which has another vocabulary; use the base it was "
                "trained on"
            )

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


class _Check:
    """Everything about one adapter file that can be wrong without knowing the base."""

    def __init__(self, path: Path, header: GGUFHeader) -> None:
        self.path = path
        self.header = header

    def fail(self, problem: str) -> AdapterFormatError:
        return AdapterFormatError(f"{self.path}: {problem}")

    def run(self, data: bytes) -> AdapterFile:
        self.kind()
        architecture = self.text("general.architecture")
        if not architecture:
            raise self.fail(f"general.architecture is empty; {_FIX}")
        alpha = self.alpha()
        pairs = self.pairs()
        for pair in pairs:
            for info in (pair.a, pair.b):
                self.finite(info)
        return AdapterFile(
            path=self.path,
            name=self.name(),
            architecture=architecture,
            alpha=alpha,
            invocation=self.invocation(),
            invocation_text=self.optional_text("alora.invocation_text"),
            io_yaml=self.optional_text("alora.io_yaml"),
            pairs=pairs,
            identity=self.identity(pairs, alpha),
            data=data,
        )

    def text(self, key: str) -> str:
        try:
            return self.header.string(key)
        except FileFormatError as error:
            raise AdapterFormatError(f"{error}; {_FIX}") from error

    def kind(self) -> None:
        if self.header.types.get("general.type") is ValueType.STRING:
            kind = self.text("general.type")
        elif "general.type" in self.header.metadata:
            kind = self.text("general.type")  # raises: of another type
        else:
            kind = "model"  # models may leave it out
        if kind != "adapter":
            raise self.fail(
                f"general.type is '{kind}', expected 'adapter'; this is not an adapter's file"
            )
        if (technique := self.text("adapter.type")) != "lora":
            raise self.fail(f"adapter.type is '{technique}', expected 'lora'")

    def name(self) -> str:
        value = self.header.metadata.get("general.name")
        return value if isinstance(value, str) and value else self.path.stem

    def alpha(self) -> float:
        key = "adapter.lora.alpha"
        if key not in self.header.metadata:
            return 0.0
        value = self.header.metadata[key]
        if self.header.types[key] is not ValueType.FLOAT32 or not isinstance(value, float):
            raise self.fail(
                f"the metadata key '{key}' must be of type float32, but it is "
                f"{self.header.types[key].name.lower()}; {_FIX}"
            )
        if not math.isfinite(value):
            raise self.fail(f"{key} is {value}, expected a finite number; {_FIX}")
        return value

    def invocation(self) -> tuple[int, ...]:
        key = "adapter.alora.invocation_tokens"
        if key not in self.header.metadata:
            return ()
        ref = self.header.metadata[key]
        if not isinstance(ref, ArrayRef) or ref.type is not ValueType.UINT32:
            found = self.header.types[key].name.lower()
            if isinstance(ref, ArrayRef):
                found = f"an array of {ref.type.name.lower()}"
            raise self.fail(f"{key} must be an array of uint32, but it is {found}; {_FIX}")
        if ref.count == 0:
            raise self.fail(
                f"{key} is empty, which would make the adapter a plain LoRA that is on for every "
                f"token; {_FIX}, or leave the key out if that is meant"
            )
        tokens = tuple(int(t) for t in self.header.array(key))
        if max(tokens) > 2**31 - 1:
            raise self.fail(f"{key} holds {max(tokens)}, which is no token id; {_FIX}")
        return tokens

    def optional_text(self, key: str) -> str | None:
        value = self.header.metadata.get(key)
        return value if isinstance(value, str) and value else None

    def pairs(self) -> tuple[Pair, ...]:
        halves: dict[str, dict[str, TensorInfo]] = {}
        for name, info in self.header.tensors.items():
            suffix = name[-len(_A) :]
            if suffix not in (_A, _B):
                if name.endswith("_norm.weight"):
                    raise self.fail(
                        f"tensor '{name}' is a trained norm, which llama.cpp would silently "
                        f"ignore; train the adapter without norms and {_FIX}"
                    )
                raise self.fail(f"tensor '{name}' ends in neither {_A} nor {_B}; {_FIX}")
            halves.setdefault(name[: -len(_A)], {})[suffix] = info
        if not halves:
            raise self.fail(f"holds no weights, so it would do nothing; {_FIX}")
        return tuple(self.pair(target, halves[target]) for target in sorted(halves))

    def pair(self, target: str, halves: dict[str, TensorInfo]) -> Pair:
        for suffix in (_A, _B):
            if suffix not in halves:
                raise self.fail(f"'{target}{suffix}' is missing, its counterpart is there; {_FIX}")
        a, b = halves[_A], halves[_B]
        for info in (a, b):
            if info.type_name not in _TYPES:
                raise self.fail(
                    f"tensor '{info.name}' is {info.type_name}, expected one of "
                    f"{', '.join(_TYPES)}; {_FIX}"
                )
            if len(info.shape) not in (2, 3) or min(info.shape) < 1:
                raise self.fail(
                    f"tensor '{info.name}' has the shape {list(info.shape)}, expected 2 "
                    f"dimensions, or 3 with experts; {_FIX}"
                )
        rank_a = a.shape[0] if _is_embedding(target) else a.shape[1]
        if rank_a != b.shape[0]:
            raise self.fail(
                f"'{target}': A {list(a.shape)} has rank {rank_a}, but B {list(b.shape)} has rank "
                f"{b.shape[0]}; {_FIX}"
            )
        if len(a.shape) != len(b.shape) or a.shape[2:] != b.shape[2:]:
            raise self.fail(
                f"'{target}': A {list(a.shape)} and B {list(b.shape)} differ in their experts; "
                f"{_FIX}"
            )
        if rank_a > _MAX_RANK:
            raise self.fail(f"'{target}' has rank {rank_a}, at most {_MAX_RANK} is supported")
        return Pair(target, a, b)

    def finite(self, info: TensorInfo) -> None:
        raw = self.header.tensor_data(info.name)
        if info.type_name == "F32":
            good = _all_finite(np.frombuffer(raw, "<u4"), 0x7F800000)
        elif info.type_name == "F16":
            good = _all_finite(np.frombuffer(raw, "<u2"), 0x7C00)
        elif info.type_name == "BF16":
            good = _all_finite(np.frombuffer(raw, "<u2"), 0x7F80)
        else:  # Q8_0: blocks of an f16 scale and 32 int8
            blocks = np.frombuffer(raw, np.dtype([("scale", "<u2"), ("q", "i1", 32)]))
            good = _all_finite(blocks["scale"], 0x7C00)
        if not good:
            raise self.fail(
                f"tensor '{info.name}' holds NaN or infinite values; its training has diverged, or "
                "the file is damaged"
            )

    def identity(self, pairs: tuple[Pair, ...], alpha: float) -> str:
        """sha256 of alpha and, sorted by name, every tensor's name, type, shape and bytes."""
        digest = hashlib.sha256(struct.pack("<f", alpha))
        for info in sorted((i for p in pairs for i in (p.a, p.b)), key=lambda i: i.name):
            name = info.name.encode()
            digest.update(struct.pack("<QIQ", len(name), info.type, len(info.shape)))
            digest.update(name)
            digest.update(struct.pack(f"<{len(info.shape)}Q", *info.shape))
            digest.update(self.header.tensor_data(info.name))
        return digest.hexdigest()


def _is_embedding(target: str) -> bool:
    return target.endswith("token_embd.weight")


def _all_finite(bits: NDArray[Any], exponent: int) -> bool:
    """Whether no value has all exponent bits set: NaN and the infinities have."""
    mask = bits.dtype.type(exponent)
    return not bool(np.any((bits & mask) == mask))
