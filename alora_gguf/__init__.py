"""Activated LoRA for llama.cpp: ask many adapters about one cached conversation.

    with Model("base.gguf", adapters={"answerability": "answerability.gguf"}) as model:
        chat = model.chat(documents=["The museum opens at nine."])
        print(chat.say("When does it open?", max_tokens=64))
        print(chat.invoke("answerability").value)

Models:            Model, ContextOptions, CancelToken, AdapterFile, ClassifierFile, BaseFile, Stats,
                   Embeddings, serve_rpc
Steering:          VectorFile, VectorOrigin, Directions, write_vector, read_adapter, Combination,
                   Loaded, AdapterLike
Chats:             Chat, Message, Document, Tool, ToolCall, Reply, GenerateOptions, Sampling,
                   Tokenizer, ChatSize
Asking intrinsics: IntrinsicCall, IntrinsicResult, Supervised, Contract, load_contract
Typed decisions:   Predicate, Choice, Score, Decision, PredicateAnswer, ChoiceAnswer, ScoreAnswer,
                   FailedAnswer, Usage; and alora_gguf.decide, for web servers
What calls tell:   Timings, TokenLogprob, TopLogprob, FinishReason, Progress
Sessions:          Session, Generation, Invocation, Verdict, Provenance, is_saved_session
The cache:         CacheReport, CacheHolder, CacheSpan
Files:             inspect_gguf, AdapterSummary, VectorSummary, ClassifierSummary, BaseSummary,
                   ArraySummary, convert_adapter, ConversionReport, verify, Verification
The store:         Store, StoreEntry, StoreContents, StoreAddition, StoredFile, Description
Drop-in:           Llama, LlamaState, for programs written for llama_cpp
Awaiting calls:    aio.call()
Errors:            AloraError and what is below it, drawn in alora_gguf.errors

Each is loaded when it is first used: importing this package loads neither the native library nor
llama_cpp nor numpy. It says where the library is, so that llama_cpp can be imported after it.
`from alora_gguf import *` leaves out Llama and LlamaState, which load the library.
"""

from __future__ import annotations

from importlib import import_module

from . import errors as _errors
from .engine import library as _library

__version__ = "0.1.0"
TYPE_CHECKING = False  # typing itself would take half of what importing this takes

# modules with the public names that they define; the docstring groups these
_HOMES = {
    "chat.asking": "IntrinsicResult",
    "chat.chat": "Chat",
    "chat.reply": "Reply",
    "chat.supervised": "Supervised",
    "chat.tokenizer": "ChatSize Tokenizer",
    "convert": "ConversionReport convert_adapter",
    "decide.answers": "ChoiceAnswer Decision FailedAnswer PredicateAnswer ScoreAnswer Usage",
    "decide.questions": "Choice Predicate Score",
    "generate.embeddings": "Embeddings",
    "engine.activation": "Combination Loaded",
    "engine.cache_report": "CacheHolder CacheReport CacheSpan",
    "engine.native": "Stats",
    "engine.rpc": "serve_rpc",
    "engine.tokens": "Provenance",
    "generate.generation": "Generation",
    "generate.invoke": "Verdict",
    "gguf.adapter": "AdapterFile",
    "gguf.base": "BaseFile",
    "gguf.classifier": "ClassifierFile",
    "gguf.vector": "Directions VectorFile VectorOrigin read_adapter",
    "gguf.vector_writer": "write_vector",
    "gguf.inspection": "AdapterSummary ArraySummary BaseSummary ClassifierSummary VectorSummary "
    "inspect_gguf",
    "intrinsics": "Contract load_contract",
    "llama": "Llama LlamaState",
    "messages": "Document Message",
    "model": "Model",
    "options": "AdapterLike CancelToken ContextOptions FinishReason GenerateOptions IntrinsicCall "
    "Invocation Progress Sampling Timings TokenLogprob TopLogprob",
    "saved.container": "is_saved_session",
    "session": "Session",
    "store.entry": "Description StoreEntry StoredFile",
    "store.store": "Store StoreAddition StoreContents",
    "tools": "Tool ToolCall",
    "verification": "Verification verify",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}
_HOME.update({name: "errors" for name, kind in vars(_errors).items() if isinstance(kind, type)})
_LOAD_THE_LIBRARY = ("Llama", "LlamaState")

