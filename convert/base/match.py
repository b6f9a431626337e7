"""Whether the base that an adapter was trained on, by its name, is another one than the one given.

Names only make a warning: shapes and vocabularies, which are checked elsewhere, make an error.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from .model import BaseModel

# Families as their models' names contain them, and the version that may follow, also with "-" for
# its dots. "phi" and "mistral" stand alone: dolphin and mistralai are something else.
_FAMILY: Final = re.compile(
    r"(granite|llama|qwen|gemma|mixtral|smollm|starcoder|olmo|gpt-?2|\bphi(?![a-z])"
    r"|\bmistral(?![a-z]))(?:-?(\d{1,2}(?:[.-]\d{1,2})*))?(?=$|[^a-z\d.])"
)
_RELEASE: Final = re.compile(r"(?<![a-z\d.])v(\d+(?:\.\d+)*)(?![a-z\d.])")
_UNITS: Final = {"b": 1e9, "m": 1e6}
_SIZE: Final = re.compile(r"(?<![a-z\d.])(?:(\d{1,3})x)?(\d{1,4}(?:\.\d{1,4})?)([bm])(?![a-z\d])")
_WORDS: Final = re.compile(r"[a-z]+")
_SIZE_WORDS: Final = frozenset({"nano", "micro", "tiny", "mini", "small", "medium", "large", "xl"})
_STAGE_WORDS: Final = frozenset({"base", "pt", "instruct", "it", "chat"})
_SAME: Final = {"pt": "base", "it": "instruct", "chat": "instruct"}
_SKILLS: Final = frozenset({"code", "coder", "guardian", "math", "speech", "vision", "vl"})

_MAX_SHOWN: Final = 80
_FILE_ENDS: Final = re.compile(r"(\.gguf|\.safetensors|\.bin)$", re.IGNORECASE)
_HUB_CACHE: Final = re.compile(r"models--[^/]+?--([^/]+)")


@dataclass(frozen=True)
class _Facts:
    """What a name says: families, their versions, other versions, sizes such as (1, 8e9), words."""

    families: frozenset[str]
    versions: frozenset[tuple[str, str]]
    releases: frozenset[str]
    sizes: frozenset[tuple[int, float]]
    words: frozenset[str]

    @property
    def tells(self) -> bool:
        """Whether it can be the name of a model at all."""
        return bool(self.families or self.sizes)

    def covers(self, other: _Facts) -> bool:
        """Whether it says something of all that `other` says something of."""
        pairs = [
            (self.families, other.families),
            (self.versions, other.versions),
            (self.releases, other.releases),
            (self.sizes, other.sizes),
            *((self.words & kind, other.words & kind) for kind in (_SIZE_WORDS, _STAGE_WORDS)),
        ]
        return all(mine or not its for mine, its in pairs)


def compare_base(trained_on: str | None, base: BaseModel) -> str | None:
    """A warning if an adapter's base_model_name_or_path names another model than the base is.

    It does where both names state a family, version, size, stage (base or instruct) or skill (code,
    ...), and not the same. None if one of the base's names says as much as the adapter does and
    contradicts it in nothing, and where nothing can be told.
    """
    name = model_name(trained_on or "")
    wanted = _facts(name)
    if not wanted.tells or (not wanted.families and _is_path(trained_on or "")):
        return None  # a directory's name may say anything
    problems = []
    for own in map(model_name, base.names):
        facts = _facts(own)
        problem = _contradiction(wanted, facts) if facts.tells else None
        if problem is not None:
            problems.append(f"is called {_quoted(own)} ({problem})")
        elif facts.covers(wanted):
            return None
    if not problems:
        return None
    return (
        f"the adapter was trained on {_quoted(name)} (base_model_name_or_path), but {base.label} "
        f"{problems[0]}; if they are not one model, convert for the one it was trained on"
    )


def model_name(text: str) -> str:
    """The model's own name in a path, a file's name or a name on the hub."""
    cached = _HUB_CACHE.search(text.replace("\\", "/"))
    if cached is not None:
        return cached[1]
    last = text.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return _FILE_ENDS.sub("", last)


def _quoted(name: str) -> str:
    shown = name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}..."
    return f"'{shown}'" if shown.isprintable() else ascii(shown)


def _is_path(text: str) -> bool:
    parts = text.replace("\\", "/").rstrip("/").split("/")
    return len(parts) > 2 or parts[0] in ("", ".", "..", "~")


def _facts(name: str) -> _Facts:
    text = re.sub(r"[\s_:]+", "-", name.lower())
    found = [(m[1].replace("-", ""), _plain(m[2] or "")) for m in _FAMILY.finditer(text)]
    sizes = [
        (int(count or 1), float(number) * _UNITS[unit])
        for count, number, unit in _SIZE.findall(text)
    ]
    return _Facts(
        families=frozenset(family for family, _ in found),
        versions=frozenset((family, version) for family, version in found if version),
        releases=frozenset(_plain(m[1]) for m in _RELEASE.finditer(text)),
        sizes=frozenset(sizes),
        words=frozenset(_WORDS.findall(text)),
    )


def _plain(version: str) -> str:
    """A version without the zeros that some leave out: 4.0 is 4."""
    return re.sub(r"(\.0)+$", "", version.replace("-", "."))


def _contradiction(a: _Facts, b: _Facts) -> str | None:
    """In what two names contradict each other, for people; None if in nothing."""
    if a.families and b.families and not a.families & b.families:
        return f"{_list(a.families)} against {_list(b.families)}"
    for family in sorted(a.families & b.families):
        mine = {version for name, version in a.versions if name == family}
        its = {version for name, version in b.versions if name == family}
        if mine and its and not mine & its:
            return f"{family} {_list(mine)} against {_list(its)}"
    if a.releases and b.releases and not a.releases & b.releases:
        return f"v{_list(a.releases)} against v{_list(b.releases)}"
    if a.sizes and b.sizes and not any(_same_size(x, y) for x in a.sizes for y in b.sizes):
        return f"{_shown(a.sizes)} against {_shown(b.sizes)}"
    for kind in (_SIZE_WORDS, _STAGE_WORDS):
        mine, its = _meaning(a.words & kind), _meaning(b.words & kind)
        if mine and its and not mine & its:
            return f"{_list(mine)} against {_list(its)}"
    if a.families and b.families and (skills := (a.words ^ b.words) & _SKILLS):
        return f"only one of them has '{_list(skills)}' in its name"
    return None


def _meaning(words: Set[str]) -> set[str]:
    """Words with those that mean the same as one."""
    return {_SAME.get(word, word) for word in words}


def _same_size(a: tuple[int, float], b: tuple[int, float]) -> bool:
    """Whether two labels can mean one size: they are equal, or one is the other, rounded."""
    if a[0] != b[0]:
        return False
    return a[1] in (b[1], _rounded(b[1])) or b[1] == _rounded(a[1])


def _rounded(number: float) -> float:
    return round(number / 1e9) * 1e9


def _shown(sizes: Set[tuple[int, float]]) -> str:
    labels = []
    for count, number in sorted(sizes):
        unit, divisor = ("b", 1e9) if number >= 1e9 else ("m", 1e6)
        labels.append(f"{count}x" * (count > 1) + f"{number / divisor:g}{unit}")
    return ", ".join(labels)


def _list(words: Set[str]) -> str:
    return ", ".join(sorted(words))
