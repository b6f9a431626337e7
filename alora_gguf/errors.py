"""Every error this package raises on purpose, and nothing else; each has a stable `code`.

AloraError                       error              the root; a program that catches it has them all
├── LibraryError                 library            native library missing, another version, or late
├── ClosedError                  closed             the model or session was closed
├── CancelledError               cancelled          cancelled; the conversation is whole, or goes on
├── InputError                   input              an argument is out of range or of the wrong kind
│   └── SchemaError              schema             a JSON Schema is invalid, or cannot be followed
├── MissingFileError             missing_file       there is no such file, whoever was to read it
├── FileFormatError              file_format        a file is truncated, malformed or another kind
│   ├── ContractError            contract           an intrinsic's io.yaml is malformed
│   └── SavedSessionError        saved_session      damaged, or saved with another base or adapter
├── ModelError                   model              a base model cannot be used
├── StoreError                   store              the store cannot be read or written
├── HubError                     hub                the model hub cannot be reached, or refuses
├── AdapterError                 adapter            an adapter cannot be used
│   ├── AdapterFormatError       adapter_format     its file is malformed (also a FileFormatError)
│   ├── AdapterMismatchError     adapter_mismatch   a sound adapter that was made for another base
│   ├── AdapterInUseError        adapter_in_use     it is still active, or its name is taken
│   └── UnknownAdapterError      unknown_adapter    no adapter of that name is loaded
├── OutputError                  output             an answer is not what its contract says
├── InvocationNotFoundError      no_invocation      the text does not contain the invocation
├── ConvertError                 convert            a PEFT adapter cannot be converted
│   └── UnsupportedAdapterError  unsupported        it uses something that would not convert exactly
└── DecodeError                  decode             a batch could not be computed
    └── CacheFullError           cache_full         the KV cache has no room for it

Some are Python's own kinds too: InputError is a ValueError, MissingFileError a FileNotFoundError,
UnknownAdapterError a KeyError. A message names the file, the field or tensor, what was expected,
what was found and the way out; programs go by the class or its code.
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar


class AloraError(Exception):
    """Base of all errors raised by alora_gguf. `code` is a stable word for each class."""

    code: ClassVar[str] = "error"


class LibraryError(AloraError):
    """The native library cannot be used."""

    code = "library"


class ClosedError(AloraError):
    """A model or session was used after it was closed."""

    code = "closed"


class InputError(AloraError, ValueError):
    """An argument is out of range or of the wrong kind."""

    code = "input"


class CancelledError(AloraError):
    """The call was cancelled from elsewhere."""

    code = "cancelled"


class SchemaError(InputError):
    """A JSON Schema is invalid, or cannot constrain a reply."""

    code = "schema"


class MissingFileError(AloraError, FileNotFoundError):
    """There is no such file: a base, an adapter, a contract, a saved session. `filename` is it."""

    code = "missing_file"

    def __init__(self, message: str, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(message)
        self.errno = errno.ENOENT
        self.filename = None if path is None else os.fspath(path)

    def __str__(self) -> str:  # OSError would put the number before and the name behind
        return str(self.args[0])

    def __reduce__(self) -> tuple[type[MissingFileError], tuple[str, str | None]]:
        return type(self), (self.args[0], self.filename)


class FileFormatError(AloraError):
    """A file is truncated, malformed, or of another format than expected."""

    code = "file_format"


class ContractError(FileFormatError):
    """An intrinsic's io.yaml is malformed."""

    code = "contract"


class SavedSessionError(FileFormatError):
    """A saved session is damaged, or was made with another base or adapter."""

    code = "saved_session"


class ModelError(AloraError):
    """A base model cannot be used."""

    code = "model"


class StoreError(AloraError):
    """The store of adapters and bases cannot be read or written."""

    code = "store"


class HubError(AloraError):
    """A hub refuses access, fails, cannot be reached, or does not have what it should."""

    code = "hub"


class AdapterError(AloraError):
    """An adapter cannot be used."""

    code = "adapter"


class AdapterFormatError(AdapterError, FileFormatError):
    """An adapter file is malformed."""

    code = "adapter_format"


class AdapterMismatchError(AdapterError):
    """A sound adapter does not fit this base."""

    code = "adapter_mismatch"


class AdapterInUseError(AdapterError):
    """An adapter is still active, or its name is taken."""

    code = "adapter_in_use"


class UnknownAdapterError(AdapterError, KeyError):
    """No adapter of that name is loaded."""

    code = "unknown_adapter"

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class OutputError(AloraError):
    """An intrinsic's answer is not what its contract says."""

    code = "output"


class InvocationNotFoundError(AloraError):
    """Text that was meant to contain an adapter's invocation does not."""

    code = "no_invocation"


class ConvertError(AloraError):
    """A PEFT adapter cannot be converted."""

    code = "convert"


class UnsupportedAdapterError(ConvertError):
    """A PEFT adapter uses something that would not convert exactly."""

    code = "unsupported"


class DecodeError(AloraError):
    """A batch could not be computed; the cells that were there before it are intact."""

    code = "decode"


class CacheFullError(DecodeError):
    """The KV cache has no room for the tokens of a batch."""

    code = "cache_full"
