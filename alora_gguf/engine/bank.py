"""The loaded adapters by name, combinations of them, and the slots that stand for these."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from alora_gguf._calls import uninterrupted
from alora_gguf.errors import (
    AdapterFormatError,
    AdapterInUseError,
    AdapterMismatchError,
    ClosedError,
    InputError,
    MissingFileError,
    UnknownAdapterError,
    did_you_mean,
)
from alora_gguf.gguf.adapter import AdapterFile, Begins
from alora_gguf.gguf.base import BaseFile
from alora_gguf.gguf.classifier import ClassifierFile
from alora_gguf.gguf.joined import joined
from alora_gguf.gguf.vector import VectorFile, read_adapter
from alora_gguf.options import MAX_SCALE, AdapterLike, check_adapter, check_number

from .activation import (
    ActiveAdapter,
    AdapterLikeFile,
    Combination,
    Loaded,
    Part,
    Stage,
    classifier_of,
    combined,
    has_weights,
    parts_of,
    stages_of,
)
from .context import Engine
from .tokens import Provenance, Vocabulary

_BASE: Final = nullcontext(ActiveAdapter())


def _check_vocabulary(file: AdapterLikeFile, base: BaseFile, vocab: Vocabulary) -> None:
    """Raises AdapterMismatchError if the invocation's ids read otherwise in this base than they did
    in the one that the adapter was converted for.
    """
    text, invocation = file.invocation_text, file.invocation
    if not invocation or text is None or not vocab.has_text:
        return
    reads = vocab.detokenize(invocation, special=True)
    # spaces do not count: some vocabularies put one before a text that had none
    if reads.replace(" ", "") == text.replace(" ", ""):
        return
    # the text may have more spellings in tokens than one
    if tuple(vocab.tokenize(text, add_special=False, parse_special=True)) != invocation:
        raise AdapterMismatchError(
            f"{file.path}: its invocation {list(invocation)} reads {text!r}, but {reads!r} in "
            f"{base.path}, which has another vocabulary; use the base it was trained on"
        )


def _from_start(file: AdapterLikeFile) -> AdapterLikeFile:
    """The same, on from the first token; a classifier's head as it is."""
    if isinstance(file, ClassifierFile):
        return file
    if isinstance(file, VectorFile):
        return replace(file, invocation=(), invocation_text=None, from_start=True)
    return replace(file, invocation=(), invocation_text=None)


@dataclass(frozen=True, slots=True)
class _Weights:
    """An adapter's file, and where it is whatever the working directory is by now."""

    file: AdapterFile
    path: Path

    def read(self) -> AdapterFile:
        """It with its data, read again. Raises MissingFileError, and AdapterFormatError if it is
        another one now.
        """
        needed = "its weights are needed again where adapters act together"
        try:
            again = AdapterFile.read(self.path)
        except MissingFileError:
            raise MissingFileError(
                f"{self.path}: is not there any more, and {needed}; put it back, or unload it",
                self.path,
            ) from None
        if again.identity != self.file.identity:
            raise AdapterFormatError(
                f"{self.path}: was changed after it was loaded, and {needed}; unload it and load "
                "it again"
            )
        return again


MAX_NAME: Final = 256  # characters of an adapter's name, which stands in messages and tables
_KEPT_JOINED: Final = 4  # joined adapters that nobody uses at the moment: making one reads files
_Mixture = tuple[tuple[int, float], ...]
"""Slots and scales, sorted."""


@dataclass(slots=True)
class _Made:
    """A slot that stands for several at a scale, and how many are using it."""

    slot: int
    scale: float = 1.0
    users: int = 0


