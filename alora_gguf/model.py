"""A base model with its context and its adapters: what a program opens first."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

from .gguf.adapter import AdapterFile
from .engine.bank import Bank, Use
from .gguf.base import BaseFile
from .engine.cache_report import CacheReport, report
from .options import CancelToken
from .chat.chat import Chat
from .chat.template import ChatTemplate
from .options import check_int
from .engine.sequence import Conversation
from .engine.context import Engine
from .errors import ModelError
from .gguf.fingerprint import BaseFingerprint
from .intrinsics import Contract, load_contract
from .engine.loading import Tuning
from .chat.messages import Message, Said, Texts
from .options import ContextOptions
from .engine.prefix_cache import PrefixPool
from .saved.session_file import SavedSession, check_saved, read_saved
from .saved.layout import CacheLayout
from .session import Session

if TYPE_CHECKING:
    from .engine.native import Stats

PathLike = str | os.PathLike[str]


class Model:
    """A loaded base model. Opens, serves sessions, is closed; also a context manager.

    One model may be used from several threads: calls on different sessions share batches, calls on
    the same session take turns. It holds one KV cache of n_ctx cells that all its sessions and
    their forks share.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        adapters: Mapping[str, PathLike] | None = None,
        n_ctx: int | None = None,
        n_seq_max: int | None = None,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        options: ContextOptions | None = None,
        verbose: bool = False,
        progress: Callable[[float], None] | None = None,
        cancel: CancelToken | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        """Loads the model at `path` (a GGUF file) and `adapters`, names mapped to files.

        `n_ctx`, `n_seq_max` and `n_threads` override those of `options`. `n_gpu_layers` layers go
        to the GPU, all if it is negative. `verbose` shows llama.cpp's log. `progress` is called
        with the loaded fraction of the weights, 0 to 1. `tuning` is not part of the public API.

        Raises LibraryError, ModelError, InputError, CancelledError, and AdapterError for the
        adapters.
        """
        check_int(n_gpu_layers, "n_gpu_layers", -(2**31))
        options = options or ContextOptions()
        options = replace(
            options,
            n_ctx=options.n_ctx if n_ctx is None else n_ctx,
            n_seq_max=options.n_seq_max if n_seq_max is None else n_seq_max,
            n_threads=options.n_threads if n_threads is None else n_threads,
        )
        self._base = BaseFile.read(path)
        self._engine = engine = Engine(
            self._base.path,
            options,
            n_gpu_layers=n_gpu_layers,
            verbose=verbose,
            tuning=tuning,
            cancel=cancel,
            progress=progress,
        )
        self._bank = Bank(engine, self._base, options.max_adapters)
        self._pool = PrefixPool(engine, options.n_pooled)
        engine.room.reclaim = self._pool.evict
        self._contracts: dict[str, tuple[str | None, Contract]] = {}  # of whose weights: None: any
        self._template: ChatTemplate | None = None
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()  # guarded by the desk
        try:
            # at once: a file that is replaced later must not vouch for what was loaded
            self._fingerprint = BaseFingerprint.of(self._base)
            self._layout = CacheLayout.of(
                options,
                self._base,
                n_ctx=self.n_ctx,
                memory=engine.memory_kind,
                window=engine.window,
            )
            self._bank.load(adapters or {})
        except BaseException:
            self._engine.close()
            raise

    @property
    def path(self) -> str:
        """The file it was loaded from."""
        return str(self._base.path)

    @property
    def architecture(self) -> str:
        """general.architecture of the file, such as "llama"."""
        return self._base.architecture

    @property
    def n_ctx(self) -> int:
        """Cells of the KV cache."""
        return self._engine.books.n_cells

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        return self._engine.vocab.n_tokens

    # Adapters ------------------------------------------------------------------------------------

    @property
    def adapters(self) -> Mapping[str, AdapterFile]:
        """The loaded adapters by name, read-only."""
        return MappingProxyType(dict(self._bank))

    def adapter(self, name: str) -> AdapterFile:
        """A loaded adapter. Raises UnknownAdapterError, naming those that are loaded."""
        return self._bank.find(name)

    def load_adapter(self, name: str, path: PathLike) -> AdapterFile:
        """Loads one more adapter under `name`.

        Raises AdapterFormatError, AdapterMismatchError, or AdapterInUseError if the name is taken.
        """
        _ = self._engine.ctx
        self._bank.load({name: path})
        return self._bank[name]

    def unload_adapter(self, name: str) -> None:
        """Frees an adapter. Cells it computed stay, for the same weights loaded again.

        Raises AdapterInUseError while a generation uses it, UnknownAdapterError.
        """
        _ = self._engine.ctx
        self._bank.unload(name)
        self._contracts.pop(name, None)

    def contract(self, name: str) -> Contract:
        """The contract of an adapter: what set_contract() gave, or else what is in its file.

        Raises UnknownAdapterError, ContractError if there is none or it is malformed.
        """
        file = self.adapter(name)
        given = self._contracts.get(name)
        if given is None or given[0] not in (None, file.identity):
            given = self._contracts[name] = (file.identity, Contract.of_adapter(file))
        return given[1]

    def set_contract(self, name: str, contract: Contract | PathLike) -> None:
        """Gives an adapter another contract than the one in its file, until it is unloaded: one
        that was loaded, or the path of an io.yaml or of a directory or GGUF that has one.

        Raises UnknownAdapterError, ContractError.
        """
        _ = self.adapter(name)
        found = contract if isinstance(contract, Contract) else load_contract(contract)
        self._contracts[name] = (None, found)

    # Sessions and text ---------------------------------------------------------------------------

    def session(self) -> Session:
        """A new, empty conversation. Raises CacheFullError if all sequences are in use."""
        return Session(self)

    def chat(
        self,
        *,
        system: str | None = None,
        documents: Texts = (),
        messages: Iterable[Said] = (),
        template: str | None = None,
        template_arguments: Mapping[str, object] | None = None,
    ) -> Chat:
        """A new conversation in messages: what `system` says, then `messages`, about `documents`.
        Nothing is read before the first call that needs it.

        `template` is Jinja text to use instead of the model's own; `template_arguments` are further
        variables of it. Raises ModelError if there is no template, InputError, CacheFullError if
        all sequences are in use.
        """
        chosen = self.chat_template(template)
        said = list(messages) if system is None else [Message("system", system), *messages]
        session = self.session()
        try:
            return Chat(
                session, chosen, messages=said, documents=documents, arguments=template_arguments
            )
        except BaseException:
            session.close()
            raise

    def restore(self, path: PathLike) -> Chat:
        """The chat that Chat.save() wrote to `path`, cells and all: nothing is read again. Raises
        as restore_session() does.
        """
        session, saved = self._restore(path)
        try:
            return Chat.restored(session, saved.notes, saved.origin)
        except BaseException:
            session.close()
            raise

    def restore_session(self, path: PathLike) -> Session:
        """The conversation that Session.save() wrote to `path`, cells and all: nothing is read
        again.

        Raises SavedSessionError if the file is damaged, was saved with another base or other cache
        types, or holds cells of an adapter that is not loaded with the same weights.
        """
        return self._restore(path)[0]

    def _restore(self, path: PathLike) -> tuple[Session, SavedSession]:
        saved = read_saved(path)
        check_saved(
            saved,
            base=self._fingerprint,
            cache=self._layout,
            adapters_loaded={name: file.identity for name, file in self.adapters.items()},
            n_vocab=self.n_vocab,
        )
        conversation = Conversation(self)
        try:
            conversation.load(saved)
        except BaseException:
            conversation.close()
            raise
        return Session(self, conversation=conversation), saved

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of `text`; control tokens written in it are recognized with `parse_special`,
        those that begin a text are added with `add_special`. Raises ModelError without a
        vocabulary.
        """
        _ = self._engine.ctx
        return self._engine.vocab.tokenize(
            text, add_special=add_special, parse_special=parse_special
        )

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of `tokens`; control tokens are shown with `special`. Raises ModelError without
        a vocabulary, InputError for a token outside it.
        """
        _ = self._engine.ctx
        vocab = self._engine.vocab
        return vocab.detokenize(vocab.check(tokens, "tokens"), special=special)

    def stats(self) -> Stats:
        """Counters of the context's graphs, buffers and adapters."""
        with self._engine.lock:
            return self._engine.native.stats(self._engine.ctx)

    def cache_report(self) -> CacheReport:
        """What the KV cache holds at this moment, and why; str() of it is for people."""
        return report(self)

    # The life of a model -------------------------------------------------------------------------

    def close(self) -> None:
        """Frees everything. Its sessions can then only be closed. A second call does nothing."""
        with self._engine.lock:
            self._engine.close()

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._engine.closed

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What Session needs --------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """The engine below: batches, sequences and cells. Not part of the public API."""
        return self._engine

    def using(self, adapter: str | None, scale: float) -> AbstractContextManager[Use]:
        """Resolves an adapter's name and keeps it loaded meanwhile. Not part of the public API."""
        return self._bank.using(adapter, scale)

    @property
    def fingerprint(self) -> BaseFingerprint:
        """What the base is known by in saved sessions. Not part of the public API."""
        return self._fingerprint

    @property
    def layout(self) -> CacheLayout:
        """What saved cells must have been laid out as. Not part of the public API."""
        return self._layout

    @property
    def pool(self) -> PrefixPool:
        """The cells of closed sessions. Not part of the public API."""
        return self._pool

    def chat_template(self, source: str | None = None) -> ChatTemplate:
        """The template `source`, or the model's own. Not part of the public API."""
        _ = self._engine.ctx
        own = self._base.chat_template
        if source is None and own is None:
            raise ModelError(
                f"{self.path}: has no chat template (tokenizer.chat_template); pass its Jinja text "
                "as template=, or use a session and write prompts yourself"
            )
        if source is None or source == own:
            if self._template is None:
                self._template = ChatTemplate(own or "", self._engine.vocab, self.path)
            return self._template
        return ChatTemplate(source, self._engine.vocab, "template")

    def register(self, session: Session) -> None:
        """Lets others share the session's cells. Not part of the public API."""
        with self._engine.desk:
            self._sessions.add(session)

    def live_sessions(self) -> list[Session]:
        """The sessions that are open. Not part of the public API."""
        with self._engine.desk:
            return [session for session in self._sessions if not session.closed]
