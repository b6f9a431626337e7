"""`python -m docs` writes the generated parts of these pages from the code's own tables.

With --check it writes nothing and fails if a page differs. What stands between two markers,
<!-- name --> and <!-- end name -->, is generated; the rest is written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import gguf
from alora_gguf.cli import group
from alora_gguf.convert.families import FAMILIES, Family
from alora_gguf.convert.peft_fields import HARMLESS, HONOURED, PLAIN_INITS, REFUSED

FOLDER = Path(__file__).parent

# a module's kind by its path; the first that fits
KINDS = {
    "attention": r"(self_)?attn\..*",
    "MLP": r"mlp\.(\w+_proj|c_fc)",
    "router": r".*\.(gate|router|router\.layer)",
    "shared expert or MLP": r"(.*\.)?shared_.*",
    "experts": r".*\.(experts\..*|input_linear|output_linear)",
    "Mamba": r"mamba\..*",
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
            found = [tensors for parts in readings if (tensors := _tensors(family, parts))]
            text = ", or ".join(" and ".join(f"`{t}`" for t in tensors) for tensors in found)
            reordered = family.rotated and found[0][0] in ("attn_q", "attn_k")
            rows = "in llama.cpp's order of heads" if reordered else ""
            yield f"| {family.architecture} | `{path}` | {text} | {rows} |"


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


def help_of(command: str) -> Callable[[], Iterator[str]]:
    """A command's --help, as a terminal of 80 columns shows it."""

    def lines() -> Iterator[str]:
        found = group.get_command(click.Context(group), command)
        if found is None:
            raise SystemExit(f"there is no command {command}")
        context = click.Context(found, info_name=f"alora-gguf {command}", max_content_width=80)
        yield "```"
        yield from found.get_help(context).splitlines()
        yield "```"

    return lines


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "families": families,
    "modules": modules,
    "fields": fields,
    "convert --help": help_of("convert"),
    "inspect --help": help_of("inspect"),
}


def render(text: str) -> str:
    """A page with its generated parts made anew."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        made = "\n".join([begin, *make(), end])
        text = between.sub(lambda _, made=made: made, text)  # type: ignore[misc]
    return text


def _kind(path: str) -> str:
    return next(kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, path))


def _tensors(family: Family, parts: tuple[str, ...]) -> list[str]:
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == family.architecture)
    table = gguf.get_tensor_name_map(arch, 1)
    names = [table.get_name(f"{family.block}.0.{part}") for part in parts]
    return [name.removeprefix("blk.0.") for name in names if name]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if pages differ")
    check = parser.parse_args().check
    stale = []
    for page in sorted(FOLDER.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (made := render(text)) != text:
            stale.append(page.name)
            if not check:
                page.write_text(made, encoding="utf-8")
    if stale:
        print(f"{'stale' if check else 'written'}: {', '.join(stale)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
