"""What stands below Model, Session and Chat: one base in memory, its adapters and its cells."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from alora_gguf.gguf.base import BaseFile, BaseFingerprint

from .activation import Combination
from .bank import Bank
from .context import Engine
from .llama_context import LlamaContext
from .loading import CacheLayout
from .prefix_cache import PrefixCache
from .tokens import Vocabulary


class Runtime:
    """A loaded base.

    base          its file
    engine        its context, and who may use it when
    vocab         its tokens and their texts
    bank          its adapters by name
    prefix_cache  whose cells can be shared
    layout        what saved cells must have been laid out as
    """

    def __init__(self, base: BaseFile, context: LlamaContext) -> None:
        self.base = base
        self.engine = engine = Engine(context)
        self.vocab: Vocabulary = engine.vocab
        self.vocab.room = engine.cells.n_cells
        self.bank = Bank(engine, base, context.options.max_adapters)
        self.prefix_cache: PrefixCache = engine.prefix_cache
        self.layout = CacheLayout.of(
            context.options,
            base,
            n_ctx=engine.cells.n_cells,
            memory=engine.memory_kind,
            window=engine.window,
        )

    @cached_property
    def fingerprint(self) -> BaseFingerprint:
        """What the base is known by in saved sessions. Raises ModelError if its file was changed
        since it was opened.
        """
        return BaseFingerprint.of(self.base)

    def names(self) -> Mapping[str, str]:
        """The loaded adapters' names, by the hash of what they compute."""
        loaded = self.bank.loaded().items()
        files = sorted(loaded, key=lambda item: not isinstance(item[1], Combination))
        return {file.identity: name for name, file in files}  # a file's own name counts

    def check_open(self) -> None:
        """Raises ClosedError after close()."""
        _ = self.engine.ctx

    def close(self) -> None:
        """Frees everything; idempotent."""
        self.engine.close()
