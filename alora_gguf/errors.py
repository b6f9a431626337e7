"""Every error this package raises on purpose, and nothing else; each has a stable `code`.

AloraError                       error              the root; a program that catches it has them all
├── LibraryError                 library            native library missing, another version, or late
├── ClosedError                  closed             the model or session was closed
├── CancelledError               cancelled          cancelled; the conversation is whole, or goes on
├── InputError                   input              an argument is out of range or of the wrong kind
│   ├── SchemaError              schema             a JSON Schema is invalid, or cannot be followed
│   └── FieldError               field              a field of a question or request is wrong
├── MissingFileError             missing_file       there is no such file, whoever was to read it
├── FileFormatError              file_format        a file is truncated, malformed or another kind
│   ├── ContractError            contract           an intrinsic's io.yaml is malformed
│   └── SavedSessionError        saved_session      damaged, or saved with another base or adapter
├── ModelError                   model              a base model cannot be used
├── RpcError                     rpc                an RPC server does not answer, or was lost
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
    ├── CacheFullError           cache_full         the KV cache has no room for it
    └── NotFiniteError           not_finite         it gave NaN or infinite values

Some are Python's own kinds too: InputError is a ValueError, MissingFileError a FileNotFoundError,
UnknownAdapterError a KeyError. A message names the file, the field or tensor, what was expected,
what was found and the way out; programs go by the class or its code.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False  # whoever imports the package imports this
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import ClassVar


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A hint at the nearest of the names that there are, for the end of a message; "" if none is
    near.
    """
    from difflib import get_close_matches

    near = get_close_matches(str(name), [*known], 1)
    return f"; did you mean {near[0]}?" if near else ""


class AloraError(Exception):
    """Base of all errors raised by alora_gguf. `code` is a stable word for each class."""

    code: ClassVar[str] = "error"

    def __init_subclass__(cls, *, code: str | None = None) -> None:
        cls.code = code or cls.code


class LibraryError(AloraError, code="library"):
    """The native library cannot be used."""


class ClosedError(AloraError, code="closed"):
    """A model or session was used after it was closed."""


class InputError(AloraError, ValueError, code="input"):
    """An argument is out of range or of the wrong kind."""


class CancelledError(AloraError, code="cancelled"):
    """The call was cancelled from elsewhere."""


class SchemaError(InputError, code="schema"):
    """A JSON Schema is invalid, or cannot constrain a reply."""


class FieldError(InputError, code="field"):
    """A field of a question or a request is wrong. `path` leads to it, from the whole on; `problem`
    is what is wrong with it, and `missing` says that it should be there.
    """

    def __init__(self, path: Sequence[str | int], problem: str) -> None:
        where = ""
        for step in path:
            where += f"[{step}]" if isinstance(step, int) else f".{step}" if where else step
        joint = ": " if problem.startswith("expected") else " "
        super().__init__(f"{where}{joint}{problem}" if where else problem)
        self.path, self.problem = tuple(path), problem
        self.missing = problem.startswith("is missing")

    def __reduce__(self) -> tuple[type[FieldError], tuple[Sequence[str | int], str]]:
        return type(self), (self.path, self.problem)


class MissingFileError(AloraError, FileNotFoundError, code="missing_file"):
    """There is no such file: a base, an adapter, a contract, a saved session. `filename` is it."""

    def __init__(self, message: str, path: str | os.PathLike[str] | None = None) -> None:
        super().__init__(message)
        self.errno = errno.ENOENT
        self.filename = None if path is None else os.fspath(path)

    def __str__(self) -> str:  # OSError would put the number before and the name behind
        return str(self.args[0])

    def __reduce__(self) -> tuple[type[MissingFileError], tuple[str, str | None]]:
        return type(self), (self.args[0], self.filename)


class FileFormatError(AloraError, code="file_format"):
    """A file is truncated, malformed, or of another format than expected."""


class ContractError(FileFormatError, code="contract"):
    """An intrinsic's io.yaml is malformed."""


class SavedSessionError(FileFormatError, code="saved_session"):
    """A saved session is damaged, or was made with another base or adapter."""


class ModelError(AloraError, code="model"):
    """A base model cannot be used."""


class RpcError(AloraError, code="rpc"):
    """A server of llama.cpp's RPC does not answer, or was lost with what it held of a model."""


class StoreError(AloraError, code="store"):
    """The store of adapters and bases cannot be read or written."""


class HubError(AloraError, code="hub"):
    """A hub refuses access, fails, cannot be reached, or does not have what it should."""


class AdapterError(AloraError, code="adapter"):
    """An adapter cannot be used."""


class AdapterFormatError(AdapterError, FileFormatError, code="adapter_format"):
    """An adapter file is malformed."""


class AdapterMismatchError(AdapterError, code="adapter_mismatch"):
    """A sound adapter does not fit this base."""


class AdapterInUseError(AdapterError, code="adapter_in_use"):
    """An adapter is still active, or its name is taken."""


class UnknownAdapterError(AdapterError, KeyError, code="unknown_adapter"):
    """No adapter of that name is loaded."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class OutputError(AloraError, code="output"):
    """An intrinsic's answer is not what its contract says."""


class InvocationNotFoundError(AloraError, code="no_invocation"):
    """Text that was meant to contain an adapter's invocation does not."""


class ConvertError(AloraError, code="convert"):
    """A PEFT adapter cannot be converted."""


class UnsupportedAdapterError(ConvertError, code="unsupported"):
    """A PEFT adapter uses something that would not convert exactly."""


class DecodeError(AloraError, code="decode"):
    """A batch could not be computed; the cells that were there before it are intact."""


class CacheFullError(DecodeError, code="cache_full"):
    """The KV cache has no room for the tokens of a batch."""


class NotFiniteError(DecodeError, code="not_finite"):
    """The model computed NaN or infinite values; none of them are kept."""
