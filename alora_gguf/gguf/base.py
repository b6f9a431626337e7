"""A base model's file, looked at before llama.cpp sees it: what it is, what adapters may target and
what it is recognized by.

A KV cache computed by one base is nonsense to another, and llama.cpp would not notice.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alora_gguf.errors import FileFormatError, MissingFileError, ModelError

from .decisions import TEMPLATE, decision_temperatures
from .header import GGUFHeader, read_header
from .parser import ArrayRef, TensorInfo, ValueType
from .soundness import (
    check_base,
    check_vocabulary,
    departures,
    head_sizes,
    is_causal,
    stream_sizes,
)

if TYPE_CHECKING:
    from hashlib import _Hash

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


_FORMAT: Final = b"alora-gguf base fingerprint 1\0"
_BLOCK: Final = 16 * 1024  # a disk takes as long for 4 KiB


@dataclass(frozen=True, slots=True)
class BaseFingerprint:
    """What a base is recognized by: equal for copies of a file wherever they lie.

    `digest` is the sha256, in hex, of each part's size, its whole header (every metadata entry,
    every tensor's name, shape, type and place), and of each tensor's first, middle and last 16 KiB,
    tensors of up to 48 KiB as a whole. `size` is that of all parts in bytes. `file`, the name it
    had, is for messages and does not count when two are compared.

    It detects another model, another quantization, another fine-tuning (any training step changes
    nearly every element of the tensors it trains), merged adapters, changed metadata, truncated and
    exchanged parts. It does not detect damage or edits that lie wholly between the sampled blocks
    of a tensor and keep the size: a full hash would, but takes seconds per GB and reads all of a
    file that is otherwise mapped lazily.
    """

    digest: str
    architecture: str
    size: int
    file: str = field(default="", compare=False)

    @classmethod
    def of(cls, base: BaseFile) -> BaseFingerprint:
        """Reads the blocks from the base's file or files. Raises ModelError if they cannot be
        read, or have changed since `base` was read.
        """
        digest = hashlib.sha256(_FORMAT)
        for part in base.files:
            _add_part(digest, part)
        size = sum(part.size for part in base.files)
        return cls(digest.hexdigest(), base.architecture, size, base.path.name)

    def __str__(self) -> str:
        return (
            f"{self.file or 'a base'} ({self.architecture}, {self.size} bytes, {self.digest[:12]})"
        )


def _add_part(digest: _Hash, part: BasePart) -> None:
    path, head = part.path, min(part.data_offset, part.size)
    # in the order of the header, which is hashed
    samples = (sample for info in part.tensors for sample in _samples(info))
    try:
        with path.open("rb") as file:
            _require_unchanged(part)
            digest.update(struct.pack("<QQ", part.size, head))
            for offset, n in ((0, head), *samples):
                file.seek(offset)
                data = file.read(n)
                if len(data) != n:
                    end = offset + len(data)
                    raise ModelError(f"{path}: ends at {end} while it is read; it was cut short")
                digest.update(data)
            _require_unchanged(part)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read: {error.strerror or error}; it was there when the model was "
            "opened"
        ) from error


def _require_unchanged(part: BasePart) -> None:
    """A file that was replaced must not vouch for what was loaded."""
    if _stamp(part.path) != part.stamp:
        raise ModelError(
            f"{part.path}: was changed or replaced since the model was opened, so it does not tell "
            "which base computed the cells; open the model again"
        )


def _samples(info: TensorInfo) -> list[tuple[int, int]]:
    """Which bytes of a tensor are hashed: offsets in the file, and how many."""
    last = info.nbytes - _BLOCK
    if last <= 2 * _BLOCK:
        return [(info.offset, info.nbytes)]
    return [(info.offset + begin, _BLOCK) for begin in (0, last // 2, last)]


_TOKENS: Final = "tokenizer.ggml.tokens"
# of a model in several files: llama.cpp would look for the others
_PARTS: Final = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class BasePart:
    """One file of a base as it was when it was opened, with what tells that it still is (`stamp`),
    its tensors in the header's order, and where their data begins.
    """

    path: Path
    size: int
    stamp: tuple[int, ...]
    data_offset: int
    tensors: tuple[TensorInfo, ...]


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


@dataclass(frozen=True)
class BaseFile:
    """A base model's GGUF file (or files, if it is split).

    `tensors` maps a weight's name to its shape (ggml order) and type; `n_vocab` is None if the file
    does not say. `chat_template` is the Jinja text of its default one, None if it has none. `files`
    are all its files in order, `path` is that of the first. `causal`: whether tokens see only those
    before them. `head_sizes` are those of a head's keys and of its values, in any layer.
    `departures` say from how many cells on llama.cpp computes otherwise than transformers, and how.
    `decision_template` is the Jinja text that writes typed questions, None if it has none;
    `temperatures` are those of their answers, by question type. `n_layer` blocks are passed by a
    token, in a stream `n_embd` wide; None is what the file does not say.
    """

    path: Path
    architecture: str
    tensors: dict[str, TensorInfo]
    n_vocab: int | None
    chat_template: str | None
    files: tuple[BasePart, ...]
    causal: bool = True
    departures: tuple[tuple[int, str], ...] = ()
    head_sizes: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    decision_template: str | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)
    n_layer: int | None = None
    n_embd: int | None = None

    @property
    def parts(self) -> tuple[Path, ...]:
        """The paths of its files."""
        return tuple(each.path for each in self.files)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None
    ) -> BaseFile:
        """Reads and checks the header, with llama.cpp's kv_overrides in its values' places. Raises
        ModelError if it is missing, no sound GGUF file, or one that cannot serve as a base.
        """
        file = Path(path)
        header, first = _read(file)
        _require_model(header, file)
        files = [first, *(_read(part)[1] for part in _other_parts(header, file))]
        tensors = {info.name: info for part in files for info in part.tensors}
        check_base(header, tensors, overrides)
        check_vocabulary(header)
        return cls(
            file,
            header.architecture,
            tensors,
            _vocabulary_size(header),
            _text(header, "tokenizer.chat_template"),
            tuple(files),
            is_causal(header),
            departures(header),
            head_sizes(header),
            _text(header, TEMPLATE),
            decision_temperatures(header),
            *stream_sizes(header, overrides),
        )


def _text(header: GGUFHeader, key: str) -> str | None:
    found = header.metadata.get(key)
    return found if isinstance(found, str) and found else None


def _read(file: Path) -> tuple[GGUFHeader, BasePart]:
    try:
        header = read_header(file)
        stamp = _stamp(file)
    except MissingFileError as error:
        raise MissingFileError(f"base model {error}", file) from None
    except FileFormatError as error:
        raise ModelError(f"base model {error}") from error
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or error}") from error
    if stamp[0] != header.size:
        raise ModelError(f"{file}: is being written to ({header.size}, now {stamp[0]} bytes)")
    tensors = tuple(header.tensors.values())
    return header, BasePart(file, header.size, stamp, header.data_offset, tensors)


def _require_model(header: GGUFHeader, file: Path) -> None:
    key, problem = "general.architecture", ""
    kind = header.metadata.get("general.type", "model")
    if kind == "adapter":
        problem = (
            "is an adapter (general.type = adapter), not a base model; open the base model's file "
            "and pass this one as an adapter"
        )
    elif kind != "model":
        problem = f"general.type is {kind!r}, expected 'model'"
    elif key not in header.metadata:
        problem = f"the metadata key '{key}' is missing"
    elif header.types[key] is not ValueType.STRING:
        problem = f"the metadata key '{key}' is {header.type_of(key)}, expected a string"
    elif header.architecture == "clip":
        problem = "is a vision projector (mmproj), not a base model"
    elif not header.tensors:
        problem = "holds a vocabulary but no weights; download the whole model"
    if problem:
        raise ModelError(f"{file}: {problem}")


def _other_parts(header: GGUFHeader, file: Path) -> list[Path]:
    """The other files of a model that is split into several."""
    count = header.metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return []
    parts = parts_of(file.name)
    if len(parts) != count:
        raise ModelError(
            f"{file}: is one of {count} parts, but is not named like one (NAME-00001-of-"
            f"{count:05}.gguf); keep the names the parts were published under"
        )
    number = parts.index(file.name) + 1
    if number != 1:
        raise ModelError(f"{file}: is part {number} of {count}; open {parts[0]} instead")
    return [file.with_name(name) for name in parts[1:]]


def _vocabulary_size(header: GGUFHeader) -> int | None:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, ArrayRef) and tokens.type is ValueType.STRING:
        return tokens.count
    size = header.metadata.get(f"{header.architecture}.vocab_size")
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def vocabulary_only(header: GGUFHeader) -> bytes:
    """A whole GGUF file with the same metadata and no tensors.

    llama.cpp loads it with `vocab_only` and tokenises as with the model itself, also where only the
    model's header is at hand.
    """
    entries = [entry for key, entry in header.entries.items() if key not in _PARTS]
    prologue = b"GGUF" + struct.pack("<IQQ", header.version, 0, len(entries))
    return b"".join([prologue, *entries])


def vocabulary_sha256(header: GGUFHeader) -> str | None:
    """The hash of all tokens in their order, as GGUF stores them: for each, its length in bytes as
    u64, its bytes. None if the file has no vocabulary.
    """
    ref = header.metadata.get(_TOKENS)
    if not isinstance(ref, ArrayRef) or ref.type is not ValueType.STRING:
        return None
    return hashlib.sha256(header.array_bytes(_TOKENS)).hexdigest()
