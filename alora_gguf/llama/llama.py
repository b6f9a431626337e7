"""The class itself: llama_cpp.Llama's methods on a Model and one of its sessions, and adapters."""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from alora_gguf.errors import InputError, SavedSessionError

from . import chat, hub, intrinsic, opening
from .completion import Completion
from .embeddings import Embedder, Vector, normalized
from .logprobs import log_softmax
from .options import ChatOptions, CompletionOptions, LogitsRow, Settings, sampling_of, takes
from .prompt import build_prompt
from .reader import Reader
from .sampling import with_bias
from .state import LlamaState
from .stream import TokenStream

if TYPE_CHECKING:
    from llama_cpp import llama_types
    from llama_cpp.llama_cache import BaseLlamaCache

    CompletionAnswer = (
        llama_types.CreateCompletionResponse | Iterator[llama_types.CreateCompletionStreamResponse]
    )

Embeddings = Vector | list[Vector] | list[list[Vector]]
"""One vector for a text, one per text for a list; without pooling, one per token in each place."""


class Llama(Reader):
    """A drop-in for llama_cpp.Llama, for decoder models on text: the same names, arguments, shapes
    and results, on weights that several adapters share. docs/llama.md lists what differs.

    From several threads, calls take turns; a call ends a stream of another call that is not over.
    Every method raises ClosedError after close(), and TypeError for a keyword it does not know.
    """

    @takes(Settings)
    def __init__(self, settings: Settings) -> None:
        """Loads the model at `model_path`, and `adapters`, names mapped to files.

        Raises InputError for keywords that are not supported, ModelError, LibraryError, and
        AdapterError for the adapters.
        """
        super().__init__(settings)
        self._embedder: Embedder | None = None
        self.cache: BaseLlamaCache | None = None
        self.chat_handler = chat.check_handler(settings.chat_handler)
        self.chat_format = settings.chat_format
        self._templates = chat.templates_of(self)
        if self.chat_format is None and self.chat_handler is None:
            self.chat_format = chat.guess_format(self.metadata, self._templates)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        filename: str | None,
        additional_files: Sequence[str] | None = None,
        local_dir: str | os.PathLike[str] | None = None,
        local_dir_use_symlinks: bool | Literal["auto"] = "auto",  # noqa: ARG003 (see below)
        cache_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Llama:
        """Opens a model of the Hugging Face Hub: `filename`, a name or a glob pattern that means
        one file of the repository, with `additional_files` (the other parts of a split model).

        `kwargs` are the constructor's. `local_dir_use_symlinks` has no effect: huggingface_hub no
        longer knows it. Raises InputError if a pattern does not mean exactly one file.
        """
        if filename is None:
            raise InputError('filename is missing: a name, or a pattern such as "*q4_0.gguf"')
        path = hub.fetch_model(
            repo_id, filename, additional_files or (), local_dir=local_dir, cache_dir=cache_dir
        )
        return cls(path, **kwargs)

    # Completions ---------------------------------------------------------------------------------

    @takes(CompletionOptions)
    def create_completion(self, options: CompletionOptions) -> CompletionAnswer:
        """Continues `prompt`, text or token ids, and returns OpenAI's completion object, or with
        `stream` an iterator of its chunks. `max_tokens` None or below 1 means as many as fit.

        With an `adapter`, the tokens from its invocation's last occurrence in the prompt on are
        computed with it at `adapter_scale` (a plain LoRA: all tokens). With `intrinsic` the text is
        what that intrinsic says after the prompt, as JSON. Raises InputError, CacheFullError,
        UnknownAdapterError, InvocationNotFoundError; ContractError and OutputError for intrinsics.
        """
        if options.intrinsic is not None:
            with self._lock:
                self._begin()
                return intrinsic.ask_completion(self, options)
        prompt = build_prompt(self, options)
        room = self.n_ctx() - len(prompt.tokens)
        if room <= 0:
            raise InputError(
                f"Requested tokens ({len(prompt.tokens)}) exceed context window of {self.n_ctx()}"
            )
        wanted = options.max_tokens if options.max_tokens and options.max_tokens > 0 else room
        job = Completion(self, options, prompt, min(wanted, room), room)
        if options.stream:
            return self._chunks(job)
        with self._lock:
            stream = self._begin_completion(job)
            try:
                answer = job.response(stream)
            finally:
                stream.close()
            self._remember(job)
            return answer

    __call__ = create_completion

    def _chunks(self, job: Completion) -> Iterator[llama_types.CreateCompletionStreamResponse]:
        with self._lock:
            stream = self._begin_completion(job)
        yield from self._in_turns(job.chunks(stream), stream)
        with self._lock:
            self._remember(job)

    def _begin_completion(self, job: Completion) -> TokenStream:
        options, tokens = job.options, job.prompt.tokens
        self._begin()
        if self.cache is not None and tokens:
            self._look_up(tokens, options)
        # a seed of its own for each call, but always the same ones after the same first
        self._seed = (
            random.Random(self._seed).randint(0, 2**32)  # noqa: S311
            if options.seed is None
            else options.seed
        )
        scored = options.echo and options.logprobs is not None
        return self._stream(
            tokens,
            sampling_of(options, logits_processor=with_bias(options, self.n_vocab())),
            options,
            job.score_prompt if scored else None,
        )

    # Chats ---------------------------------------------------------------------------------------

    @takes(ChatOptions)
    def create_chat_completion(self, options: ChatOptions) -> chat.ChatAnswer:
        """Replies to `messages` and returns OpenAI's chat completion object, or with `stream` an
        iterator of its chunks.

        With an `adapter` whose invocation is not in the last turn, the invocation takes the place
        of the assistant's marker. `documents` and `chat_template_kwargs` go to the model's chat
        template. `intrinsic` names one to ask about the conversation instead. Raises as
        create_completion() does, and SchemaError for a response_format that cannot be.
        """
        if options.intrinsic is None:
            return chat.complete_chat(self, options)
        template = self._templates.get(self.chat_format or "")
        with self._lock:
            self._begin()
            return intrinsic.ask_chat(self, options, template.source if template else None)

    def create_chat_completion_openai_v1(self, *args: Any, **kwargs: Any) -> Any:
        """create_chat_completion() with the openai package's own types. Raises ImportError if that
        is not installed.
        """
        try:
            types = importlib.import_module("openai.types.chat")
        except ImportError:
            raise ImportError(
                "create_chat_completion_openai_v1() needs the openai package: pip install openai"
            ) from None
        answer: Any = self.create_chat_completion(*args, **kwargs)
        if isinstance(answer, dict):
            return types.ChatCompletion(**answer)
        return (types.ChatCompletionChunk(**chunk) for chunk in answer)

    # Embeddings ----------------------------------------------------------------------------------

    def create_embedding(
        self,
        input: str | list[str],  # noqa: A002 (stock's name)
        model: str | None = None,
    ) -> llama_types.CreateEmbeddingResponse:
        """Embeds a text or several, and returns OpenAI's embedding object; see embed()."""
        texts = input if isinstance(input, list) else [input]
        vectors: Any
        vectors, total = self.embed(texts, return_count=True)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "embedding": vector, "index": i}
                for i, vector in enumerate(vectors)
            ],
            "model": self.model_path if model is None else model,
            "usage": {"prompt_tokens": total, "total_tokens": total},
        }

    @overload
    def embed(
        self,
        input: str | list[str],
        normalize: bool = ...,
        truncate: bool = ...,
        return_count: Literal[False] = ...,
    ) -> Embeddings: ...

    @overload
    def embed(
        self,
        input: str | list[str],
        normalize: bool = ...,
        truncate: bool = ...,
        *,
        return_count: Literal[True],
    ) -> tuple[Embeddings, int]: ...

    def embed(
        self,
        input: str | list[str],  # noqa: A002 (stock's name)
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Embeddings | tuple[Embeddings, int]:
        """A vector [n_embd] for a text, or one per text of a list; where the model pools nothing
        (pooling_type() is 0), one per token in each place. With `return_count` also the tokens.

        Texts are cut to n_batch tokens with `truncate`, else longer ones raise InputError. The
        first call makes a second context, with a KV cache of its own.
        """
        texts = [input] if isinstance(input, str) else input
        tokens = [self.tokenize(text.encode()) for text in texts]
        with self._lock:
            if self._embedder is None:
                self._embedder = Embedder(self._runtime._runtime.engine)
            if truncate:
                tokens = [each[: self._embedder.n_batch] for each in tokens]
            vectors: Any = self._embedder.embed(tokens)
            if normalize and self._embedder.pools:
                vectors = [normalized(vector) for vector in vectors]
            elif normalize:
                vectors = [[normalized(vector) for vector in text] for text in vectors]
        result: Embeddings = vectors[0] if isinstance(input, str) else vectors
        return (result, sum(map(len, tokens))) if return_count else result

    # State ---------------------------------------------------------------------------------------

    def set_seed(self, seed: int) -> None:
        """The seed of the next samplers."""
        self._seed = seed

    def set_cache(self, cache: BaseLlamaCache | None) -> None:
        """Where completions look for a saved state that begins their prompt, and leave theirs."""
        self.cache = cache

    def save_state(self) -> LlamaState:
        """What was read, with its cells and who computed them."""
        with self._lock:
            self._begin()
            saved, rows = self._cells.save()
            return LlamaState(saved, self._seed, opening.settings_of_cells(self._settings), rows)

    def load_state(self, state: LlamaState) -> None:
        """Goes on from a saved state. Raises SavedSessionError, and leaves everything as it was, if
        it was saved with another base or other settings, or holds cells of an adapter that is not
        loaded with the same weights; CacheFullError.
        """
        with self._lock:
            self._begin()
            self._check(state)
            self._cells.load(state.saved, state.rows)
            self._seed = state.seed

    def _check(self, state: LlamaState) -> None:
        if not isinstance(state, LlamaState):
            raise InputError(f"expected a state of save_state(), got {type(state).__name__}")
        state.check(self._runtime, opening.settings_of_cells(self._settings))

    def _look_up(self, tokens: list[int], options: CompletionOptions) -> None:
        """Loads a state from the cache if it holds more of the prompt than is read already."""
        if self.cache is None:
            return
        try:
            state = self.cache[tokens]
        except KeyError:
            return
        if not isinstance(state, LlamaState):
            return
        try:
            self._check(state)
        except SavedSessionError:
            return  # computed by an adapter that is gone, say
        if self._cells.usable(state.saved, tokens, options.adapter, options.adapter_scale):
            self._cells.load(state.saved, state.rows)
            self._seed = state.seed

    def _remember(self, job: Completion) -> None:
        """Leaves the state after a completion in the cache."""
        if self.cache is not None:
            self.cache[job.prompt.tokens + job.tokens] = cast(Any, self.save_state())

    def __getstate__(self) -> dict[str, Any]:
        """The constructor's arguments: what is unpickled opens the model anew."""
        state = {
            name: getattr(self._settings, name)
            for name in Settings.__dataclass_fields__
            if name != "_"
        }
        adapters = {name: file.path for name, file in self.adapters.items()}
        return {**state, "seed": self._seed, "chat_format": self.chat_format, "adapters": adapters}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    # Its life ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees everything. A second call does nothing."""
        with self._lock:
            if self._embedder is not None:
                self._embedder.close()
            super().close()

    def __enter__(self) -> Llama:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Helpers that stock has here -----------------------------------------------------------------

    @staticmethod
    def logits_to_logprobs(logits: LogitsRow | list[float], axis: int = -1) -> LogitsRow:
        """Natural logarithms of the probabilities that logits stand for, along `axis`."""
        return log_softmax(logits, axis)

    @staticmethod
    def longest_token_prefix(a: Sequence[int], b: Sequence[int]) -> int:
        """How many tokens the two begin with in common."""
        n = min(len(a), len(b))
        return next((i for i in range(n) if a[i] != b[i]), n)
