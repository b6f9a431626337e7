"""What it takes to begin: files that are looked at before the model is loaded, and the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from alora_gguf.cli.progress import Progress
from alora_gguf.cli.render import whole

from alora_gguf import (
    BaseFile,
    CacheFullError,
    Chat,
    Document,
    GenerateOptions,
    InputError,
    Model,
    ModelError,
    Sampling,
    Store,
)

from .arguments import read_document, read_text, split_adapter
from .commands import COMMANDS
from .talk import Talk

_DEMO_TOKENS: Final = 256  # of a reply: it was trained for short ones


@dataclass(frozen=True, kw_only=True)
class Given:
    """The command line."""

    base: str | None
    adapters: tuple[str, ...]
    system: str | None
    docs: tuple[Path, ...]
    watch: str | None
    prompt: str | None
    restore: Path | None
    transcript: Path | None
    template: Path | None
    as_json: bool
    temperature: float | None
    seed: int | None
    max_tokens: int | None
    n_ctx: int | None
    threads: int | None
    gpu_layers: int
    verbose: bool

    @property
    def is_demo(self) -> bool:
        """Whether the demo model talks."""
        return self.base is None


class Opening:
    """What the command line names, found and read."""

    def __init__(self, given: Given) -> None:
        """Raises InputError and what Store.resolve() does, before anything takes long."""
        self._given = given
        self._documents = _documents(given)
        self._template = None if given.template is None else read_text(given.template)
        if given.restore is not None:
            _check_readable(given.restore)
        self._base, self._adapters = _paths(given)

    def model(self) -> Model:
        """The model with its adapters. Raises what Model() does."""
        given = self._given
        with Progress("Loading") as progress:
            return Model(
                self._base,
                adapters=self._adapters,
                n_ctx=given.n_ctx,
                # the demo model is so small that a second thread costs more than it brings
                n_threads=1 if given.is_demo and given.threads is None else given.threads,
                n_gpu_layers=given.gpu_layers,
                verbose=given.verbose,
                progress=progress.fraction,
            )

    def talk(self, model: Model) -> Talk:
        """The conversation, with nothing read yet unless it was saved. Raises what Model.chat() and
        Model.restore() do.
        """
        given = self._given
        if given.restore is None:
            return Talk(model, self._chat(model), self._options())
        try:
            chat = model.restore(given.restore)
        except CacheFullError as error:
            raise InputError(
                f"--restore {given.restore}: does not fit a KV cache of {model.n_ctx} cells; start "
                f"with --ctx {2 * model.n_ctx}"
            ) from error
        return Talk(model, chat, self._options(), reused=chat.session.cached)

    def _chat(self, model: Model) -> Chat:
        given = self._given
        system = None if given.system is None else whole(given.system)
        try:
            chat = model.chat(system=system, documents=self._documents, template=self._template)
        except ModelError as error:
            if self._template is not None or BaseFile.read(self._base).chat_template is not None:
                raise
            raise ModelError(
                f"{self._base}: has no chat template, so it does not say how a conversation is "
                "written; give one with --chat-template FILE, or use a base that was tuned to chat"
            ) from error
        chat.check("?")
        return chat

    def _options(self) -> GenerateOptions:
        given = self._given
        sampling = Sampling(temperature=0.0 if given.is_demo else 0.8, seed=given.seed)
        if given.temperature is not None:
            sampling = replace(sampling, temperature=given.temperature)
        if given.max_tokens is not None:
            return GenerateOptions(sampling=sampling, max_tokens=given.max_tokens)
        if given.is_demo:
            return GenerateOptions(sampling=sampling, max_tokens=_DEMO_TOKENS)
        return GenerateOptions(sampling=sampling)


def _paths(given: Given) -> tuple[Path, dict[str, Path]]:
    from alora_gguf.demo import adapter_paths, base_path

    base = base_path() if given.base is None else Store().resolve(given.base, "base")
    adapters = dict(adapter_paths()) if given.is_demo else {}
    for text in given.adapters:
        name, path = split_adapter(text, [*COMMANDS])
        if name in adapters:
            raise InputError(f"--adapter: two adapters are named '{name}'; write NAME=PATH")
        adapters[name] = path
    return base, adapters


def _documents(given: Given) -> list[Document]:
    if given.is_demo and not given.docs and given.restore is None:
        from alora_gguf.demo import DOCUMENTS

        return [Document(text) for text in DOCUMENTS]
    return [read_document(path, i) for i, path in enumerate(given.docs, 1)]


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"--restore {path}: cannot be read: {error.strerror or error}") from error
