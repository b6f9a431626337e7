"""A base model with its context and its adapters: what a program opens first."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from alora_gguf.chat.asking import Contracts
from alora_gguf.chat.prompt import ChatTemplate

from ._calls import Within, checked, uninterrupted
from .chat.chat import Chat
from .decide.answers import Decision
from .decide.prompts import PLAIN_TEMPLATE
from .decide.questions import MAX_OPTIONS, Asked, Content, check_temperatures, read_questions
from .decide.state import state_messages
from .engine.activation import Combination, Loaded
from .engine.cache_report import CacheReport, report
from .engine.embedding import Pooling
from .engine.infill import infill_prompt
from .engine.llama_context import LlamaContext
from .engine.loading import Tuning, check_load
from .engine.native import load
from .engine.runtime import Runtime
from .errors import InputError, ModelError
from .generate.embeddings import Embeddings, TextEmbedder
from .gguf.base import BaseFile
from .intrinsics import Contract
from .messages import Message, Said, Texts
from .options import AdapterLike, CancelToken, ContextOptions, context_options
from .saved.prompt_cache import PromptCache
from .saved.session_file import SavedSession
from .saved.snapshot import restore
from .session import Session
from .tools import ToolLike

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .engine.native import Stats
    from .options import ContextFields

PathLike = str | os.PathLike[str]


@uninterrupted
@checked
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
        options: ContextOptions | None = None,
        special_tokens_in_text: bool = False,
        prompt_cache: PathLike | None = None,
        verbose: bool = False,
        progress: Callable[[float], None] | None = None,
        cancel: CancelToken | None = None,
        _tuning: Tuning | None = None,
        **changes: Unpack[ContextFields],
    ) -> None:
        """Loads the model at `path` (a GGUF file) and `adapters`, names mapped to files: LoRAs,
        activated ones, or steering vectors.

        Fields of ContextOptions can be given as keywords, such as `n_ctx=4096`; they win over
        `options`. With `special_tokens_in_text` control tokens that messages and documents of a
        chat quote are control tokens, for text that is trusted; without, they are what they look
        like. With `prompt_cache`, a folder, what chats begin with (instructions, tools, documents)
        is kept on disk and not read again by another process: some 20 to 130 kB a token, at most
        8 GiB, of which the least recently used gives way. `verbose` shows llama.cpp's log.
        `progress` is called with the loaded fraction of
        the weights, 0 to 1.

        Raises LibraryError, MissingFileError, ModelError, InputError, CancelledError, and
        AdapterError for the adapters.
        """
        options = context_options(options, changes, "Model()")
        self._prompt_cache = None if prompt_cache is None else PromptCache(prompt_cache)
        base = BaseFile.read(path)
        if not base.causal:
            raise ModelError(
                f"{base.path}: its attention is not causal ({base.architecture}): what is cached "
                "of a text would change with what follows it; use a causal model"
            )
        check_load(base, options, cancel)
        context = LlamaContext(
            base.path, options, verbose=verbose, tuning=_tuning, cancel=cancel, progress=progress
        )
        self._runtime = runtime = Runtime(base, context)
        for n_cells, how in base.departures:
            if self.n_ctx > n_cells:
                logging.getLogger("alora_gguf").warning("%s: %s", base.path, how)
        self._contracts = Contracts(runtime.bank.find)
        self._template: ChatTemplate | None = None
        self._decides: ChatTemplate | None = None
        self._special_tokens_in_text = special_tokens_in_text
        self._embedder = TextEmbedder(runtime, _tuning)
        try:
            self._contracts.check(runtime.bank.load(adapters or {}))
        except BaseException:
            runtime.close()
            raise

    @property
    def path(self) -> str:
        """The file it was loaded from."""
        return str(self._runtime.base.path)

    @property
    def architecture(self) -> str:
        """general.architecture of the file, such as "llama"."""
        return self._runtime.base.architecture

    @property
    def n_ctx(self) -> int:
        """Cells of the KV cache."""
        return self._runtime.engine.cells.n_cells

    @property
    def n_ctx_train(self) -> int | None:
        """The context length that it was trained for, in tokens; None if its file does not say."""
        return self._runtime.engine.n_ctx_train

    @property
    def n_vocab(self) -> int:
        """Tokens in the vocabulary."""
        return self._runtime.vocab.n_tokens

    @property
    def n_threads(self) -> int:
        """CPU threads that it computes with; those that it has at most, if none were given."""
        return self._runtime.engine.n_threads

    @property
    def rewinds(self) -> bool:
        """Whether cells can be given up from any token on; not so where a model's memory is more
        than cells, as of recurrent and hybrid ones.
        """
        return self._runtime.engine.rewinds

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end a reply."""
        vocab = self._runtime.vocab
        return tuple(token for token in range(vocab.n_tokens) if vocab.is_end(token))

    @staticmethod
    def can_offload() -> bool:
        """Whether this build of the library can compute on a GPU. Raises LibraryError."""
        return bool(load().llama.llama_supports_gpu_offload())

    # Adapters ------------------------------------------------------------------------------------

    @property
    def adapters(self) -> Mapping[str, Loaded]:
        """The loaded adapters by name: AdapterFile, VectorFile, ClassifierFile or Combination;
        read-only.
        """
        return MappingProxyType(self._runtime.bank.loaded())

    def adapter(self, name: str) -> Loaded:
        """A loaded adapter. Raises UnknownAdapterError, naming those that are loaded."""
        return self._runtime.bank.find(name)

    def load_adapter(self, name: str, path: PathLike, *, from_start: bool = False) -> Loaded:
        """Loads one more adapter under `name`; with `from_start` it is on from the first token: an
        activated LoRA's weights as a plain LoRA's, a vector also on what is read.

        Raises AdapterFormatError, AdapterMismatchError, or AdapterInUseError if the name is taken.
        """
        self._runtime.check_open()
        file = self._runtime.bank.load({name: path}, from_start=from_start)[name]
        self._contracts.check({name: file})
        return file

    def combine(self, name: str, adapters: Mapping[str, float]) -> Combination:
        """Names several loaded adapters at once, each with its scale: LoRAs, activated ones that
        have one invocation, and vectors. On one token their changes are summed, as PEFT sums those
        of several active adapters; each begins where it would alone, so that after an invocation
        a LoRA acts beside an activated one. They stay loaded until the combination is unloaded.

        Without a name such a mapping can be given wherever an adapter can. Raises
        UnknownAdapterError, InputError, or AdapterInUseError if the name is taken.
        """
        self._runtime.check_open()
        made = self._runtime.bank.combine(name, adapters)
        self._contracts.check({name: made})
        return made

    def unload_adapter(self, name: str) -> None:
        """Frees an adapter. Cells it computed stay, for the same weights loaded again.

        Raises AdapterInUseError while a generation uses it or a combination has it,
        UnknownAdapterError. A combination's name can go amid a generation, which goes on.
        """
        self._runtime.check_open()
        self._runtime.bank.unload(name)
        self._contracts.forget(name)

    def contract(self, name: str) -> Contract:
        """The contract of an adapter: what set_contract() gave, or else what is in its file.

        Raises UnknownAdapterError, ContractError if there is none or it is malformed.
        """
        return self._contracts.of(name)

    def set_contract(self, name: str, contract: Contract | PathLike) -> None:
        """Gives an adapter another contract than the one in its file, until it is unloaded: one
        that was loaded, or the path of an io.yaml or of a directory or GGUF that has one.

        Raises UnknownAdapterError, ContractError.
        """
        self._contracts.set(name, contract)

    # Sessions and text ---------------------------------------------------------------------------

    def session(self) -> Session:
        """A new, empty conversation. Raises CacheFullError if all sequences are in use."""
        return Session(self, self._runtime)

    def chat(
        self,
        *,
        system: str | None = None,
        documents: Texts = (),
        messages: Iterable[Said] = (),
        tools: Iterable[ToolLike] = (),
        template: str | None = None,
        template_arguments: Mapping[str, object] | None = None,
    ) -> Chat:
        """A new conversation in messages: what `system` says, then `messages`, about `documents`.
        Replies can call `tools`, Tools or OpenAI's mappings. Nothing is read before the first call
        that needs it.

        `template` is Jinja text to use instead of the model's own; `template_arguments` are further
        variables of it. Raises ModelError if there is no template, InputError, SchemaError for a
        tool's, CacheFullError if all sequences are in use.
        """
        chosen = self._chat_template(template)
        said = list(messages) if system is None else [Message("system", system), *messages]
        session = self.session()
        try:
            return Chat(
                session,
                self._contracts,
                chosen,
                messages=said,
                documents=documents,
                tools=tools,
                arguments=template_arguments,
            )
        except BaseException:
            session.close()
            raise

    def decide(
        self,
        state: Content,
        questions: Mapping[str, Asked],
        *,
        orders: Annotated[int, Within(1, MAX_OPTIONS)] | None = None,
        temperature: Mapping[str, float] | None = None,
        template: str | None = None,
        cancel: CancelToken | None = None,
    ) -> Decision:
        """Asks typed questions about a state, which is read once: a text, or what JSON can hold
        (an array of messages with role and content is a conversation). See Chat.decide().

        A base without a chat template gets a plain one, `template` is another. Raises what
        Chat.decide() and chat() do.
        """
        messages = state_messages(state)
        asked, given = read_questions(questions), check_temperatures(temperature)
        if template is None and self._runtime.base.chat_template is None:
            template = PLAIN_TEMPLATE
        with self.chat(messages=messages, template=template) as chat:
            return chat._decide(asked, orders, given, cancel, state)

    def restore(self, path: PathLike) -> Chat:
        """The chat that Chat.save() wrote to `path`, cells and all: nothing is read again. Raises
        as restore_session() does.
        """
        session, saved = self._restore(path)
        try:
            return Chat._restored(
                session, self._contracts, self._chat_template, saved.notes, saved.origin
            )
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
        sequence, saved = restore(self._runtime, path)
        return Session(self, self._runtime, sequence=sequence), saved

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Token ids of `text`; control tokens written in it are recognized with `parse_special`,
        those that begin a text are added with `add_special`. Raises ModelError without a
        vocabulary.
        """
        self._runtime.check_open()
        return self._runtime.vocab.tokenize(
            text, add_special=add_special, parse_special=parse_special
        )

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text of `tokens`; control tokens are shown with `special`. Raises ModelError without
        a vocabulary, InputError for a token outside it.
        """
        self._runtime.check_open()
        vocab = self._runtime.vocab
        return vocab.detokenize(vocab.check(tokens, "tokens"), special=special)

    def infill(
        self, prefix: str | Sequence[int], suffix: str, *, suffix_first: bool = False
    ) -> list[int]:
        """A prompt, in token ids, for what stands between `prefix` (text or token ids) and
        `suffix`: `session.generate(prompt=model.infill(before, after))`. Control tokens in text are
        text. `suffix_first` is for models that were trained with the suffix before the prefix.

        Raises InputError for a vocabulary without such tokens (tokenizer.ggml.fim_pre_token_id and
        its like), CacheFullError for more than the KV cache can hold.
        """
        self._runtime.check_open()
        vocab = self._runtime.vocab
        for text in (prefix, suffix):
            if isinstance(text, str):
                vocab.check_fits(text)
        given = prefix if isinstance(prefix, str) else vocab.check(prefix, "prefix")
        found = infill_prompt(vocab, given, suffix, suffix_first=suffix_first)
        if found is None:
            raise InputError(
                f"{self.path}: its vocabulary has no tokens for what stands between two texts "
                "(tokenizer.ggml.fim_pre_token_id, fim_suf_token_id, fim_mid_token_id); use a "
                "model that was trained to fill in"
            )
        return found

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """The bytes that a token adds to a text, perhaps a part of a character only; those of a
        control token with `special`. Raises InputError for a token outside the vocabulary.
        """
        self._runtime.check_open()
        vocab = self._runtime.vocab
        return vocab.piece(*vocab.check([token], "token"), special=special)

    def embed(
        self,
        texts: str | Sequence[str | Sequence[int]],
        *,
        adapter: AdapterLike | None = None,
        scale: float = 1.0,
        pooling: Pooling | None = None,
        normalize: bool = True,
        truncate: bool = False,
        cancel: CancelToken | None = None,
    ) -> Embeddings:
        """Vectors of `texts` (a text, or several, each text or token ids), read by the base or by
        an `adapter` from its invocation on; by a steering vector from the first token on. `pooling`
        makes one vector of a text's: their "mean", the first ("cls") or the "last" one; None: as
        the model's file says, else the mean. With `normalize` they have length 1.

        A text has at most n_batch tokens; `truncate` cuts longer ones. The first call makes a
        second context, with a KV cache of its own: conversations stay as they are. Raises
        InputError, also for a model that pools into ranks, UnknownAdapterError,
        InvocationNotFoundError, NotFiniteError, CancelledError.
        """
        self._runtime.check_open()
        given = [texts] if isinstance(texts, str) else texts
        with self._runtime.bank.using(adapter, scale) as use:
            return self._embedder.embed(
                given, use, pooling, normalize=normalize, truncate=truncate, cancel=cancel
            )

    def stats(self) -> Stats:
        """Counters of the context's graphs, buffers and adapters."""
        engine = self._runtime.engine
        with engine.lock:
            return engine.native.stats(engine.ctx)

    def cache_report(self) -> CacheReport:
        """What the KV cache holds at this moment, and why; str() of it is for people."""
        return report(self._runtime)

    # The life of a model -------------------------------------------------------------------------

    def close(self) -> None:
        """Frees everything. Its sessions can then only be closed. Idempotent."""
        self._runtime.close()

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._runtime.engine.closed

    def __repr__(self) -> str:
        if self.closed:
            return f"<Model {self.path}: closed>"
        adapters = ", ".join(self._runtime.bank.loaded()) or "no adapters"
        return f"<Model {self.path}: {self.architecture}, {self.n_ctx} cells, {adapters}>"

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _chat_template(self, source: str | None = None) -> ChatTemplate:
        """The template `source`, or the model's own."""
        self._runtime.check_open()
        own = self._runtime.base.chat_template
        if source is None and own is None:
            raise ModelError(
                f"{self.path}: has no chat template (tokenizer.chat_template); pass its Jinja text "
                "as template=, or use a session and write prompts yourself"
            )
        if source is None or source == own:
            if self._template is None:
                self._template = self._read_template(own or "", self.path)
            return self._template
        return self._read_template(source, "template")

    def _decision_template(self) -> ChatTemplate | None:
        """What writes the questions of a base that was made for typed decisions; None for any other
        one.
        """
        source = self._runtime.base.decision_template
        if source is not None and self._decides is None:
            self._decides = self._read_template(source, f"{self.path}: systemone")
        return self._decides

    def _read_template(self, source: str, name: str) -> ChatTemplate:
        special = self._special_tokens_in_text
        return ChatTemplate(source, self._runtime.vocab, name, special_tokens_in_text=special)
