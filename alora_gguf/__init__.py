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
    "AdapterFile": "gguf.adapter",
    "AdapterFormatError": "errors",
    "AdapterInUseError": "errors",
    "AdapterMismatchError": "errors",
    "AdapterSummary": "gguf.summary",
    "AloraError": "errors",
    "ArraySummary": "gguf.summary",
    "Barrier": "engine.scheduler",
    "BaseFile": "gguf.base",
    "BaseSummary": "gguf.summary",
    "CacheFullError": "errors",
    "CacheHolder": "engine.cache_report",
    "CacheReport": "engine.cache_report",
    "CacheSpan": "engine.cache_report",
    "CancelToken": "options",
    "CancelledError": "errors",
    "Chat": "chat.chat",
    "ChatSize": "chat.tokenizer",
    "ClosedError": "errors",
    "ContextOptions": "options",
    "ContractError": "errors",
    "ConvertError": "errors",
    "DecodeError": "errors",
    "Document": "messages",
    "FileFormatError": "errors",
    "FinishReason": "options",
    "GenerateOptions": "options",
    "Generation": "generate.generation",
    "HubError": "errors",
    "InputError": "errors",
    "IntrinsicCall": "options",
    "IntrinsicResult": "chat.asking",
    "Invocation": "options",
    "InvocationNotFoundError": "errors",
    "LibraryError": "errors",
    "Llama": "llama",
    "LlamaState": "llama",
    "Message": "messages",
    "MissingFileError": "errors",
    "Model": "model",
    "ModelError": "errors",
    "OutputError": "errors",
    "Progress": "options",
    "Provenance": "engine.provenance",
    "Reply": "chat.reply",
    "Sampling": "options",
    "SavedSessionError": "errors",
    "SchemaError": "errors",
    "Session": "session",
    "Stats": "engine.native",
    "Store": "store.store",
    "StoreEntry": "store.entry",
    "StoreError": "errors",
    "Timings": "options",
    "TokenLogprob": "options",
    "Tokenizer": "chat.tokenizer",
    "TopLogprob": "options",
    "UnknownAdapterError": "errors",
    "UnsupportedAdapterError": "errors",
    "Verdict": "generate.invoke",
    "inspect_gguf": "gguf.inspection",
    "is_saved_session": "saved.container",
}

if TYPE_CHECKING:
    from .chat.asking import IntrinsicResult as IntrinsicResult
    from .chat.chat import Chat as Chat
    from .chat.reply import Reply as Reply
    from .chat.tokenizer import ChatSize as ChatSize
    from .chat.tokenizer import Tokenizer as Tokenizer
    from .engine.cache_report import CacheHolder as CacheHolder
    from .engine.cache_report import CacheReport as CacheReport
    from .engine.cache_report import CacheSpan as CacheSpan
    from .engine.native import Stats as Stats
    from .engine.provenance import Provenance as Provenance
    from .engine.scheduler import Barrier as Barrier
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
    from .errors import HubError as HubError
    from .errors import InputError as InputError
    from .errors import InvocationNotFoundError as InvocationNotFoundError
    from .errors import LibraryError as LibraryError
    from .errors import MissingFileError as MissingFileError
    from .errors import ModelError as ModelError
    from .errors import OutputError as OutputError
    from .errors import SavedSessionError as SavedSessionError
    from .errors import SchemaError as SchemaError
    from .errors import StoreError as StoreError
    from .errors import UnknownAdapterError as UnknownAdapterError
    from .errors import UnsupportedAdapterError as UnsupportedAdapterError
    from .generate.generation import Generation as Generation
    from .generate.invoke import Verdict as Verdict
    from .gguf.adapter import AdapterFile as AdapterFile
    from .gguf.base import BaseFile as BaseFile
    from .gguf.inspection import inspect_gguf as inspect_gguf
    from .gguf.summary import AdapterSummary as AdapterSummary
    from .gguf.summary import ArraySummary as ArraySummary
    from .gguf.summary import BaseSummary as BaseSummary
    from .llama import Llama as Llama
    from .llama import LlamaState as LlamaState
    from .messages import Document as Document
    from .messages import Message as Message
    from .model import Model as Model
    from .options import CancelToken as CancelToken
    from .options import ContextOptions as ContextOptions
    from .options import FinishReason as FinishReason
    from .options import GenerateOptions as GenerateOptions
    from .options import IntrinsicCall as IntrinsicCall
    from .options import Invocation as Invocation
    from .options import Progress as Progress
    from .options import Sampling as Sampling
    from .options import Timings as Timings
    from .options import TokenLogprob as TokenLogprob
    from .options import TopLogprob as TopLogprob
    from .saved.container import is_saved_session as is_saved_session
    from .session import Session as Session
    from .store.entry import StoreEntry as StoreEntry
    from .store.store import Store as Store

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
