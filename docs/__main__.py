"""`python -m docs` writes the generated parts of these pages from the code's own tables.

With --check it writes nothing and fails if a page or a picture differs. What stands between two
markers, <!-- name --> and <!-- end name -->, is generated; the rest is written by hand. The site is
built by mkdocs from these pages, with hooks.py.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from alora_gguf.convert.base.families import FAMILIES, Family, Tensors
from alora_gguf.convert.peft.fields import HARMLESS, HONOURED, PLAIN_INITS, REFUSED
from alora_gguf.convert.peft.tuners import (
    READ_AS_LORA,
    REFUSED_TUNERS,
    TUNER_HARMLESS,
    TUNER_HONOURED,
    TUNER_REFUSED,
)

from .commands import chat_commands, commands, help_text, names
from .names import errors, with_tables
from .pictures import PICTURES

FOLDER = Path(__file__).parent

# files that pages show whole
INCLUDED = (
    "examples/train_alora/train.py",
    "examples/train_alora/io.yaml",
    "examples/desktop/assistant.py",
    "examples/desktop/window.py",
)
LANGUAGES = {".py": "python", ".yaml": "yaml"}

# a module's kind by its path; the first that fits
KINDS = {
    "attention": r"(self_)?(attn|attention)\..*",
    "MLP": r"(mlp|feed_forward)\.(\w+_proj|c_fc|fc\d|w\d|dense_\w+)|per_layer_\w+",
    "router": r"(.*\.)?(gate|router|router\.(layer|proj))",
    "shared expert or MLP": r"(.*\.)?shared_.*",
    "experts": r"(.*\.)?experts\..*|.*\.(input_linear|output_linear)",
    "Mamba, delta net or convolution": r"(mamba|linear_attn|conv)\..*",
}


def families() -> Iterator[str]:
    """Family x kinds of targets."""
    kinds = list(KINDS)
    yield f"| family | `general.architecture` | {' | '.join(kinds)} |"
    yield "|" + "---|" * (len(kinds) + 2)
    for family in FAMILIES.values():
        present = {_kind(path) for path in family.modules}
        cells = ["yes" if kind in present else "" for kind in kinds]
        yield f"| {', '.join(family.names)} | {family.architecture} | {' | '.join(cells)} |"


def modules() -> Iterator[str]:
    """Every module of every family and the tensors it becomes."""
    yield "| family | module inside a block | tensors of a block | rows |"
    yield "|---|---|---|---|"
    for family in FAMILIES.values():
        for path, readings in family.modules.items():
            text = ", or ".join(" and ".join(f"`{t}`" for t in tensors) for tensors in readings)
            rows = _rows(family, path, readings[0])
            yield f"| {family.architecture} | `{path}` | {text} | {rows} |"
        for path, tensor in family.others.items():
            yield f"| {family.architecture} | `{path}`, in no block | `{tensor}` | |"


def _rows(family: Family, path: str, tensors: Tensors) -> str:
    """What happens to a module's rows, or columns."""
    if path in family.refused:
        return f"refused: {family.refused[path]}"
    if path in family.rows:
        return f"{family.rows[path].value}: taken apart"
    if family.rotated and tensors[0] in ("attn_q", "attn_k"):
        return "in llama.cpp's order of heads"
    if family.tiled and path.startswith("linear_attn."):
        return "value heads in llama.cpp's order"
    return ""


def fields() -> Iterator[str]:
    """What becomes of each field of adapter_config.json."""
    yield "| field | what happens |"
    yield "|---|---|"
    rows = dict.fromkeys(HONOURED, "honoured")
    rows |= dict.fromkeys(HARMLESS, "of no effect on a trained adapter")
    for name, refusal in REFUSED.items():
        rows[name] = f"refused if set: {refusal.reason}. Way out: {refusal.way_out}"
    inits = ", ".join(f"`{json.dumps(init)}`" for init in (True, False, *PLAIN_INITS))
    rows["init_lora_weights"] = f"{inits} are honoured, others changed the base and are refused"
    for name in sorted(rows):
        yield f"| `{name}` | {rows[name]} |"


def tuners() -> Iterator[str]:
    """What becomes of each of PEFT's tuners."""
    yield "| `peft_type` | what happens |"
    yield "|---|---|"
    rows = dict.fromkeys(READ_AS_LORA, "converted exactly")
    for name, refusal in REFUSED_TUNERS.items():
        rows[name] = f"refused: {refusal.reason}. Way out: {refusal.way_out}"
    for name in sorted(rows):
        yield f"| `{name}` | {rows[name]} |"


def coverage() -> Iterator[str]:
    """How much of PEFT is converted, as numbers."""
    yield "| of PEFT 0.21 | in all | exact | refused by name | unknown |"
    yield "|---|---|---|---|---|"
    exact, refused = len(READ_AS_LORA), len(REFUSED_TUNERS)
    yield f"| tuners | {exact + refused} | {exact} | {refused} | 0 |"
    for tuner in READ_AS_LORA:
        exact = len(TUNER_HONOURED.get(tuner, HONOURED) | TUNER_HARMLESS.get(tuner, HARMLESS))
        refused = len(TUNER_REFUSED.get(tuner, REFUSED))
        yield f"| fields of {tuner} | {exact + refused} | {exact} | {refused} | 0 |"


def help_of(command: str) -> Callable[[], Iterator[str]]:
    """A command's --help, as a terminal of 80 columns shows it."""

    def lines() -> Iterator[str]:
        yield from ("```", *help_text(command), "```")

    return lines


def file_of(path: str) -> Callable[[], Iterator[str]]:
    """A file of the repository, whole."""

    def lines() -> Iterator[str]:
        text = (FOLDER.parent / path).read_text(encoding="utf-8")
        yield from (f"```{LANGUAGES[Path(path).suffix]}", *text.splitlines(), "```")

    return lines


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "families": families,
    "modules": modules,
    "fields": fields,
    "tuners": tuners,
    "coverage": coverage,
    "commands": commands,
    "chat commands": chat_commands,
    **{f"{name} --help": help_of(name) for name in names()},
    **{path: file_of(path) for path in INCLUDED},
    "errors": errors,
}


def pages() -> list[Path]:
    """All pages."""
    return sorted(FOLDER.rglob("*.md"))


def render(text: str) -> str:
    """A page with its generated parts made again."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        if begin not in text:
            continue
        between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        made = "\n".join([begin, *make(), end])
        text = between.sub(lambda _, made=made: made, text)  # type: ignore[misc]
    return with_tables(text)


def _kind(path: str) -> str:
    return next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, path))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if pages differ")
    check = parser.parse_args().check
    made = {page: render(page.read_text(encoding="utf-8")) for page in pages()}
    made |= {FOLDER / "images" / name: draw() for name, draw in PICTURES.items()}
    stale = []
    for path, text in made.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path.relative_to(FOLDER).as_posix())
            if not check:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'stale' if check else 'written'}: {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
