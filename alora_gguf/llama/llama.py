"""The class: what a completion or a chat can have beside stock's, and adapters."""

from __future__ import annotations

import fnmatch
import inspect
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from llama_cpp import Llama as Stock

from alora_gguf._calls import checked
from alora_gguf.engine.activation import Loaded
from alora_gguf.engine.embedding import Embedder, normalized
from alora_gguf.errors import InputError
from alora_gguf.options import AdapterLike, Timings

from . import chat, completion
from .reader import Reader
from .request import Request
from .settings import extends


class Llama(Reader):
    """llama_cpp.Llama, on weights that several adapters share; docs/llama.md says what differs.

    From several threads, calls take turns; a call that reads ends a stream that is not over. Every
    method raises ClosedError after close(), and TypeError for a keyword it does not know.
    """

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
        from huggingface_hub import HfApi

        if filename is None:
            raise InputError('filename is missing: a name, or a pattern such as "*q4_0.gguf"')
        api = HfApi()
        known = [file.rfilename for file in api.model_info(repo_id).siblings or ()]
        names = [_match(repo_id, each, known) for each in (filename, *(additional_files or ()))]
        path, *_ = [
            api.hf_hub_download(
                repo_id,
                name,
                local_dir=None if local_dir is None else os.fspath(local_dir),
                cache_dir=None if cache_dir is None else os.fspath(cache_dir),
            )
            for name in names
        ]
        return cls(str(path), **kwargs)

    # Adapters ------------------------------------------------------------------------------------

    @property
    def adapters(self) -> Mapping[str, Loaded]:
        """The loaded adapters by name, read-only."""
        return MappingProxyType(self._runtime.bank.loaded())

    @checked
    def load_adapter(self, name: str, path: str | os.PathLike[str]) -> Loaded:
        """Loads one more adapter under `name`. Raises AdapterFormatError, AdapterMismatchError, or
        AdapterInUseError if the name is taken.
        """
        self._runtime.check_open()
        file = self._runtime.bank.load({name: path})[name]
        self._contracts.check({name: file})
        return file

    @checked
    def unload_adapter(self, name: str) -> None:
        """Frees an adapter; a stream that is not over ends. Raises UnknownAdapterError."""
        with self._changing():
            self._runtime.bank.unload(name)
            self._contracts.forget(name)

    @checked
    def load_contract(self, name: str, path: str | os.PathLike[str]) -> None:
        """Gives an adapter another contract (io.yaml) than the one in its file. Raises
        UnknownAdapterError, ContractError.
        """
        self._contracts.set(name, path)

    @property
    def last_timings(self) -> Timings:
        """Of the last completion that ended, in tokens and seconds."""
        return self._last_timings

    # Completions and chats -----------------------------------------------------------------------

    @extends(Stock.create_completion)
    def create_completion(
        self,
        options: dict[str, Any],
        *,
        adapter: AdapterLike | None = None,
        adapter_scale: float = 1.0,
        intrinsic: str | None = None,
        intrinsic_arguments: Mapping[str, str] | None = None,
    ) -> Any:
        """Continues `prompt`, text or token ids, and returns OpenAI's completion object, or with
        `stream` an iterator of its chunks. `max_tokens` None or below 1 means as many as fit.

        With an `adapter` (a name, or several mapped to scales), the tokens from its invocation's
        last occurrence in the prompt on are computed with it at `adapter_scale` (a plain LoRA: all
        tokens; a vector: the reply's). With `intrinsic` the text is
        what that intrinsic says after the prompt, as JSON. Raises InputError, CacheFullError,
        UnknownAdapterError, InvocationNotFoundError; ContractError and OutputError for intrinsics.
        """
        if intrinsic is not None:
            extra = chat.Extra(
                adapter, adapter_scale, intrinsic=intrinsic, arguments=intrinsic_arguments
            )
            return chat.ask(self, options, Stock.create_completion, extra)
        request = Request(self, self._runtime.vocab, adapter, adapter_scale)
        answers = completion.complete(self, options, request)
        return answers if options["stream"] else next(answers)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """create_completion(), which a subclass may have overridden."""
        return self.create_completion(*args, **kwargs)

    __call__.__signature__ = inspect.signature(create_completion)  # type: ignore[attr-defined]

    @extends(Stock.create_chat_completion)
    def create_chat_completion(
        self,
        options: dict[str, Any],
        *,
        adapter: AdapterLike | None = None,
        adapter_scale: float = 1.0,
        documents: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
        intrinsic: str | None = None,
        intrinsic_arguments: Mapping[str, str] | None = None,
    ) -> Any:
        """Replies to `messages` and returns OpenAI's chat completion object, or with `stream` an
        iterator of its chunks.

        With an `adapter` whose invocation is not in the last turn, the invocation takes the place
        of the assistant's marker. `documents` and `chat_template_kwargs` go to the model's chat
        template. `intrinsic` names one to ask about the conversation instead. Raises as
        create_completion() does, and SchemaError for a response_format that cannot be.
        """
        extra = chat.Extra(
            adapter,
            adapter_scale,
            documents,
            chat_template_kwargs or {},
            intrinsic,
            intrinsic_arguments,
        )
        if intrinsic is None:
            return chat.complete(self, options, extra)
        return chat.ask(self, options, Stock.create_chat_completion, extra)

    @extends(Stock.embed)
    def embed(self, options: dict[str, Any]) -> Any:
        """A vector [n_embd] for a text, or one per text of a list; where the model pools nothing
        (pooling_type() is 0), one per token in each place. With `return_count` also the tokens.

        Texts are cut to n_batch tokens with `truncate`, else longer ones raise ValueError. The
        first call makes a second context, with a KV cache of its own.
        """
        given = options["input"]
        texts = [given] if isinstance(given, str) else list(given)
        with self._lock:
            self._runtime.check_open()
            if self._embedder is None and texts:
                params = type(self.context_params).from_buffer_copy(self.context_params)
                self._embedder = Embedder(self._runtime.engine.context, params, self.n_batch)
            tokens = [self.tokenize(text.encode("utf-8")) for text in texts]
        n = self.n_batch
        tokens = [each[:n] for each in tokens] if options["truncate"] else tokens
        if too_long := [len(each) for each in tokens if len(each) > n]:
            raise InputError(f"Requested tokens ({too_long[0]}) exceed batch size of {n}")
        if any(not each for each in tokens):
            raise InputError("a text has no tokens, so there is nothing to embed")
        found = self._embedder.embed(tokens) if self._embedder is not None else []
        vectors = [(normalized(each) if options["normalize"] else each).tolist() for each in found]
        output = vectors[0] if isinstance(given, str) else vectors
        return (output, sum(map(len, tokens))) if options["return_count"] else output

    def __getstate__(self) -> dict[str, Any]:
        """The constructor's arguments: what is unpickled opens the model again."""
        adapters = {name: file.path for name, file in self.adapters.items() if file.path}
        settings: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]
        own = {
            "adapters": adapters,
            "special_tokens_in_text": self._special_tokens_in_text,
            "attention": self._attention,
        }
        return {**settings, **own}

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _match(repo_id: str, pattern: str, names: Sequence[str]) -> str:
    found = fnmatch.filter(names, pattern)
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{repo_id}: several files match {pattern!r}: {', '.join(found)}")
    models = ", ".join(fnmatch.filter(names, "*.gguf")) or "none"
    raise InputError(f"{repo_id}: no file matches {pattern!r}; its GGUF files: {models}")
