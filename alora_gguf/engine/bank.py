"""The adapters of one model by name, and the slots they have in the native bank."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from alora_gguf.errors import (
    AdapterInUseError,
    InputError,
    InvocationNotFoundError,
    UnknownAdapterError,
)
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.base import BaseFile
from alora_gguf.options import check_number

from .context import Engine
from .provenance import BASE, Provenance, find_last, nearest_miss
from .vocab import Vocabulary


@dataclass(frozen=True, slots=True)
class ActiveAdapter:
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


def not_found(
    active: ActiveAdapter, tokens: Sequence[int], vocab: Vocabulary
) -> InvocationNotFoundError:
    """The error for a text without the invocation, with the nearest near-miss in tokens."""
    invocation = active.file.invocation if active.file is not None else ()
    head = (
        f"adapter '{active.name}' begins at its invocation [{vocab.show(invocation)}], which does "
        f"not occur in these {len(tokens)} tokens"
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
    """The loaded adapters by name; for any thread."""

    def __init__(self, engine: Engine, base: BaseFile, max_adapters: int) -> None:
        self._engine = engine
        self._base = base
        self._max_adapters = max_adapters
        self._loaded: dict[str, tuple[AdapterFile, int]] = {}
        self._in_use: Counter[int] = Counter()  # slots; guarded by the engine's condition

    def __getitem__(self, name: str) -> AdapterFile:
        return self._loaded[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._loaded))

    def __len__(self) -> int:
        return len(self._loaded)

    def load(
        self, paths: Mapping[str, str | os.PathLike[str]], *, from_start: bool = False
    ) -> None:
        """Reads, checks and adds adapters; all of them or, if one fails, none. `from_start` takes
        activated LoRAs for plain ones.
        """
        files = {}
        for name, path in paths.items():
            self._check_name(name)
            files[name] = AdapterFile.read(path)
            files[name].check_base(self._base, self._engine.vocab.n_tokens)
            files[name].check_vocabulary(self._base, self._engine.vocab)
            if from_start:
                files[name] = replace(files[name], invocation=(), invocation_text=None)
        if not files:
            return
        native, added = self._engine.native, list[str]()
        with self._engine.lock:
            ctx = self._engine.ctx
            for name in files:
                self._check_name(name)  # another thread may have been faster
            # makes room for all of them at once: the context reserves once and not once each
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

    def _check_name(self, name: str) -> None:
        if not name:
            raise InputError("an adapter's name must not be empty")
        if name in self._loaded:
            raise AdapterInUseError(
                f"an adapter named '{name}' is loaded already "
                f"({self._loaded[name][0].path}); unload it first or choose another name"
            )

    def unload(self, name: str) -> None:
        """Frees an adapter's slot. Raises AdapterInUseError while a call or reply uses it."""
        engine, what = self._engine, f"adapter '{name}' cannot be unloaded now"
        with engine.lock:
            engine.collect()
            with engine.condition:
                _, slot = self._find(name)
                if self._in_use[slot]:
                    raise AdapterInUseError(f"{what}: a call on another thread is using it")
                engine.native.adapter_remove(engine.ctx, slot, what)
                del self._loaded[name]

    @contextmanager
    def using(self, name: str | None, scale: float) -> Iterator[ActiveAdapter]:
        """Resolves an adapter's name (None: the base), and keeps it loaded meanwhile. Raises
        UnknownAdapterError, InputError.
        """
        check_number(scale, "scale")
        if name is None:
            yield ActiveAdapter(None, None, 0, 1.0)
            return
        with self._engine.condition:
            file, slot = self._find(name)
            self._in_use[slot] += 1
        try:
            yield ActiveAdapter(name, file, slot, float(scale))
        finally:
            with self._engine.condition:
                self._in_use[slot] -= 1

    def find(self, name: str) -> AdapterFile:
        """The adapter of that name. Raises UnknownAdapterError."""
        return self._find(name)[0]

    def _find(self, name: str) -> tuple[AdapterFile, int]:
        try:
            return self._loaded[name]
        except (KeyError, TypeError):
            known = ", ".join(f"'{n}'" for n in self._loaded) or "none"
            raise UnknownAdapterError(
                f"no adapter named {name!r} is loaded; loaded: {known}"
            ) from None
