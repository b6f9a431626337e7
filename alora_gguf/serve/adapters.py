"""The adapters that are served, by name: every spelling in use finds one or several, and a name
that is given to other weights leaves those that are being used to whoever began with them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import alora_gguf as ag
from alora_gguf.errors import did_you_mean

from .errors import ForbiddenError, RequestError, UnknownModelError

_LATEST: Final = ":latest"  # what Ollama's clients put behind a name without a tag

_STEER_FORM: Final = 'expected vectors as {"name": scale}, or as [{"name": …, "scale": …}]'
_STEER_FIELDS: Final = ("name", "id", "scale")
_WORDS: Final = {
    "alora": "an adapter with weights, which adapter or lora names",
    "lora": "an adapter with weights, which adapter or lora names",
    "combination": "a combination, which adapter names",
}
MAX_LOOKED: Final = 2000
"""Entries of a directory that are looked at for adapters: some ms, and a list that one can read."""


@dataclass(frozen=True, slots=True)
class Served:
    """An adapter under its name. `loaded` is what the model calls these weights."""

    name: str
    loaded: str
    file: ag.Loaded
    generation: int
    created: int

    @property
    def kind(self) -> str:
        """What it is: "alora", "lora", "vector", "classifier" or, of several in one,
        "combination".
        """
        return self.file.kind

    @property
    def file_name(self) -> str:
        """The name of its file, without this machine's directories; "" of a combination."""
        return "" if self.file.path is None else self.file.path.name


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom a request asks: the base (no `parts`), or adapters by their names, at scales."""

    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str | None:
        """Who answers, for people: several with a + between them; None for the base."""
        return "+".join(self.parts) or None


@dataclass
class View:
    """The adapters as they were when a request began."""

    by_name: Mapping[str, Served]
    renamed: Mapping[str, str] = field(default_factory=dict)

    def loaded(self, name: str, param: str = "adapter") -> str:
        """What the model calls an adapter. Raises UnknownModelError, with the nearest names, for
        what `param` says.
        """
        try:
            return self.by_name[name].loaded
        except KeyError:
            raise unknown(name, self.by_name, param) from None

    def computed_by(self, whom: Asked) -> ag.AdapterLike | None:
        """Whom a request asks, as the model calls them. Raises UnknownModelError."""
        parts = {self.loaded(name): scale for name, scale in whom.parts.items()}
        return next(iter(parts)) if [*parts.values()] == [1.0] else parts or None

    def shown(self, text: str) -> str:
        """A message of the model's, in which adapters have the names they are served under."""
        for loaded, name in self.renamed.items():
            text = text.replace(loaded, name)
        return text


