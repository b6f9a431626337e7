"""What differs between two versions of upstream in the places that this project relies on.

It reads sources as text: what it lists is to be looked at, not what is certain to matter.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

SHOWN = 6  # of a long list, in the report for people; the one for programs has all


@dataclass
class Names:
    """What a list of names lost and gained."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)

    def __str__(self) -> str:
        told = [f"+ {short(self.added)}"] if self.added else []
        return "; ".join([*told, f"- {short(self.removed)}"] if self.removed else told)


@dataclass
class Changes:
    """Each field is one of the places that native/README.md says to look at after a move."""

    files: dict[str, tuple[int, int]]  # of our hunks: lines added and taken away
    bypassing: list[str]  # new products of weights beside build_lora_mm
    last_products: list[str]  # new products that a vector's hook may miss
    allow_reuse: Names
    graph_params: Names
    architectures: Names
    functions: Names  # of llama.h, with their parameters
    header: dict[str, Names]  # structs of llama.h
    structs: dict[str, Names] | None  # ctypes structs of the binding; None: not compared

    def as_json(self) -> dict[str, object]:
        return asdict(self)

    def report(self) -> list[str]:
        touched = [f"{path} +{a} -{b}" for path, (a, b) in self.files.items() if a or b]
        lines = [f"files with our hunks: {'; '.join(touched) or 'unchanged'}"]
        lists = {
            "products of weights beside build_lora_mm": self.bypassing,
            "new products with wo or ffn_down": self.last_products,
        }
        lines += [_named(name, entries) for name, entries in lists.items()]
        names = {
            "llm_graph_params::allow_reuse compares": self.allow_reuse,
            "llm_graph_params": self.graph_params,
            "architectures": self.architectures,
            "functions of llama.h": Names(
                *map(_functions_alone, (self.functions.added, self.functions.removed))
            ),
        }
        lines += [f"{name}: {found or 'unchanged'}" for name, found in names.items()]
        lines.append(f"structs of llama.h: {_structs(self.header)}")
        if self.structs is None:
            return [*lines, "ctypes structs: not compared, one of the two bindings is not here"]
        return [*lines, f"ctypes structs: {_structs(self.structs)}"]


def _named(name: str, entries: list[str]) -> str:
    if not entries:
        return f"{name}: none"
    more = [f"and {len(entries) - SHOWN} more"] if len(entries) > SHOWN else []
    return "\n    ".join([f"{name}: {len(entries)}", *entries[:SHOWN], *more])


def _structs(changed: dict[str, Names]) -> str:
    return "; ".join(f"{name} ({found})" for name, found in changed.items()) or "unchanged"


def _functions_alone(declared: list[str]) -> list[str]:
    return sorted({each.partition("(")[0] for each in declared})


def short(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


# ---- two trees -----------------------------------------------------------------------------------


def compare(old: Path, new: Path, touched: list[str]) -> Changes:
    """What changed from the tree `old` to `new`; `touched` are the files of our hunks."""
    return Changes(
        files={path: _stat(text(old / path), text(new / path)) for path in touched},
        bypassing=_new_lines(old, new, BYPASSING),
        last_products=_new_lines(old, new, LAST_PRODUCT),
        allow_reuse=_names(old, new, "src/llama-graph.h", compared_fields),
        graph_params=_names(old, new, "src/llama-graph.h", graph_params),
        architectures=_names(old, new, "src/llama-arch.cpp", architectures),
        functions=_names(old, new, "include/llama.h", functions),
        header=compare_fields(
            *(header_structs(text(tree / "include/llama.h")) for tree in (old, new))
        ),
        structs=None,
    )


def text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _stat(old: str, new: str) -> tuple[int, int]:
    added = removed = 0
    matcher = difflib.SequenceMatcher(None, old.splitlines(), new.splitlines())
    for tag, i, i_end, j, j_end in matcher.get_opcodes():
        if tag != "equal":
            added, removed = added + j_end - j, removed + i_end - i
    return added, removed


def difference(old: set[str], new: set[str]) -> Names:
    return Names(sorted(new - old), sorted(old - new))


def _names(old: Path, new: Path, file: str, read: Callable[[str], set[str]]) -> Names:
    return difference(read(text(old / file)), read(text(new / file)))


# A weight of the model in a product of its own, or one whose rows are looked up.
BYPASSING = re.compile(
    r"ggml_(?:mul_mat|mul_mat_id|get_rows)\s*\(\s*ctx0\s*,\s*"
    r"(?:\w+(?:->|\.))*(?:model|layer|layers\[\w+\])(?:->|\.)[\w.\->\[\]]+"
)
# What should be the last product of an attention or an FFN, made by the architecture itself.
LAST_PRODUCT = re.compile(r"build_lora_mm(?:_id)?\s*\([^;]*(?:\bwo\b|\bffn_down\w*)")


def _new_lines(old: Path, new: Path, pattern: re.Pattern[str]) -> list[str]:
    """Lines of src/ with `pattern` that the old version does not have in that file."""
    found = []
    for file in sorted((new / "src").rglob("*.cpp")):
        path = file.relative_to(new)
        before = Counter(" ".join(line.split()) for line in text(old / path).splitlines())
        for number, line in enumerate(text(file).splitlines(), 1):
            words = " ".join(line.split())
            if pattern.search(line) and not words.startswith("//"):
                if before[words] > 0:
                    before[words] -= 1
                else:
                    found.append(f"{path.as_posix()}:{number}: {words}")
    return found


# ---- what a source names -------------------------------------------------------------------------


def body(source: str, beginning: str) -> str:
    """What is between the braces that follow `beginning`, without comments; empty if nothing is."""
    source = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)
    begin = re.search(beginning + r"[^;{]*\{", source)
    if begin is None:
        return ""
    depth, at = 1, begin.end()
    while at < len(source) and depth:
        depth += {"{": 1, "}": -1}.get(source[at], 0)
        at += 1
    return source[begin.end() : at - 1]


