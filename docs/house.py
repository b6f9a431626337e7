"""`python -m docs.house` prints the package's plan in figures, and fails if one is too high.

The imports are those of every module of alora_gguf, convert and cli, those for type checkers too.
With --contracts it runs import-linter instead, on the contracts of pyproject.toml.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
PACKAGE: Final = "alora_gguf"
Graph = dict[str, set[str]]

# figure -> the most it may be; lines are those of what the package can do today, and what is added
# to that may raise their limit in the same change
LIMITS: Final = {
    "import circles": 0,
    "rooms in alora_gguf/": 29,
    "floors": 11,
    "modules reachable from chat": 74,
    "files from invoke to llama_decode": 26,
    "product lines": 59_250,
    "public names that say they are not": 0,
}
# contracts that are not kept yet
NOT_YET: Final = ("circles", "chat", "cli")
# a face and the type of its own result: Model.session() returns a Session, which has a `model`
FACES: Final = {
    (f"{PACKAGE}.session", f"{PACKAGE}.model"),
    (f"{PACKAGE}.chat.chat", f"{PACKAGE}.model"),
}


# ---- modules and imports -------------------------------------------------------------------------


def copy_tree(folder: Path) -> Path:
    """The package's Python files with convert/ and cli/ inside, as wheels have them."""
    tree = folder / PACKAGE
    for source, target in ((PACKAGE, tree), ("convert", tree / "convert"), ("cli", tree / "cli")):
        for path in sorted((ROOT / source).rglob("*.py")):
            copy = target / path.relative_to(ROOT / source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return tree


@contextlib.contextmanager
def installed_tree() -> Iterator[Path]:
    """copy_tree(), which imports find before any installation.

    Nothing of the package may have been imported before.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_tree(Path(folder))
        kept = sys.meta_path[:], sys.path[:]
        sys.meta_path[:] = [f for f in kept[0] if f.__module__.startswith("_frozen_importlib")]
        sys.path.insert(0, folder)
        try:
            yield tree
        finally:
            sys.meta_path[:], sys.path[:] = kept


def imports() -> Graph:
    """Each module with those of the package that it imports."""
    import grimp  # for make house alone

    with installed_tree():
        graph = grimp.build_graph(PACKAGE, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def reachable(graph: Graph, start: str) -> set[str]:
    """What `start` imports, and what that imports, and so on."""
    found: set[str] = set()
    todo = [start]
    while todo:
        new = graph[todo.pop()] - found
        found |= new
        todo += new
    return found


def without(graph: Graph, arrows: Iterable[tuple[str, str]]) -> Graph:
    left = {module: set(imported) for module, imported in graph.items()}
    for importer, imported in arrows:
        left.get(importer, set()).discard(imported)
    return left


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules each of which reaches all others of its group."""
    reach = {module: reachable(graph, module) for module in graph}
    groups = {
        tuple(sorted(other for other in reach[module] if module in reach[other]))
        for module in graph
        if module in reach[module]
    }
    return [list(group) for group in sorted(groups)]


# ---- rooms ---------------------------------------------------------------------------------------


def rooms() -> list[str]:
    """The files and folders of alora_gguf/ that hold code."""
    inside = (ROOT / PACKAGE).iterdir()
    return sorted(p.stem for p in inside if p.suffix == ".py" or any(p.glob("*.py")))


def between_rooms(graph: Graph) -> Graph:
    """Arrows between rooms; the package's own __init__ is one."""
    inside = set(rooms()) - {"__init__"}
    room_of = {module: _room(module, inside) for module in graph}
    arrows: Graph = {room: set() for room in room_of.values() if room}
    for module, imported in graph.items():
        if room := room_of[module]:
            arrows[room] |= {r for other in imported if (r := room_of[other]) and r != room}
    return arrows


def floors(graph: Graph) -> list[str]:
    """The longest chain of rooms each of which imports the next, no room twice."""
    arrows = between_rooms(graph)
    tied = {
        room: {r for r in reachable(arrows, room) if room in reachable(arrows, r)} | {room}
        for room in arrows
    }
    longest: dict[str, list[str]] = {}

    def below(room: str) -> list[str]:
        """The chain that begins with `room`, or with rooms in a circle with it."""
        group = tied[room]
        key = min(group)
        if key not in longest:
            out = set().union(*(arrows[r] for r in group)) - group
            longest[key] = sorted(group) + max((below(r) for r in out), key=len, default=[])
        return longest[key]

    return max((below(room) for room in arrows), key=len)


def _room(module: str, inside: set[str]) -> str:
    """A module's room, empty for those of convert and cli, which stand beside the package."""
    parts = module.split(".")
    if len(parts) == 1:
        return PACKAGE
    return parts[1] if parts[1] in inside else ""


# ---- one call ------------------------------------------------------------------------------------


def crossed() -> list[str]:
    """The package's files in which a function runs from chat.invoke() to llama_decode, in order.

    The call is the second of its adapter: the first one also reads the contract. What importing a
    module runs does not count.
    """
    import alora_gguf as ag
    from alora_gguf import demo

    home = Path(ag.__file__).parent
    seen: dict[str, None] = {}
    watching = False

    def look(frame: FrameType, event: str, _: object) -> None:
        if watching and event == "call" and frame.f_code.co_name != "<module>":
            path = Path(frame.f_code.co_filename)
            if home in path.parents:
                seen.setdefault(path.relative_to(home).as_posix())

    threading.setprofile(look)  # before there is any thread of the model's
    sys.setprofile(look)
    try:
        with ag.Model(demo.base_path(), adapters=demo.adapter_paths(), n_threads=1) as model:
            with model.chat() as chat:
                chat.add(ag.Message("user", "Good morning."))
                chat.invoke("jailbreak")
            chat = model.chat()
            chat.add(ag.Message("user", "When is the ferry?"))
            binding = importlib.import_module("llama_cpp.llama_cpp")
            decode = binding.llama_decode

            def reached(*arguments: Any) -> Any:
                nonlocal watching
                watching = False
                return decode(*arguments)

            binding.llama_decode = reached
            try:
                watching = True
                chat.invoke("jailbreak")
            finally:
                watching = False
                binding.llama_decode = decode
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(seen)


# ---- sources -------------------------------------------------------------------------------------


def sources() -> list[Path]:
    """The product's Python files."""
    return sorted(
        p for folder in (PACKAGE, "convert", "cli") for p in (ROOT / folder).rglob("*.py")
    )


def product_lines() -> int:
    return sum(path.read_bytes().count(b"\n") for path in sources())


def not_public() -> list[str]:
    """Functions, methods and classes with a public name whose docstring denies it."""
    found = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            said = " ".join((ast.get_docstring(node) or "").lower().split())
            if not node.name.startswith("_") and "not part of the public" in said:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    return found


# ---- the command ---------------------------------------------------------------------------------


def measured() -> dict[str, tuple[int, list[str]]]:
    """Each figure of LIMITS, with what makes it up where that is short enough to print."""
    graph = without(imports(), FACES)
    tied, chain, files, denied = circles(graph), floors(graph), crossed(), not_public()
    return {
        "import circles": (len(tied), [" ".join(group) for group in tied]),
        "rooms in alora_gguf/": (len(rooms()), rooms()),
        "floors": (len(chain), chain),
        "modules reachable from chat": (len(reachable(graph, f"{PACKAGE}.chat.chat")), []),
        "files from invoke to llama_decode": (len(files), files),
        "product lines": (product_lines(), []),
        "public names that say they are not": (len(denied), denied),
    }


def check_contracts() -> int:
    """import-linter's verdict on pyproject.toml, as its exit status."""
    from importlinter.cli import lint_imports

    path = str(ROOT / "pyproject.toml")
    with installed_tree() as tree:
        os.chdir(tree.parent)  # import-linter looks here first
        return lint_imports(path, no_cache=True, no_logo=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.house", description=__doc__)
    parser.add_argument("--contracts", action="store_true", help="check the import contracts")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    if arguments.contracts:
        return check_contracts()
    found = measured()
    if arguments.json:
        print(json.dumps(found))
        return 0
    for name, (figure, parts) in found.items():
        print(f"{name:36}{figure:>7,}   at most {LIMITS[name]:,}")
        for part in parts:
            print(f"    {part}")
    return int(any(figure > LIMITS[name] for name, (figure, _) in found.items()))


if __name__ == "__main__":
    sys.exit(main())