class Adapters:
    """The adapters of one model; for any thread."""

    def __init__(self, model: ag.Model, base: str, directory: Path | None = None) -> None:
        """`base` is the name that the base is served under; below `directory` are the files that
        load() may read, None for none.
        """
        self.base = base
        self._model, self._directory = model, directory
        self._lock, self._loading = threading.Lock(), threading.Lock()
        now = int(time.time())
        # never changed but replaced, so that whoever looks waits for nobody
        self._served: Mapping[str, Served] = {
            name: Served(name, name, file, 1, now) for name, file in model.adapters.items()
        }
        self._generations = dict.fromkeys(self._served, 1)
        self._ids = {name: i for i, name in enumerate(self._served)}  # a name's for good
        self._users: dict[str, int] = {}  # by what the model calls them
        self._gone: set[str] = set()  # unloaded as soon as nobody uses them

    @property
    def served(self) -> Mapping[str, Served]:
        """All of them, by name."""
        return self._served

    def id_of(self, name: str) -> int:
        """The number that llama-server's clients know an adapter by: never another's."""
        return self._ids[name]

    # Which one -----------------------------------------------------------------------------------

    def asked(
        self,
        model: str | None = None,
        adapter: str | None = None,
        adapter_id: str | None = None,
        lora: Sequence[Mapping[str, Any]] | None = None,
        adapter_name: object = None,
        *,
        steer: object = None,
    ) -> Asked:
        """Whom a request names, in whichever spelling: `model` as "base", "base:name" or "name",
        one of three fields, or `lora` as llama-server has it, a list of {"id" | "name", "scale"}
        that may be several; and `steer`, vectors beside that one, as such a list or as names with
        scales.

        Raises RequestError where two disagree, UnknownModelError for a name that there is not.
        """
        found: dict[str, Mapping[str, float]] = {}
        if model is not None and (named := self._model_name(model)) is not None:
            found["model"] = {named: 1.0}
        fields = {"adapter": adapter, "adapter_id": adapter_id,
                  "chat_template_kwargs.adapter_name": adapter_name}  # fmt: skip
        for spelling, name in fields.items():
            if name is not None and not isinstance(name, str):
                raise RequestError(f"{spelling} must be a name, got {name!r}", spelling)
            if name:
                found[spelling] = {self._known(name): 1.0}
        listed = self._lora(lora) if lora else None
        names = {name for each in found.values() for name in each}
        if len(names) > 1 or not names <= (names if listed is None else listed.keys()):
            said = [f"{spelling} says {next(iter(each))!r}" for spelling, each in found.items()]
            if listed is not None:
                said.append(f"lora says {', '.join(map(repr, listed)) or None}")
            raise RequestError(
                f"the request names two adapters: {', '.join(said)}; name one, or several in lora",
                "lora" if listed is not None else [*found][-1],
            )
        one = next(iter(found.values()), {}) if listed is None else listed
        return Asked(self._checked({**one, **self._steer(steer, one)}))

    def _model_name(self, model: str) -> str | None:
        """The adapter that `model` names; None for the base."""
        name = model.removesuffix(_LATEST)
        base, colon, adapter = name.partition(":")
        if name in ("", self.base):
            return None
        if colon and base == self.base:
            return self._known(adapter)
        if name in self.served:
            return name
        raise unknown(model, [self.base, *self.served, *self._tags()], "model")

    def _tags(self) -> list[str]:
        return [f"{self.base}:{name}" for name in self.served]

    def _known(self, name: str) -> str:
        name = name.removeprefix(f"{self.base}:")
        if name not in self.served:
            raise unknown(name, self.served)
        return name

    def _lora(self, lora: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Those that are on: clients of llama-server send all, with 0 for those that are off."""
        named = {self._ids[name]: name for name in self.served}
        on = dict[str, float]()
        for i, each in enumerate(lora):
            self._check_agreed(each, f"lora[{i}]", "lora")
            name, scale = each.get("name", each.get("id")), each.get("scale", 1.0)
            if isinstance(name, int) and not isinstance(name, bool):
                if name not in named:
                    raise UnknownModelError(
                        f"lora[{i}]: there is no adapter with id {name}; /lora-adapters lists them",
                        "lora",
                    )
                name = named[name]
            if not isinstance(name, str) or not _is_number(scale):
                raise RequestError(f'lora[{i}] must have an "id" or "name", and a "scale"', "lora")
            if scale:
                on[self._known(name)] = float(scale)
        return on

    def _steer(self, steer: object, beside: Mapping[str, float]) -> dict[str, float]:
        """The vectors that are on. Raises RequestError for what is none, or named twice."""
        if isinstance(steer, Mapping):
            steer = [{"name": name, "scale": scale} for name, scale in steer.items()]
        if steer is not None and not isinstance(steer, list):
            raise RequestError(f"steer: {_STEER_FORM}, got {steer!r:.80}", "steer")
        vectors = {name: each for name, each in self.served.items() if each.kind == "vector"}
        on, seen = dict[str, float](), set[str]()
        for i, each in enumerate(steer or ()):
            given = each if isinstance(each, Mapping) else {}
            if unknown := [key for key in given if key not in _STEER_FIELDS]:
                known = ", ".join(_STEER_FIELDS)
                raise RequestError(
                    f"steer[{i}]: has a field {unknown[0]!r:.100}; known are {known}", "steer"
                )
            self._check_agreed(given, f"steer[{i}]", "steer")
            name, scale = given.get("name", given.get("id")), given.get("scale", 1.0)
            if isinstance(name, int) and not isinstance(name, bool):
                name = next((n for n, number in self._ids.items() if number == name), str(name))
            if not isinstance(name, str) or not _is_number(scale):
                raise RequestError(f"steer[{i}]: {_STEER_FORM}, got {each!r:.80}", "steer")
            if name not in vectors:
                there = ", ".join([*vectors][:20]) or "none"
                what = f"is {_WORDS[self.served[name].kind]}" if name in self.served else "is none"
                raise RequestError(
                    f"steer: {name[:100]!r} {what}, expected a steering vector that is served "
                    f"here (there are: {there}){did_you_mean(name, vectors)}",
                    "steer",
                )
            if name in seen or name in beside:
                raise RequestError(f"steer: {name!r} is named twice; give it one scale", "steer")
            seen.add(name)
            if scale:
                on[name] = float(scale)
        return on

    def _check_agreed(self, given: Mapping[str, Any], where: str, field: str) -> None:
        """Raises RequestError where a name and an id are of two adapters."""
        name, number = given.get("name"), given.get("id")
        if number is None or not isinstance(name, str) or number in (name, self._ids.get(name)):
            return
        raise RequestError(
            f"{where}: the name is {name[:100]!r}, but the id {number!r:.40} is not its; give one "
            "of them",
            field,
        )

    def _checked(self, parts: dict[str, float]) -> dict[str, float]:
        """The same, if it is what may compute a reply. Raises RequestError."""
        try:
            _ = ag.GenerateOptions(adapter=parts or None)
        except ag.InputError as error:
            text = str(error).replace("adapter[", "the scale of ").replace("], a scale,", "")
            raise RequestError(text, "scale") from error
        return parts

    # Use and change ------------------------------------------------------------------------------

    @contextmanager
    def view(self) -> Iterator[View]:
        """What a request sees, until it ends: adapters that are replaced or unloaded meanwhile are
        there for it.
        """
        with self._lock:
            held = self._served
            for each in held.values():
                self._users[each.loaded] = self._users.get(each.loaded, 0) + 1
        try:
            renamed = {str(e.file.path): e.name for e in held.values() if e.file.path}
            renamed |= {e.loaded: e.name for e in held.values() if e.loaded != e.name}
            yield View(held, renamed)
        finally:
            with self._lock:
                for each in held.values():
                    self._users[each.loaded] -= 1
                self._sweep()

    def loadable(self) -> list[str] | None:
        """Files that load() can read, of the first MAX_LOOKED below the directory; None where it
        may read none.
        """
        if self._directory is None:
            return None
        directory = self._directory.resolve()
        found = itertools.islice(directory.rglob("*"), MAX_LOOKED)
        return sorted(f.relative_to(directory).as_posix() for f in found if f.suffix == ".gguf")

    def load(self, name: str, path: str) -> Served:
        """Serves the file at `path`, below the directory for such files, as `name`: a new one, or
        other weights from now on. Raises ForbiddenError, RequestError and what
        Model.load_adapter() does.
        """
        file = self._allowed(path)
        if not name or ":" in name or "/" in name or name == self.base:
            raise RequestError(
                f"lora_name is {name!r}, expected a name without ':' and '/', not the base's",
                "lora_name",
            )
        with self._loading:
            # what the model calls weights is never given to others while they are used
            names = (name if n == 1 else f"{name}#{n}" for n in itertools.count(1))
            loaded = next(each for each in names if each not in self._model.adapters)
            try:
                found = self._model.load_adapter(loaded, file)
            except ag.AloraError as error:
                # in the words of who asked: this machine's paths are nobody's business
                error.args = (str(error).replace(str(file), path), *error.args[1:])
                raise
            generation = self._generations.get(name, 0) + 1
            self._generations[name] = generation
            self._ids.setdefault(name, len(self._ids))
            served = Served(name, loaded, found, generation, int(time.time()))
            with self._lock:
                old = self._served.get(name)
                self._served = {**self._served, name: served}
                if old is not None:
                    self._gone.add(old.loaded)
                self._sweep()
        return served

    def unload(self, name: str) -> None:
        """Ends serving `name`. Raises UnknownModelError, and ForbiddenError without a directory."""
        self._check_open()
        with self._lock:
            left = dict(self._served)
            if name not in left:
                raise unknown(name, left, "lora_name")
            self._gone.add(left.pop(name).loaded)
            self._served = left
            self._sweep()

    def _sweep(self) -> None:
        """Unloads what nobody uses any more; the caller holds the lock."""
        for loaded in [each for each in self._gone if not self._users.get(each)]:
            self._gone.discard(loaded)
            self._users.pop(loaded, None)
            self._model.unload_adapter(loaded)

    def _check_open(self) -> Path:
        if self._directory is None:
            raise ForbiddenError(
                "adapters cannot be loaded or unloaded here; start the server with --adapters-dir"
            )
        return self._directory

    def _allowed(self, path: str) -> Path:
        """A path, from the directory on, that stays in it."""
        directory = self._check_open().resolve()
        file = (directory / path).resolve()
        if not file.is_relative_to(directory):
            raise ForbiddenError(f"lora_path {path!r} is not below the server's --adapters-dir")
        return file


def _is_number(value: object) -> bool:
    """Whether it is a finite number; JSON that msgspec reads has no other floats."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def unknown(
    name: str, known: Mapping[str, Any] | Sequence[str], param: str = "adapter"
) -> UnknownModelError:
    """The error for a name that there is not."""
    listed, hint = ", ".join([*known][:20]) or "none", did_you_mean(name, known)
    return UnknownModelError(
        f"{param}: there is no {name[:100]!r} here (there are: {listed}){hint}",
        param,
    )