def compared_fields(source: str) -> set[str]:
    inside = body(body(source, r"struct llm_graph_params\b"), r"\ballow_reuse\s*\(")
    return set(re.findall(r"\bother\.(\w+(?:\.\w+)*)", inside))


def graph_params(source: str) -> set[str]:
    """The fields of llm_graph_params, without what stands inside of its functions."""
    inside = body(source, r"struct llm_graph_params\b")
    while (shorter := re.sub(r"\{[^{}]*\}", ";", inside)) != inside:
        inside = shorter
    return set(re.findall(r"[\w>*&]\s+[*&]?\s*(\w+)\s*(?:=[^;()]*)?;", inside))


def architectures(source: str) -> set[str]:
    return set(re.findall(r"\{\s*LLM_ARCH_\w+\s*,\s*\"([^\"(]+)\"\s*\}", source))


def functions(source: str) -> set[str]:
    """Each function of llama.h with its parameters, so that another signature is another one."""
    source = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL)
    declared = re.findall(r"LLAMA_API\s+[^;()]*?(\w+)\s*\(((?:[^()]|\([^()]*\))*)\)", source)
    return {f"{name}({' '.join(parameters.split())})" for name, parameters in declared}


def header_structs(source: str) -> dict[str, list[str]]:
    """The structs of llama.h: their fields, with their types, in order."""
    found = {}
    for name in re.findall(r"\bstruct\s+(\w+)\s*\{", source):
        fields = body(source, rf"\bstruct\s+{name}\s*(?=\{{)").split(";")
        found[name] = [" ".join(each.split()) for each in fields if each.strip()]
    return found


# ---- the binding ---------------------------------------------------------------------------------


def struct_fields(source: str) -> dict[str, list[str]]:
    """The ctypes structs of llama_cpp.py: their fields, as `name: type`, in order."""
    structs = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            for statement in node.body:
                match statement:
                    case ast.Assign(targets=[ast.Name(id="_fields_")], value=ast.List(elts=fields)):
                        structs[node.name] = [_field(each) for each in fields]
    return structs


def _field(node: ast.expr) -> str:
    match node:
        case ast.Tuple(elts=[ast.Constant(value=str(name)), kind, *_]):
            return f"{name}: {ast.unparse(kind)}"
    return ast.unparse(node)


def compare_structs(old: str, new: str) -> dict[str, Names]:
    """The structs that differ between two llama_cpp.py, with their fields."""
    return compare_fields(struct_fields(old), struct_fields(new))


def compare_fields(before: dict[str, list[str]], after: dict[str, list[str]]) -> dict[str, Names]:
    changed = {}
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name, []), after.get(name, [])
        if one != other:
            found = difference(set(one), set(other))
            changed[name] = found or Names(["the same fields in another order"])
    return changed