@uninterrupted
class Bank:
    """The loaded adapters by name, and combinations of them; for any thread."""

    def __init__(self, engine: Engine, base: BaseFile, max_adapters: int) -> None:
        self._engine = engine
        self._base = base
        self._max_adapters = max_adapters
        self._loaded: dict[str, tuple[Loaded, int]] = {}  # a combination has no slot of its own
        self._in_use: Counter[str] = Counter()  # guarded by the engine's condition
        # made and freed under its lock, looked at and used under the condition
        self._mixed: dict[_Mixture, _Made] = {}
        # of weights, at scales relative to the largest; those used last come last
        self._joined: dict[_Mixture, _Made] = {}
        self._weights: dict[int, _Weights] = {}  # by slot

    def loaded(self) -> dict[str, Loaded]:
        """What is loaded at this moment, by name: other threads load and unload meanwhile."""
        return {name: file for name, (file, _) in tuple(self._loaded.items())}

    # Loading -------------------------------------------------------------------------------------

    def load(
        self, paths: Mapping[str, str | os.PathLike[str]], *, from_start: bool = False
    ) -> dict[str, AdapterLikeFile]:
        """Reads, checks and adds adapters, and returns them; all of them or, if one fails, none.
        With `from_start` they begin at the first token: an activated LoRA as a plain one, a vector
        as one that acts on all that is read.
        """
        files: dict[str, AdapterLikeFile] = {}
        for name, path in paths.items():
            self._check_name(name)
            file = read_adapter(path)
            file.check_base(self._base, self._engine.vocab.n_tokens)
            _check_vocabulary(file, self._base, self._engine.vocab)
            files[name] = _from_start(file) if from_start else file
        if not files:
            return files
        native, slots = self._engine.native, dict[str, int]()
        weights = {name: file for name, file in files.items() if isinstance(file, AdapterFile)}
        vectors = {name: file for name, file in files.items() if isinstance(file, VectorFile)}
        with self._engine.lock, self._engine.context.on_devices():
            ctx = self._engine.ctx
            for name in files:
                self._check_name(name)  # another thread may have been faster
            if weights:
                self._free_idle(0)  # what is loaded has room before what can be made again
                # Room for all slots at once, but for no rank: that would be every target's, so that
                # one of rank 4096 would multiply all the others.
                native.bank_reserve(ctx, self._max_adapters, 1)
            try:
                # The largest comes first: the next ones fit then, and the context reserves once.
                for name, file in sorted(weights.items(), key=lambda item: -item[1].rank):
                    slots[name] = native.adapter_add(ctx, file.weights_alone, str(file.path))
                for name, vector in sorted(vectors.items(), key=lambda item: -len(item[1].parts)):
                    slots[name] = native.vector_add(
                        ctx, vector.parts, vector.n_embd, str(vector.path)
                    )
            except BaseException:
                for slot in slots.values():
                    native.adapter_remove(ctx, slot, "an adapter that was added before")
                raise
            files = {name: file.without_data() for name, file in files.items()}
            for name, file in files.items():
                self._loaded[name] = (file, slots.get(name, 0))  # a head changes nothing
                if isinstance(file, AdapterFile):
                    self._weights[slots[name]] = _Weights(file, file.path.absolute())
            return files

    def combine(self, name: str, adapters: Mapping[str, float]) -> Combination:
        """Names a combination of adapters that are loaded, with their scales. Raises
        UnknownAdapterError, InputError, or AdapterInUseError if the name is taken.
        """
        if not isinstance(check_adapter(adapters, "the combination"), Mapping):
            raise InputError(f"the combination must be a mapping of names to scales: {adapters!r}")
        with self._engine.lock, self._engine.condition:
            _ = self._engine.ctx
            self._check_name(name)
            if name in adapters:
                raise InputError(f"the combination '{name}' cannot contain itself")
            made = combined(name, adapters, self.find)
            self._loaded[name] = (made, 0)
            return made

    def _check_name(self, name: object) -> None:
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable():
            wanted = f"1 to {MAX_NAME} printable characters"
            raise InputError(f"an adapter's name must be {wanted}, got {ascii(name)[:80]}")
        if name in self._loaded:
            what = self._loaded[name][0].path or "a combination"
            raise AdapterInUseError(
                f"an adapter named '{name}' is loaded already ({what}); unload it first or choose "
                "another name"
            )

    def unload(self, name: str) -> None:
        """Frees an adapter's slot. Raises AdapterInUseError while a call uses it, a reply is made
        with it, or a combination has it; a combination's name goes amid a reply, too.
        """
        engine, what = self._engine, f"adapter '{name}' cannot be unloaded now"
        with engine.lock:
            engine.collect()
            with engine.condition:
                file, slot = self._find(name)
                if self._in_use[name]:
                    raise AdapterInUseError(f"{what}: a call on another thread is using it")
                for other, (each, _) in self._loaded.items():
                    if isinstance(each, Combination) and name in each.parts:
                        raise AdapterInUseError(
                            f"{what}: the combination '{other}' has it; unload that first"
                        )
                self._sweep()
                # a combination is a name: a reply that began with it goes on, and has its parts
                if not isinstance(file, Combination):
                    try:
                        for mixture in [each for each in self._joined if slot in dict(each)]:
                            self._free_joined(mixture)
                        if slot:
                            engine.native.adapter_remove(engine.ctx, slot, what)
                        self._weights.pop(slot, None)
                    except AdapterInUseError:
                        raise AdapterInUseError(
                            f"{what}: a reply is still being made with it; end that first"
                        ) from None
                del self._loaded[name]

    # Using ---------------------------------------------------------------------------------------

    def using(
        self, adapter: AdapterLike | None, scale: float, *, invoked: bool = False
    ) -> AbstractContextManager[ActiveAdapter]:
        """Resolves an adapter's name, or names and their scales (None: the base), and keeps them
        loaded meanwhile. Raises UnknownAdapterError, InputError; also for a classifier's head that
        is not `invoked`: it neither reads nor writes.
        """
        check_number(scale, "scale", -MAX_SCALE, MAX_SCALE)
        chosen = check_adapter(adapter)
        return _BASE if chosen is None else self._using(chosen, float(scale), invoked=invoked)

    @contextmanager
    def _using(
        self, adapter: AdapterLike, scale: float, *, invoked: bool
    ) -> Iterator[ActiveAdapter]:
        engine = self._engine
        names = {adapter} if isinstance(adapter, str) else set(adapter)
        held: list[_Made] = []
        with engine.condition:
            parts = parts_of(adapter, scale, self.find)
            head = parts[0].file if parts else None
            if isinstance(head, ClassifierFile) and not invoked:
                raise InputError(
                    f"'{parts[0].name}' is a classifier's head, which neither reads a conversation "
                    "nor replies: it is asked, with invoke()"
                )
            if isinstance(head, ClassifierFile) and parts[0].scale != 1:
                raise InputError(
                    f"'{parts[0].name}' is a classifier's head, which has no scale: found "
                    f"{parts[0].scale:g}, expected 1; leave it out"
                )
            used = [*names, *({part.name for part in parts} - names)]
            self._in_use.update(used)
        try:
            if isinstance(head, ClassifierFile):  # the base computes all
                yield ActiveAdapter(adapter, invocation=head.invocation, classifier=head.classifier)
                return
            mixtures = stages_of(parts)
            stages = {
                begun: Stage(*self._slot(mixture, held), by)
                for begun, (mixture, by) in self._with_slots(mixtures).items()
            }
            begun = [part.file for part in parts if part.file.begins == "invocation"]
            plain = len(parts) == 1 and has_weights(parts[0]) and not begun
            invocation = begun[0].invocation if begun else ()
            scored = classifier_of(parts[0]) if parts else None
            yield ActiveAdapter(adapter, stages, invocation, plain, scored)
        finally:
            with engine.condition:
                self._in_use.subtract(used)
                for made in held:
                    made.users -= 1
            if held:
                self._sweep_if_free()

    def _with_slots(
        self, stages: Mapping[frozenset[Begins], Sequence[Part]]
    ) -> dict[frozenset[Begins], tuple[_Mixture, Provenance]]:
        """Slots and scales of each stage, and what its cells are remembered as: of what is there
        twice the sum, and nothing of scale 0 among several.
        """
        found = {}
        for begun, parts in stages.items():
            by = Provenance.of_parts((part.file.identity, part.scale) for part in parts)
            slots = {part.file.identity: self._loaded[part.name][1] for part in parts}
            scales = [(slots[identity], scale) for identity, scale in by.acting]
            found[begun] = tuple(sorted(scales)) or ((0, 1.0),), by
        return found

    def _slot(self, mixture: _Mixture, held: list[_Made]) -> tuple[int, float]:
        """A slot and its scale for several; the slot stays while what is put into `held` is used.
        Weights are joined to one adapter, which a slot can stand for beside vectors.
        """
        weights = [each for each in mixture if each[0] in self._weights]
        if len(weights) > 1:
            largest = max((scale for _, scale in weights), key=abs)
            # so few digits that it is the same at all scales of the whole
            relative = tuple((slot, float(f"{scale / largest:.6g}")) for slot, scale in weights)
            made = self._hold(self._joined, relative) or self._join(relative)
            held.append(made)
            others = [each for each in mixture if each not in weights]
            mixture = tuple(sorted((*others, (made.slot, made.scale * largest))))
        if len(mixture) == 1:
            return mixture[0]
        made = self._hold(self._mixed, mixture) or self._mix(mixture)
        held.append(made)
        return made.slot, made.scale

    def _hold(self, there: dict[_Mixture, _Made], mixture: _Mixture) -> _Made | None:
        """What stands for it, with one user more, if something does; without waiting for what is
        being computed.
        """
        with self._engine.condition:
            found = there.pop(mixture, None)
            if found is not None:
                there[mixture] = found  # the last one now
                found.users += 1
            return found

    def _keep(self, there: dict[_Mixture, _Made], mixture: _Mixture, made: _Made) -> _Made:
        made.users = 1
        with self._engine.condition:
            there[mixture] = made
        return made

    def _mix(self, mixture: _Mixture) -> _Made:
        engine = self._engine
        with engine.lock:
            if found := self._hold(self._mixed, mixture):  # another thread was faster
                return found
            self._sweep()
            slots, scales = zip(*mixture, strict=True)
            made = _Made(engine.native.combine(engine.ctx, slots, scales))
            return self._keep(self._mixed, mixture, made)

    def _join(self, mixture: _Mixture) -> _Made:
        """An adapter of several's weights in the bank. Raises MissingFileError and
        AdapterFormatError where their files are not there any more, InputError for too high a rank.
        """
        engine, files = self._engine, [self._weights[slot] for slot, _ in mixture]
        # others compute meanwhile; who asks for it keeps its parts loaded
        parts = [(file.read(), scale) for file, (_, scale) in zip(files, mixture, strict=True)]
        data, scale = joined(parts)
        with engine.lock:
            if found := self._hold(self._joined, mixture):  # another thread was faster
                return found
            self._sweep()
            self._free_idle(_KEPT_JOINED - 1)
            what = " and ".join(str(file.path) for file in files)
            with engine.context.on_devices():
                made = _Made(engine.native.adapter_add(engine.ctx, data, what), scale)
            return self._keep(self._joined, mixture, made)

    def _free_idle(self, n: int) -> None:
        """Frees joined adapters that nobody uses, the oldest first, until there are at most `n`;
        the caller holds the lock.
        """
        with self._engine.condition:
            for mixture in [*self._joined][: max(0, len(self._joined) - n)]:
                with suppress(AdapterInUseError):
                    self._free_joined(mixture)

    def _free_joined(self, mixture: _Mixture) -> None:
        """The caller holds the lock. Raises AdapterInUseError."""
        engine = self._engine
        with engine.condition:
            made = self._joined[mixture]
            if made.users:
                raise AdapterInUseError("adapters that act together are in use")
            engine.native.adapter_remove(engine.ctx, made.slot, "adapters that act together")
            del self._joined[mixture]

    def _sweep(self) -> None:
        """Frees the slots of combinations that nothing uses any more; the caller holds the lock."""
        engine = self._engine
        with engine.condition:
            for mixture, mixed in list(self._mixed.items()):
                if mixed.users:
                    continue
                try:
                    engine.native.adapter_remove(engine.ctx, mixed.slot, "a combination")
                except AdapterInUseError:
                    continue  # a reply goes on with it; the next one looks again
                except ClosedError:
                    return
                del self._mixed[mixture]

    def _sweep_if_free(self) -> None:
        """_sweep(), unless another thread is computing: then whoever comes next does."""
        if self._engine.lock.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._engine.lock.release()

    def find(self, name: str) -> Loaded:
        """The adapter of that name. Raises UnknownAdapterError."""
        return self._find(name)[0]

    def _find(self, name: str) -> tuple[Loaded, int]:
        try:
            return self._loaded[name]
        except (KeyError, TypeError):
            there = self.loaded()
            known = ", ".join(f"'{n}'" for n in there) or "none"
            raise UnknownAdapterError(
                f"no adapter named {name!r} is loaded; loaded: {known}{did_you_mean(name, there)}"
            ) from None
