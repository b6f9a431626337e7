"""Moves the project to another release of llama-cpp-python, whose sdist carries llama.cpp.

    python native/upgrade.py 0.3.37            tries it, and writes below build/upgrade alone
    python native/upgrade.py 0.3.37 --write    if all of that passed, writes the pin and the patch

What it does and what is left to do by hand: native/README.md, "Moving to a newer upstream". The
exit status is 0 if everything that was asked for passed, and 1 if something did not.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

import fetch_upstream
from fetch_upstream import FetchError
from moving import building, changes, checkout, hunks, patches, sdist
from moving.report import ROOT, Report, UpgradeError, print_report


def compare(old: Path, new: Path, report: Report) -> None:
    with report.step("compare") as step:
        touched = sorted({each.hunk.path for _, each in report.placed})
        found = changes.compare(old, new, touched)
        before, after = (
            changes.text(tree / fetch_upstream.BINDING_FOLDER / "llama_cpp" / "llama_cpp.py")
            for tree in (old, new)
        )
        if before and after:
            found.structs = changes.compare_structs(before, after)
        report.changes = found
        report.by_hand += [
            f"{each.hunk.path}: read hunk {each.hunk.number} in its new place ({each.note})"
            for _, each in report.placed
            if each.outcome == "fuzz"
        ]
        step.said = "what changed where we rely on upstream: below"
        report.by_hand += to_look_at(found)


def to_look_at(found: changes.Changes) -> list[str]:
    """What only a person can judge."""
    asked = []
    if found.bypassing:
        asked.append("products beside build_lora_mm: an adapter for these weights is refused")
    if found.last_products:
        asked.append(
            "products with wo or ffn_down: a vector's hook misses what does not end in build_attn, "
            "build_ffn or build_moe_ffn"
        )
    if found.allow_reuse or found.graph_params:
        asked.append("llm_graph_params: does a reused graph still fit its plan (src/alora-plan.h)?")
    if found.architectures.added:
        asked.append("new architectures: the converter and docs/models.md know none of them yet")
    if found.functions or found.header or found.structs:
        asked.append("llama.h and the binding's structs: what alora_gguf/engine calls and sets")
    return asked


def move(options: argparse.Namespace, work: Path, report: Report) -> None:
    """The whole move; what it finds goes into `report` as it goes."""
    pin = fetch_upstream.read_pin(ROOT / checkout.PIN)
    report.old = checkout.version_of(pin)
    work.mkdir(parents=True, exist_ok=True)
    dest = ROOT / "build" / "upstream"
    dest.mkdir(parents=True, exist_ok=True)
    given = os.environ.get(fetch_upstream.SDIST_VARIABLE)
    with report.step("pinned") as step:
        old = fetch_upstream.make_pristine(dest, pin, Path(given) if given else None)
        step.said = f"{pin.requirement} in {old}"
    if options.tree is not None:
        report.new = str(options.tree)
        new = options.tree.resolve()
    else:
        report.new = options.version
        given_file = options.sdist and options.sdist.resolve()
        new_pin, file, new = sdist.fetch(options.version, given_file, work, report)

    try:
        moved = patches.move(old, new, work, report, options.resume)
    finally:
        compare(old, new, report)
    if options.tree is not None:
        return

    texts = checkout.new_texts(pin, new_pin, moved)
    source = checkout.copy(work, texts)
    upstream = work / "upstream"
    fetch_upstream.make_patched(upstream, new, new_pin, sorted((work / "patches").glob("*.patch")))
    patches.keep_record(new, upstream / "patched", work)
    folder = building.build(work, source, file, options.jobs, report)
    if options.tests != "none":
        building.test_native(work, folder, report)
    if options.tests == "parity":
        building.test_parity(work, folder, texts, options.jobs, report)
    if not options.write:
        report.by_hand.append("nothing was written: the same command with --write writes it")
        return
    with report.step("write") as step:
        checkout.write_all(ROOT, texts)
        report.written = sorted(texts)
        step.said = ", ".join(report.written) or "nothing differs"
    report.by_hand += [
        "`pip install -r requirements.txt`, then `make test test-clients test-backends`",
        "a line in CHANGELOG.md; native/README.md's log of moves",
    ]


# ---- the command --------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("version", nargs="?", help="the release, such as 0.3.37")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--sdist", type=Path, help="use this source distribution of it")
    source.add_argument(
        "--tree", type=Path, help="only try the patch, on this tree of llama.cpp; without VERSION"
    )
    parser.add_argument("--work", type=Path, help="work folder (default: build/upgrade/VERSION)")
    parser.add_argument("--tests", choices=("native", "parity", "none"), default="native")
    parser.add_argument(
        "--jobs",
        default="",
        help="compile so many files, and run so many tests of parity, at a time",
    )
    parser.add_argument(
        "--resume", action="store_true", help="hunks that failed were put into the tree by hand"
    )
    parser.add_argument("--write", action="store_true", help="write pin and patch if all passed")
    parser.add_argument("--json", type=Path, help="write the report for programs to this file")
    options = parser.parse_args(arguments)
    if (options.version is None) == (options.tree is None):
        parser.error("expected either a VERSION such as 0.3.37 or --tree DIR")
    if options.version is not None and not re.fullmatch(r"\d+(\.\d+)+\w*", options.version):
        parser.error(f"VERSION is {options.version!r}; expected a release such as 0.3.37")
    if options.jobs and not re.fullmatch(r"[1-9]\d*", options.jobs):
        parser.error(f"--jobs is {options.jobs!r}; expected a number from 1 on")
    if options.tree is not None and not (options.tree / "src" / "llama-graph.h").is_file():
        parser.error(f"--tree {options.tree}: has no src/llama-graph.h; expected llama.cpp's root")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        parser.error(f"--json {options.json}: its folder does not exist; make it first")
    if options.tree is not None and options.write:
        parser.error("--write needs a VERSION: a tree alone cannot be pinned")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    name = options.version or options.tree.resolve().name
    work = (options.work or ROOT / "build" / "upgrade" / name).resolve()
    report = Report()
    try:
        move(options, work, report)
    except (UpgradeError, FetchError, hunks.PatchError, OSError) as error:
        report.error = str(error)
    by_file: dict[str, list[hunks.Placed]] = {}
    for _, each in report.placed:
        by_file.setdefault(each.hunk.path, []).append(each)
    print_report(report, by_file)
    if options.json is not None:
        partial = options.json.with_name(f"{options.json.name}.partial")
        partial.write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
        partial.replace(options.json)
    if report.error:
        print(f"upgrade.py: {report.error}", file=sys.stderr)
        return 1
    done = "every hunk has a place" if options.tree else "written" if report.written else "passed"
    print(f"{report.old} -> {report.new}: {done}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("upgrade.py: interrupted; the checkout is as it was", file=sys.stderr)
        sys.exit(130)
