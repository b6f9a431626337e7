"""The adapters of one model by name, and the slots they have in the native bank."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .adapter import AdapterFile
from .base import BaseFile
from .checks import check_number
from .engine import Engine
from .errors import (
    AdapterInUseError,
    InputError,
    InvocationNotFoundError,
    UnknownAdapterError,
)
from .invocation import find_last, nearest_miss
from .provenance import BASE, Provenance
from .vocab import Vocabulary


@dataclass(frozen=True, slots=True)
class Use:
    """How tokens are to be computed: with an adapter at a scale, or by the base (`file` None)."""

    name: str | None
    file: AdapterFile | None
    slot: int
    scale: float

    @property
    def provenance(self) -> Provenance:
        """What the cells of adapted tokens are remembered as."""
        return BASE if self.file is None else Provenance.of(self.file.identity, self.scale)

    def first_position(self, tokens: Sequence[int], vocab: Vocabulary) -> int | None:
        """From which token of `tokens` on the adapter computes: the invocation's last occurrence, 0
        for a plain LoRA, None for the base. Raises InvocationNotFoundError.
        """
        if self.file is None:
            return None
        if not self.file.invocation:
            return 0
        at = find_last(tokens, self.file.invocation)
        if at is None:
            raise not_found(self, tokens, vocab)
        return at


def not_found(use: Use, tokens: Sequence[int], vocab: Vocabulary) -> InvocationNotFoundError:
    """The error for a text without the invocation, with the nearest near-miss in tokens."""
    invocation = use.file.invocation if use.file is not None else ()
    head = (
        f"adapter '{use.name}' begins at its invocation [{vocab.show(invocation)}], which does not "
        f"occur in these {len(tokens)} tokens"
    )
    at, n = nearest_miss(tokens, invocation)
    found = tokens[at : at + len(invocation)]
    if n:
        near = (
            f"; nearest: [{vocab.show(found)}] at position {at}, whose first {n} of "
            f"{len(invocation)} tokens agree"
        )
        if n < len(found):
            near += f" (token {n} is {found[n]}, expected {invocation[n]})"
    else:
        near = "; not even its first token occurs"
    if vocab.has_text and vocab.detokenize(invocation, special=True) in vocab.detokenize(
        tokens, special=True
    ):
        near += (
            "; its text does occur, but split into other tokens: pass the invocation as token ids, "
            "or leave it out and let it be appended"
        )
    return InvocationNotFoundError(head + near)


class Bank(Mapping[str, AdapterFile]):
    """The loaded adapters by name. Not safe by itself: callers hold the engine's lock."""

    def __init__(self, engine: Engine, base: BaseFile, max_adapters: int) -> None:
        self._engine = engine
        self._base = base
        self._max_adapters = max_adapters
        self._loaded: dict[str, tuple[AdapterFile, int]] = {}

    def __getitem__(self, name: str) -> AdapterFile:
        return self._loaded[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)

    def load(self, paths: Mapping[str, str | os.PathLike[str]]) -> None:
        """Reads, checks and adds adapters; all of them or, if one fails, none."""
        files = {}
        for name, path in paths.items():
            if not name:
                raise InputError("an adapter's name must not be empty")
            if name in self._loaded:
                raise AdapterInUseError(
                    f"an adapter named '{name}' is loaded already "
                    f"({self._loaded[name][0].path}); unload it first or choose another name"
                )
            files[name] = AdapterFile.read(path)
            files[name].check_base(self._base, self._engine.vocab.n_tokens)
            files[name].check_vocabulary(self._base, self._engine.vocab)
        if not files:
            return
        native, ctx = self._engine.native, self._engine.ctx
        added: list[str] = []
        # makes room for all of them at once, so that the context reserves once and not once each
        native.bank_reserve(ctx, self._max_adapters, max(file.rank for file in files.values()))
        try:
            for name, file in files.items():
                slot = native.adapter_add(ctx, file.data, str(file.path))
                self._loaded[name] = (file.without_data(), slot)
                added.append(name)
        except BaseException:
            for name in added:
                self.unload(name)
            raise

    def unload(self, name: str) -> None:
        """Frees an adapter's slot. Raises AdapterInUseError while a generation uses it."""
        _, slot = self._find(name)
        self._engine.native.adapter_remove(
            self._engine.ctx, slot, f"adapter '{name}' cannot be unloaded now"
        )
        del self._loaded[name]

    def use(self, name: str | None, scale: float) -> Use:
        """Resolves an adapter's name (None: the base). Raises UnknownAdapterError, InputError."""
        check_number(scale, "scale")
        if name is None:
            return Use(None, None, 0, 1.0)
        file, slot = self._find(name)
        return Use(name, file, slot, float(scale))

    def _find(self, name: str) -> tuple[AdapterFile, int]:
        try:
            return self._loaded[name]
        except (KeyError, TypeError):
            known = ", ".join(f"'{n}'" for n in self._loaded) or "none"
            raise UnknownAdapterError(
                f"no adapter named {name!r} is loaded; loaded: {known}"
            ) from None
