"""A base's file by what people name: a path, a name in the store, a model that is installed as a
package, or nothing for the demo's. And the adapters that come with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alora_gguf.cli.adapters import adapter_file

import alora_gguf as ag
from alora_gguf import demo, smollm2
from alora_gguf.errors import did_you_mean


@dataclass(frozen=True)
class NamedBase:
    """A base's GGUF. `adapters` come with it, by name; `title` is for messages."""

    path: Path
    adapters: Mapping[str, Path]
    title: str
    is_demo: bool = False

    @classmethod
    def of(cls, text: str | None) -> NamedBase:
        """The base that a command line names. Raises MissingFileError for a path where nothing is,
        and what Store.resolve() does.
        """
        if text is None:
            return cls(demo.base_path(), demo.adapter_paths(), "the demo model", is_demo=True)
        path = ag.Store().resolve(text, "base")
        if not path.exists():
            ag.BaseFile.read(path)  # says so, before anything is said of adapters
        own = _fitting(path) if text.lower() == smollm2.NAME else {}
        return cls(path, own, text)

    def adapter(self, name: str, given: Mapping[str, str]) -> Path:
        """The GGUF of an adapter: of those `given` as NAME=PATH, its own, or the store's.

        Raises InputError, naming those that there are, and what adapter_file() does.
        """
        if name in given:
            return adapter_file(given[name], self.path)
        return self.own(name) or adapter_file(name, self.path)

    def own(self, text: str) -> Path | None:
        """The GGUF of its own adapter of that name; None for what is a path, or the store's.

        Raises InputError for what is neither where it has adapters, naming them.
        """
        if text in self.adapters:
            return self.adapters[text]
        if not self.adapters or (not self.is_demo and _is_stored(text)):
            return None
        others = "for another base give -m, and its adapters with -a"
        if not self.is_demo:
            others = "another is named by its path, or by its name in the store"
        raise ag.InputError(
            f"{self.title} has no adapter '{text}', only {', '.join(self.adapters)}; {others}"
            f"{did_you_mean(text, self.adapters)}"
        )


def named_file(text: str, kind: Literal["adapter", "base"] | None = None) -> Path:
    """The file or directory of a path that is there, or else what Store.resolve() says."""
    path = Path(text)
    return path if path.exists() else ag.Store().resolve(text, kind)


def checked_file(
    text: str, kind: Literal["adapter", "base"], base: NamedBase | None = None
) -> Path:
    """The file of a path or a name: of a `base`'s own adapter, or in the store, where it must be as
    it was stored. Raises what NamedBase.own(), Store.resolve() and Store.check() do.
    """
    if base is not None and (own := base.own(text)) is not None:
        return own
    store = ag.Store()
    path = store.resolve(text, kind)
    if not store.is_path(text) and (entry := store.find(text)) is not None:
        store.check(entry)
    return path


def packaged() -> dict[str, Path]:
    """The bases that have a name without being stored, where their packages are installed."""
    try:
        return {smollm2.NAME: smollm2.base_path()}
    except ag.InputError:
        return {}


def own_adapters() -> dict[str, Path]:
    """The adapters that come with smollm2, where there is a base of that name that they fit."""
    try:
        return dict(NamedBase.of(smollm2.NAME).adapters)
    except ag.AloraError:
        return {}


def _is_stored(text: str) -> bool:
    """Whether a text is a path, or a name that the store knows."""
    return ag.Store.is_path(text) or ag.Store().find(text) is not None


def _fitting(base: Path) -> dict[str, Path]:
    """The adapters for SmolLM2, if they fit what the store has under its name, or the package."""
    own = smollm2.adapter_paths()
    if own and packaged().get(smollm2.NAME) != base:
        read = ag.BaseFile.read(base)
        try:
            for path in own.values():
                ag.AdapterFile.read(path).check_base(read, read.n_vocab or 0)
        except ag.AdapterMismatchError:
            return {}
    return own
