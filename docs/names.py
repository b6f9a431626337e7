"""The public Python names in groups: the tables of reference/python.md, and what the site shows
below them.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import alora_gguf

ROOT = Path(__file__).parents[1]

GROUPS: Final = {
    "Models": (
        "Model",
        "ContextOptions",
        "CancelToken",
        "AdapterFile",
        "BaseFile",
        "Barrier",
        "Stats",
    ),
    "Chats": ("Chat", "Message", "Document", "Reply", "GenerateOptions", "Sampling"),
    "Before a model is opened": (
        "Tokenizer",
        "ChatSize",
        "inspect_gguf",
        "AdapterSummary",
        "BaseSummary",
        "ArraySummary",
    ),
    "Asking intrinsics": ("IntrinsicCall", "IntrinsicResult"),
    "What calls tell": ("Timings", "FinishReason", "Progress", "TokenLogprob", "TopLogprob"),
    "Sessions": (
        "Session",
        "Generation",
        "Invocation",
        "Verdict",
        "Provenance",
        "is_saved_session",
    ),
    "The cache": ("CacheReport", "CacheHolder", "CacheSpan"),
    "Llama": ("Llama", "LlamaState"),
    "The store": ("Store", "StoreEntry"),
}
# modules whose names are public beside alora_gguf's own, and where their files stand
MODULES: Final = {
    "alora_gguf.aio": ("call",),
    "alora_gguf.intrinsics": (
        "load_contract", "rewrite", "transform", "Contract", "Request", "Outcome",
    ),
    "alora_gguf.convert": ("convert_adapter", "Pick", "ConversionReport"),
    "alora_gguf.verification": ("verify",),
    "alora_gguf.demo": (
        "INTRINSICS", "base_path", "adapter_path", "adapter_paths", "io_yaml_path", "invocation_of",
    ),
}  # fmt: skip
# what has no docstring of its own
_CONSTANTS: Final = {
    "alora_gguf.demo.INTRINSICS": "The names of the demo model's intrinsics",
    "alora_gguf.FinishReason": "Why a reply ended",
    "alora_gguf.Progress": "Called with the tokens read so far and all there are to read",
}


def parts() -> dict[str, Callable[[], Iterator[str]]]:
    """A table for each group, as render() wants them."""
    made: dict[str, Callable[[], Iterator[str]]] = {}
    for group, names in GROUPS.items():
        made[f"names: {group}"] = _table([f"alora_gguf.{name}" for name in names])
    for module, names in MODULES.items():
        made[f"names: {module}"] = _table([f"{module}.{name}" for name in names])
    made["errors"] = errors
    return made


def errors() -> Iterator[str]:
    """The tree drawn in errors.py, and every class of it for the site."""
    from alora_gguf import errors as module

    lines = (module.__doc__ or "").splitlines()
    tree = [line for line in lines if line.lstrip("│ ").startswith(("AloraError", "├", "└"))]
    yield from ("```text", *tree, "```", "")
    for line in tree:
        found = re.search(r"\w+Error", line)
        yield f"<!-- ::: alora_gguf.errors.{found[0] if found else ''} -->"


def check() -> None:
    """Raises SystemExit if a public name stands in no group, or in two."""
    grouped = [name for names in GROUPS.values() for name in names]
    public = set(alora_gguf.__all__) - {"__version__"}
    public -= {name for name in public if name.endswith("Error")}
    for name in sorted(public.symmetric_difference(grouped)):
        raise SystemExit(f"docs/names.py: {name} is public, or in GROUPS, but not both")
    if len(set(grouped)) < len(grouped):
        raise SystemExit("docs/names.py: a name of GROUPS stands in two groups")


def _table(paths: list[str]) -> Callable[[], Iterator[str]]:
    def lines() -> Iterator[str]:
        check()
        yield "| name | what it is | file |"
        yield "|---|---|---|"
        for path in paths:
            file, summary = _of(path)
            name = path.rpartition(".")[2]
            yield f"| `{name}` | {summary} | [{file.name}](../../{file.as_posix()}) |"
        yield ""
        for path in paths:  # where it is defined: lazy exports are not seen from without
            yield f"<!-- ::: {_home(path)} -->"

    return lines


def _home(path: str) -> str:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    return f"{_module_of(path, found)}.{name}"


def _module_of(path: str, found: object) -> str:
    """Where a public name is defined; what has no docstring does not say itself."""
    module, _, name = path.rpartition(".")
    if path in _CONSTANTS and module == "alora_gguf":
        return f"alora_gguf.{alora_gguf._HOME[name]}"
    return getattr(found, "__module__", module)


def _of(path: str) -> tuple[Path, str]:
    """Where a name is defined, in the repository, and the first sentence of its docstring."""
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    home = importlib.import_module(_module_of(path, found))
    file = Path(inspect.getsourcefile(home) or "").resolve().relative_to(ROOT)
    text = _CONSTANTS.get(path) or inspect.getdoc(found) or ""
    first = re.split(r"(?<=[.;:])\s(?![^()]*\))|\n\n", text, maxsplit=1)[0]
    return file, " ".join(first.split()).rstrip(".;:").replace("|", "\\|")