if TYPE_CHECKING:
    from . import aio as aio
    from .chat.asking import IntrinsicResult as IntrinsicResult
    from .chat.chat import Chat as Chat
    from .chat.reply import Reply as Reply
    from .chat.supervised import Supervised as Supervised
    from .chat.tokenizer import ChatSize as ChatSize
    from .chat.tokenizer import Tokenizer as Tokenizer
    from .convert import ConversionReport as ConversionReport
    from .convert import convert_adapter as convert_adapter
    from .decide.answers import ChoiceAnswer as ChoiceAnswer
    from .decide.answers import Decision as Decision
    from .decide.answers import FailedAnswer as FailedAnswer
    from .decide.answers import PredicateAnswer as PredicateAnswer
    from .decide.answers import ScoreAnswer as ScoreAnswer
    from .decide.answers import Usage as Usage
    from .decide.questions import Choice as Choice
    from .decide.questions import Predicate as Predicate
    from .decide.questions import Score as Score
    from .engine.activation import Combination as Combination
    from .engine.activation import Loaded as Loaded
    from .engine.cache_report import CacheHolder as CacheHolder
    from .engine.cache_report import CacheReport as CacheReport
    from .engine.cache_report import CacheSpan as CacheSpan
    from .engine.native import Stats as Stats
    from .engine.rpc import serve_rpc as serve_rpc
    from .engine.tokens import Provenance as Provenance
    from .errors import *  # noqa: F403 (each of them)
    from .generate.embeddings import Embeddings as Embeddings
    from .generate.generation import Generation as Generation
    from .generate.invoke import Verdict as Verdict
    from .gguf.adapter import AdapterFile as AdapterFile
    from .gguf.base import BaseFile as BaseFile
    from .gguf.classifier import ClassifierFile as ClassifierFile
    from .gguf.inspection import AdapterSummary as AdapterSummary
    from .gguf.inspection import ArraySummary as ArraySummary
    from .gguf.inspection import BaseSummary as BaseSummary
    from .gguf.inspection import ClassifierSummary as ClassifierSummary
    from .gguf.inspection import VectorSummary as VectorSummary
    from .gguf.inspection import inspect_gguf as inspect_gguf
    from .gguf.vector import Directions as Directions
    from .gguf.vector import VectorFile as VectorFile
    from .gguf.vector import VectorOrigin as VectorOrigin
    from .gguf.vector import read_adapter as read_adapter
    from .gguf.vector_writer import write_vector as write_vector
    from .intrinsics import Contract as Contract
    from .intrinsics import load_contract as load_contract
    from .llama import Llama as Llama
    from .llama import LlamaState as LlamaState
    from .messages import Document as Document
    from .messages import Message as Message
    from .model import Model as Model
    from .options import AdapterLike as AdapterLike
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
    from .store.entry import Description as Description
    from .store.entry import StoredFile as StoredFile
    from .store.entry import StoreEntry as StoreEntry
    from .store.store import Store as Store
    from .store.store import StoreAddition as StoreAddition
    from .store.store import StoreContents as StoreContents
    from .tools import Tool as Tool
    from .tools import ToolCall as ToolCall
    from .verification import Verification as Verification
    from .verification import verify as verify

__all__ = [  # noqa: PLE0604 (all are strings)
    *(name for name in _HOME if name not in _LOAD_THE_LIBRARY),
    "__version__",
    "aio",
]

_library.announce()


if not TYPE_CHECKING:  # or every name would be there

    def __getattr__(name: str) -> object:
        if name in ("aio", "demo", "smollm2"):
            return import_module(f".{name}", __name__)
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from .errors import LibraryError

        try:
            value = getattr(import_module(f".{home}", __name__), name)
        except LibraryError as error:
            return _unavailable(name, error)
        globals()[name] = value  # the next look-up does not come here
        return value


def __dir__() -> list[str]:
    own = {name for name in globals() if name.startswith("__") or name in _LOAD_THE_LIBRARY}
    return sorted({*own, *__all__, "demo", "errors", "smollm2"})


def _unavailable(name: str, error: Exception) -> type:
    """Stands for a class that cannot be had without the library: looking at it is not an error, so
    that hasattr(), help() and imports work; calling it is.
    """

    def refuse(*_: object, **__: object) -> None:
        raise error

    return type(name, (), {"__new__": refuse, "__doc__": f"Cannot be used: {error}"})
