"""A base model's file, looked at before llama.cpp sees it: what it is, what adapters may target."""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alora_gguf.errors import FileFormatError, MissingFileError, ModelError

from .header import GGUFHeader, read_header
from .split import parts_of
from .types import ArrayRef, TensorInfo, ValueType

# Types that llama.cpp's kernels cannot multiply with; a weight of one aborts at the first decode.
_UNUSABLE: Final = {"F64", "I64"}
_TOKENS: Final = "tokenizer.ggml.tokens"
# of a model in several files: llama.cpp would look for the others
_PARTS: Final = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells that a file is still the one that was opened."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """That of the file now. Raises OSError."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


@dataclass(frozen=True, slots=True)
class BasePart:
    """One file of a base: its `stamp` when it was opened, its tensors in the header's order, and
    where their data begins.
    """

    path: Path
    stamp: FileStamp
    data_offset: int
    tensors: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class BaseFile:
    """A base model's GGUF file (or files, if it is split).

    `tensors` maps a weight's name to its shape (ggml order) and type; `n_vocab` is None if the file
    does not say. `chat_template` is the Jinja text of its default one, None if it has none. `files`
    are all its files in order, `path` is that of the first.
    """

    path: Path
    architecture: str
    tensors: dict[str, TensorInfo]
    n_vocab: int | None
    chat_template: str | None
    files: tuple[BasePart, ...]

    @property
    def parts(self) -> tuple[Path, ...]:
        """The paths of its files."""
        return tuple(each.path for each in self.files)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> BaseFile:
        """Reads and checks the header. Raises ModelError if it is missing, no sound GGUF file, or
        one that cannot serve as a base.
        """
        file = Path(path)
        header, first = _read(file)
        _require_model(header, file)
        files = [first, *(_read(part)[1] for part in _other_parts(header, file))]
        tensors = {info.name: info for part in files for info in part.tensors}
        for info in tensors.values():
            if info.type_name in _UNUSABLE:
                raise ModelError(
                    f"{file}: tensor '{info.name}' is {info.type_name}, which llama.cpp cannot "
                    "compute with; convert the model again with F32, F16 or quantized weights"
                )
        template = header.metadata.get("tokenizer.chat_template")
        return cls(
            file,
            header.architecture,
            tensors,
            _vocabulary_size(header),
            template if isinstance(template, str) and template else None,
            tuple(files),
        )


def _read(file: Path) -> tuple[GGUFHeader, BasePart]:
    try:
        header = read_header(file)
        stamp = FileStamp.of(file)
    except MissingFileError as error:
        raise MissingFileError(f"base model {error}", file) from None
    except FileFormatError as error:
        raise ModelError(f"base model {error}") from error
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or error}") from error
    if stamp.size != header.size:
        raise ModelError(f"{file}: is being written to ({header.size}, now {stamp.size} bytes)")
    return header, BasePart(file, stamp, header.data_offset, tuple(header.tensors.values()))


def _require_model(header: GGUFHeader, file: Path) -> None:
    kind = header.metadata.get("general.type", "model")
    if kind == "adapter":
        raise ModelError(
            f"{file}: is an adapter (general.type = adapter), not a base model; open the base "
            "model's file and pass this one as an adapter"
        )
    if kind != "model":
        raise ModelError(f"{file}: general.type is {kind!r}, expected 'model'")
    if "general.architecture" not in header.metadata:
        raise ModelError(f"{file}: the metadata key 'general.architecture' is missing")
    try:
        arch = header.architecture
    except FileFormatError as error:
        raise ModelError(f"base model {error}") from error
    if arch == "clip":
        raise ModelError(f"{file}: is a vision projector (mmproj), not a base model")
    if not header.tensors:
        raise ModelError(f"{file}: holds a vocabulary but no weights; download the whole model")


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
