"""Whether the base that an adapter was trained on, by its name, is another one than the one given.

Names only make a warning: shapes and vocabularies, which are checked elsewhere, make an error.
"""

from __future__ import annotations

import re
from typing import Final

from .model import BaseModel

# Families as their models' names contain them, and the version that may follow, also with "-" for
# its dots. "phi" and "mistral" stand alone: dolphin and mistralai are something else.
_FAMILY: Final = re.compile(
    r"(granite|llama|qwen|gemma|mixtral|smollm|starcoder|olmo|gpt-?2|\bphi(?![a-z])"
    r"|\bmistral(?![a-z]))(?:-?(\d{1,2}(?:[.-]\d{1,2})*))?(?=$|[^a-z\d.])"
)
_RELEASE: Final = re.compile(r"(?<![a-z\d.])v(\d+(?:\.\d+)*)(?![a-z\d.])")
_SIZE: Final = re.compile(r"(?<![a-z\d.])(?:(\d{1,3})x)?(\d{1,4}(?:\.\d{1,4})?)([bm])(?![a-z\d])")
_SIZE_WORDS: Final = frozenset({"nano", "micro", "tiny", "mini", "small", "medium", "large", "xl"})
_STAGES: Final = dict.fromkeys(("base", "pt"), "base") | dict.fromkeys(
    ("instruct", "it", "chat"), "instruct"
)
_SKILLS: Final = frozenset({"code", "coder", "guardian", "math", "speech", "vision", "vl"})

_MAX_SHOWN: Final = 80
_FILE_ENDS: Final = re.compile(r"(\.gguf|\.safetensors|\.bin)$", re.IGNORECASE)
_HUB_CACHE: Final = re.compile(r"models--[^/]+?--([^/]+)")

# What a name says: of each kind what it says of it, perhaps nothing. A kind that begins with "of "
# is the version of that family.
_Facts = dict[str, set[str]]
_OPEN: Final = frozenset({"skill"})  # a name without one says that it has none


def compare_base(trained_on: str | None, base: BaseModel) -> str | None:
    """A warning if an adapter's base_model_name_or_path names another model than the base is.

    It does where both names state a family, version, size, stage (base or instruct) or skill (code,
    ...), and not the same. None if one of the base's names says as much as the adapter does and
    contradicts it in nothing, and where nothing can be told.
    """
    name = model_name(trained_on or "")
    wanted = _facts(name)
    tells = wanted["size"] and not _is_path(trained_on or "")  # whose name may say anything
    if not (wanted["family"] or tells):
        return None
    problems = []
    for own in map(model_name, base.names):
        facts = _facts(own)
        known = facts["family"] or facts["size"]
        problem = _contradiction(wanted, facts) if known else None
        if problem is not None:
            problems.append(f"is called {_quoted(own)} ({problem})")
        elif _says_as_much(facts, wanted):
            return None
    if not problems:
        return None
    return (
        f"the adapter was trained on {_quoted(name)} (base_model_name_or_path), but {base.label} "
        f"{problems[0]}; if they are not one model, convert for the one it was trained on"
    )


def is_called(name: str, base: BaseModel) -> bool:
    """Whether one of the base's names, its file's included, says all that `name` says, a family and
    a size at least, and contradicts it in nothing.
    """
    wanted = _facts(model_name(name))
    own = [_facts(model_name(each)) for each in (*base.names, base.label)]
    return bool(wanted["family"] and (wanted["size"] or wanted["size word"])) and any(
        _contradiction(wanted, facts) is None and _says_as_much(facts, wanted) for facts in own
    )


def _says_as_much(facts: _Facts, wanted: _Facts) -> bool:
    return all(facts.get(kind) or kind in _OPEN for kind, said in wanted.items() if said)


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
    families = [(m[1].replace("-", ""), _plain(m[2] or "")) for m in _FAMILY.finditer(text)]
    versions = {
        f"of {family}": {v for f, v in families if f == family and v}
        for family in sorted({family for family, _ in families})
    }
    words = set(re.findall("[a-z]+", text))
    return {
        "family": {family for family, _ in families},
        **versions,
        "release": {_plain(m[1]) for m in _RELEASE.finditer(text)},
        "size": {_size(*found) for found in _SIZE.findall(text)},
        "size word": words & _SIZE_WORDS,
        "stage": {_STAGES[word] for word in words & _STAGES.keys()},
        "skill": words & _SKILLS,
    }


def _plain(version: str) -> str:
    """A version without the zeros that some leave out: 4.0 is 4."""
    return re.sub(r"(\.0)+$", "", version.replace("-", "."))


def _contradiction(a: _Facts, b: _Facts) -> str | None:
    """In what two names contradict each other, for people; None if in nothing."""
    for kind, mine in a.items():
        its = b.get(kind, set())
        if kind in _OPEN or not mine or not its or _agree(kind, mine, its):
            continue
        family = kind.removeprefix("of ") + " " if kind.startswith("of ") else ""
        v = "v" * (kind == "release")
        return f"{family}{v}{_list(mine)} against {v}{_list(its)}"
    if a["family"] and b["family"] and (skills := a["skill"] ^ b["skill"]):
        return f"only one of them has '{_list(skills)}' in its name"
    return None


def _agree(kind: str, mine: set[str], its: set[str]) -> bool:
    """Whether they have one in common; of sizes also where one is the other, rounded."""
    if kind == "size" and (mine & set(map(_rounded, its)) or its & set(map(_rounded, mine))):
        return True
    return bool(mine & its)


def _size(count: str, number: str, unit: str) -> str:
    """A size in one spelling: "8x7b", "500m" for "0.5b"."""
    millions = float(number) * (1000 if unit == "b" else 1)
    shown = f"{millions / 1000:g}b" if millions >= 1000 else f"{millions:g}m"
    return f"{count}x{shown}" if count not in ("", "1") else shown


def _rounded(size: str) -> str:
    return re.sub(r"[\d.]+(?=b$)", lambda number: f"{float(number[0]):.0f}", size)


def _list(facts: set[str]) -> str:
    return ", ".join(sorted(facts))
