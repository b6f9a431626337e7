"""Every error this package raises on purpose, and nothing else.

AloraError
├── LibraryError                 the native library is missing, of another version, or too late
├── ClosedError                  the model or session was closed
├── CancelledError               the call was cancelled; the conversation is as it was or goes on
├── InputError                   an argument is out of range or of the wrong kind (a ValueError)
│   └── SchemaError              a JSON Schema is invalid, or cannot constrain a reply
├── FileFormatError              a file is not what it should be: truncated, malformed, another one
│   ├── ContractError            an intrinsic's io.yaml is malformed
│   └── SavedSessionError        a saved session is damaged, or belongs to another base or adapter
├── ModelError                   a base model cannot be used
├── StoreError                   the store of adapters and bases cannot be read or written
├── HubError                     a hub refuses, fails or cannot be reached
├── AdapterError
│   ├── AdapterFormatError       an adapter file is malformed (also a FileFormatError)
│   ├── AdapterMismatchError     a sound adapter that was made for another base
│   ├── AdapterInUseError        an adapter is still active, or its name is taken
│   └── UnknownAdapterError      no adapter of that name is loaded
├── OutputError                  an intrinsic's answer is not what its contract says
├── InvocationNotFoundError      text that was meant to contain an invocation does not
├── ConvertError                 a PEFT adapter cannot be converted
│   └── UnsupportedAdapterError  it uses something that would not convert exactly
└── DecodeError                  a batch could not be computed
    └── CacheFullError           the KV cache has no room for it

A message names the file, the field or tensor, what was expected, what was found and the way out.
"""

from __future__ import annotations


class AloraError(Exception):
    """Base of all errors raised by alora_gguf."""


class LibraryError(AloraError):
    """The native library cannot be used."""


class ClosedError(AloraError):
    """A model or session was used after it was closed."""


class InputError(AloraError, ValueError):
    """An argument is out of range or of the wrong kind."""


class CancelledError(AloraError):
    """The call was cancelled from elsewhere."""


class SchemaError(InputError):
    """A JSON Schema is invalid, or cannot constrain a reply."""


class FileFormatError(AloraError):
    """A file is truncated, malformed, or of another format than expected."""


class ContractError(FileFormatError):
    """An intrinsic's io.yaml is malformed."""


class SavedSessionError(FileFormatError):
    """A saved session is damaged, or was made with another base or adapter."""


class ModelError(AloraError):
    """A base model cannot be used."""


class StoreError(AloraError):
    """The store of adapters and bases cannot be read or written."""


class HubError(AloraError):
    """A hub refuses access, fails, cannot be reached, or does not have what it should."""


class AdapterError(AloraError):
    """An adapter cannot be used."""


class AdapterFormatError(AdapterError, FileFormatError):
    """An adapter file is malformed."""


class AdapterMismatchError(AdapterError):
    """A sound adapter does not fit this base."""


class AdapterInUseError(AdapterError):
    """An adapter is still active, or its name is taken."""


class UnknownAdapterError(AdapterError, KeyError):
    """No adapter of that name is loaded."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class OutputError(AloraError):
    """An intrinsic's answer is not what its contract says."""


class InvocationNotFoundError(AloraError):
    """Text that was meant to contain an adapter's invocation does not."""


class ConvertError(AloraError):
    """A PEFT adapter cannot be converted."""


class UnsupportedAdapterError(ConvertError):
    """A PEFT adapter uses something that would not convert exactly."""


class DecodeError(AloraError):
    """A batch could not be computed; the cells that were there before it are intact."""


class CacheFullError(DecodeError):
    """The KV cache has no room for the tokens of a batch."""
