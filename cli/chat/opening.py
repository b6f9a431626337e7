"""What it takes to begin: files that are looked at before the model is loaded, and the model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from alora_gguf.cli.bases import NamedBase
from alora_gguf.cli.options import (
    DEMO_THREADS,
    Attention,
    CacheType,
    named_contract,
    no_template,
    read_bytes,
)
from alora_gguf.cli.progress import Progress
from alora_gguf.cli.render import whole

import alora_gguf as ag
from alora_gguf.demo import DOCUMENTS

from .arguments import read_document, read_text, split_adapter
from .commands import COMMANDS
from .room import check_documents
from .talk import Talk

_DEMO_TOKENS: Final = 256  # of a reply: it was trained for short ones


@dataclass(frozen=True, kw_only=True)
class Given:
    """The command line."""

    base: str | None
    adapters: tuple[str, ...]
    contracts: tuple[str, ...]
    system: str | None
    docs: tuple[Path, ...]
    watch: tuple[str, ...]
    steer: tuple[str, ...]
    prompt: str | None
    restore: Path | None
    transcript: Path | None
    template: Path | None
    special_tokens_in_text: bool
    prompt_cache: Path | None
    as_json: bool
    temperature: float | None
    seed: int | None
    max_tokens: int | None
    n_ctx: int | None
    drop_oldest: bool
    n_threads: int | None
    n_gpu_layers: int
    rpc: tuple[str, ...]
    type_k: CacheType
    type_v: CacheType
    attention: Attention
    verbose: bool

    @property
    def is_demo(self) -> bool:
        """Whether the demo model talks."""
        return self.base is None


@contextlib.contextmanager
def opened(given: Given) -> Iterator[Talk]:
    """The conversation that the command line names, with nothing read yet unless it was saved.
    Files are looked at before anything takes long. Raises InputError and what Store.resolve(),
    Model(), Model.chat() and Model.restore() do.
    """
    documents = _documents(given)
    template = None if given.template is None else read_text(given.template)
    if given.restore is not None:
        read_bytes(given.restore, 1)
    base, adapters = _paths(given)
    contracts = _contracts(given, adapters)
    opening = partial(
        ag.Model,
        base,
        n_threads=given.n_threads or (DEMO_THREADS if given.is_demo else None),
        n_gpu_layers=given.n_gpu_layers,
        rpc=given.rpc,
        type_k=given.type_k,
        type_v=given.type_v,
        attention=given.attention,
        special_tokens_in_text=given.special_tokens_in_text,
        prompt_cache=given.prompt_cache,
        verbose=given.verbose,
    )
    with Progress("Loading") as progress:
        told = progress.fraction
        model = opening(adapters=adapters, n_ctx=given.n_ctx, progress=told)
    with model:
        for name, contract in contracts.items():
            model.set_contract(name, contract)
        if given.restore is None:
            chat = _begun(model, given.system, documents, template)
        else:
            try:
                chat = model.restore(given.restore)
            except ag.CacheFullError as error:
                raise ag.InputError(
                    f"--restore {given.restore}: does not fit a KV cache of {model.n_ctx} cells; "
                    f"start with --ctx {2 * model.n_ctx}"
                ) from error
            except ag.SavedSessionError as error:
                if given.is_demo and "open that base" in str(error):
                    raise ag.SavedSessionError(f"{error}; -m names a base") from error
                raise
        talk = Talk(model, chat, _options(given), reused=chat.session.cached)
        talk.reopen, talk.drop_oldest = opening, given.drop_oldest
        try:
            yield talk
        finally:
            talk.close()
            talk.model.close()  # which may be another one by now


def _begun(
    model: ag.Model, system: str | None, documents: list[ag.Document], template: str | None
) -> ag.Chat:
    system = None if system is None else whole(system)
    try:
        chat = model.chat(system=system, documents=documents, template=template)
    except ag.ModelError as error:
        if template is not None or ag.BaseFile.read(model.path).chat_template is not None:
            raise
        raise no_template(model.path) from error
    if documents:
        check_documents(chat, documents, "start with --ctx")
    chat.check("?")
    return chat


def _options(given: Given) -> ag.GenerateOptions:
    temperature, usual = given.temperature, ag.GenerateOptions()
    if temperature is None:
        temperature = 0.0 if given.is_demo else 0.8
    max_tokens = given.max_tokens or (_DEMO_TOKENS if given.is_demo else usual.max_tokens)
    sampling = ag.Sampling(temperature=temperature, seed=given.seed)
    return ag.GenerateOptions(sampling=sampling, max_tokens=max_tokens)


def _paths(given: Given) -> tuple[Path, dict[str, Path]]:
    named = NamedBase.of(given.base)
    adapters = dict(named.adapters)
    for text in given.adapters:
        name, path = split_adapter(text, [*COMMANDS], named.path)
        if name in adapters:
            is_own = adapters[name] == named.adapters.get(name)
            there = f"{named.title} has an adapter" if is_own else "two adapters are"
            raise ag.InputError(f"--adapter: {there} named '{name}'; write OTHER=PATH")
        adapters[name] = path
    return named.path, adapters


def _contracts(given: Given, adapters: Mapping[str, Path]) -> dict[str, ag.Contract]:
    found = {name: ag.load_contract(path) for name, path in map(named_contract, given.contracts)}
    for name in found:
        if name not in adapters:
            known = ", ".join(adapters) or "none"
            raise ag.InputError(
                f"--contract: is for '{name}', which is no adapter here (there are: {known}); name "
                f"its file too: -a {name}=PATH"
            )
    return found


def _documents(given: Given) -> list[ag.Document]:
    if given.is_demo and not given.docs and given.restore is None:
        return [ag.Document(text) for text in DOCUMENTS]
    return [read_document(path, i) for i, path in enumerate(given.docs, 1)]
