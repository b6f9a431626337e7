"""Activated LoRA for llama.cpp: ask many adapters about one cached conversation.

The public names, each loaded when it is first used: importing this package loads neither the
native library nor llama_cpp nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOME = {
    "AdapterError": "errors",
    "AdapterFile": "adapter",
    "AdapterFormatError": "errors",
    "AdapterInUseError": "errors",
    "AdapterMismatchError": "errors",
    "AloraError": "errors",
    "CacheFullError": "errors",
    "CacheHolder": "cache_report",
    "CacheReport": "cache_report",
    "CacheSpan": "cache_report",
    "CancelToken": "cancel",
    "CancelledError": "errors",
    "Chat": "chat",
    "ClosedError": "errors",
    "ContextOptions": "options",
    "ContractError": "errors",
    "ConvertError": "errors",
    "DecodeError": "errors",
    "Document": "messages",
    "FileFormatError": "errors",
    "Generation": "generation",
    "InputError": "errors",
    "IntrinsicCall": "asking",
    "IntrinsicResult": "asking",
    "Invocation": "invoke",
    "InvocationNotFoundError": "errors",
    "LibraryError": "errors",
    "Llama": "llama",
    "LlamaState": "llama",
    "Message": "messages",
    "Model": "model",
    "ModelError": "errors",
    "OutputError": "errors",
    "Provenance": "provenance",
    "Reply": "reply",
    "ReplyOptions": "reply",
    "Sampling": "sampling",
    "SavedSessionError": "errors",
    "SchemaError": "errors",
    "Session": "session",
    "Stats": "_native",
    "Store": "store",
    "StoreEntry": "store_entry",
    "StoreError": "errors",
    "Timings": "timings",
    "TokenLogprob": "logprobs",
    "TopLogprob": "logprobs",
    "UnknownAdapterError": "errors",
    "UnsupportedAdapterError": "errors",
    "Verdict": "invoke",
}

if TYPE_CHECKING:
    from ._native import Stats as Stats
    from .adapter import AdapterFile as AdapterFile
    from .asking import IntrinsicCall as IntrinsicCall
    from .asking import IntrinsicResult as IntrinsicResult
    from .cache_report import CacheHolder as CacheHolder
    from .cache_report import CacheReport as CacheReport
    from .cache_report import CacheSpan as CacheSpan
    from .cancel import CancelToken as CancelToken
    from .chat import Chat as Chat
    from .errors import AdapterError as AdapterError
    from .errors import AdapterFormatError as AdapterFormatError
    from .errors import AdapterInUseError as AdapterInUseError
    from .errors import AdapterMismatchError as AdapterMismatchError
    from .errors import AloraError as AloraError
    from .errors import CacheFullError as CacheFullError
    from .errors import CancelledError as CancelledError
    from .errors import ClosedError as ClosedError
    from .errors import ContractError as ContractError
    from .errors import ConvertError as ConvertError
    from .errors import DecodeError as DecodeError
    from .errors import FileFormatError as FileFormatError
    from .errors import InputError as InputError
    from .errors import InvocationNotFoundError as InvocationNotFoundError
    from .errors import LibraryError as LibraryError
    from .errors import ModelError as ModelError
    from .errors import OutputError as OutputError
    from .errors import SavedSessionError as SavedSessionError
    from .errors import SchemaError as SchemaError
    from .errors import StoreError as StoreError
    from .errors import UnknownAdapterError as UnknownAdapterError
    from .errors import UnsupportedAdapterError as UnsupportedAdapterError
    from .generation import Generation as Generation
    from .invoke import Invocation as Invocation
    from .invoke import Verdict as Verdict
    from .llama import Llama as Llama
    from .llama import LlamaState as LlamaState
    from .logprobs import TokenLogprob as TokenLogprob
    from .logprobs import TopLogprob as TopLogprob
    from .messages import Document as Document
    from .messages import Message as Message
    from .model import Model as Model
    from .options import ContextOptions as ContextOptions
    from .provenance import Provenance as Provenance
    from .reply import Reply as Reply
    from .reply import ReplyOptions as ReplyOptions
    from .sampling import Sampling as Sampling
    from .session import Session as Session
    from .store import Store as Store
    from .store_entry import StoreEntry as StoreEntry
    from .timings import Timings as Timings

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604 (all are strings)


if not TYPE_CHECKING:  # or every name would be there

    def __getattr__(name: str) -> object:
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f".{home}", __name__), name)
        globals()[name] = value  # the next look-up does not come here
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
