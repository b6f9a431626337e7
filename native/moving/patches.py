"""Our patches for another version, and the tree for what has no place there and is put by hand."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fetch_upstream

from . import changes, hunks
from .report import NATIVE, Report, UpgradeError, purpose

SHOWN = 8  # lines of upstream's in a message
SHORT = 12  # characters of a line


def read_tree(folder: Path, paths: set[str]) -> hunks.Tree:
    """The files `paths` of a tree as lines; those it does not have are empty."""
    return {path: changes.text(folder / path).split("\n") for path in paths}


def write_lines(file: Path, lines: hunks.Lines) -> None:
    file.write_bytes("\n".join(lines).encode())


def move(old: Path, new: Path, work: Path, report: Report, resume: bool) -> dict[str, str]:
    """Our patches for the tree `new`, by their names, also in WORK/patches.

    If some have no place, WORK/upstream/patched has the others, to be worked on.
    """
    with report.step("patch") as step:
        files = sorted((NATIVE / "patches").glob("*.patch"))
        patches = [hunks.read_patch(file) for file in files]
        paths = {hunk.path for patch in patches for hunk in patch.hunks}
        before, after = read_tree(old, paths), read_tree(new, paths)
        texts = {}
        for patch in patches:
            here = hunks.at_own_lines(patch, before)
            placed = hunks.place(patch, before, after)
            report.placed += [(patch.name, each) for each in placed]
            texts[patch.name] = hunks.write_patch(patch, after, placed)
            before, after = hunks.apply(before, here), hunks.apply(after, placed)
        patched = work / "upstream" / "patched"
        if resume:
            texts = _resumed(patches, new, patched, work, report)
        elif edited := hand_work(new, patched, work):
            raise UpgradeError(
                f"{patched / edited[0]}: was changed by hand after the last try. Go on from there "
                f"with --resume, or delete {patched} to start again."
            )
        shutil.rmtree(work / "patches", ignore_errors=True)
        (work / "patches").mkdir(parents=True)
        for name, text in texts.items():
            (work / "patches" / name).write_text(text, encoding="utf-8")
        outcomes = report.outcomes()
        counts = [f"{n} {name}" for name, n in outcomes.items() if n]
        step.said = f"{len(report.placed)} hunks: {', '.join(counts)}"
        if outcomes["failed"]:
            _write_patched(new, patched, after)
            keep_record(new, patched, work)
            raise UpgradeError(_missing(report, old, new, patched))
    return texts


def _write_patched(new: Path, patched: Path, tree: hunks.Tree) -> None:
    """The tree `new` with what could be placed; without a stamp, as it is not fetch_upstream's."""
    shutil.rmtree(patched, ignore_errors=True)
    shutil.copytree(new, patched, ignore=shutil.ignore_patterns(fetch_upstream.STAMP, ".git"))
    for path, lines in tree.items():
        if (new / path).is_file():
            write_lines(patched / path, lines)


def differing(one: Path, other: Path) -> list[str]:
    """The files of `one` that differ in `other`."""
    files = [path.relative_to(one) for path in one.rglob("*") if path.is_file()]
    return sorted(
        path.as_posix()
        for path in files
        if path.name != fetch_upstream.STAMP
        and ".git" not in path.parts
        and not ((other / path).is_file() and filecmp.cmp(one / path, other / path, shallow=False))
    )


def _patched_files(new: Path, patched: Path) -> dict[str, str]:
    """The files that differ from upstream's, with their hashes."""
    if not patched.is_dir():
        return {}
    files = {path: patched / path for path in differing(new, patched)}
    return {
        path: fetch_upstream.sha256_of(file) if file.is_file() else ""
        for path, file in files.items()
    }


def keep_record(new: Path, patched: Path, work: Path) -> None:
    """Notes how we left the patched tree, so that what is done to it by hand can be told."""
    record = json.dumps(_patched_files(new, patched), indent=1)
    (work / "patched.json").write_text(record + "\n", encoding="utf-8")


def hand_work(new: Path, patched: Path, work: Path) -> list[str]:
    """The files of the patched tree that are not as we left them."""
    try:
        record = json.loads((work / "patched.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    now = _patched_files(new, patched)
    return [path for path, sha256 in now.items() if record.get(path) != sha256]


def _resumed(
    patches: list[hunks.Patch], new: Path, patched: Path, work: Path, report: Report
) -> dict[str, str]:
    """The patches that make the tree worked on by hand of the tree `new`."""
    if not hand_work(new, patched, work):
        raise UpgradeError(
            f"--resume: {patched} is as the last try left it. Put the hunks that failed into its "
            "files first, or leave out --resume."
        )
    changed = differing(new, patched)
    owners = _owners(patches, changed)
    before, after = read_tree(new, set(changed)), read_tree(patched, set(changed))
    made = {path: hunks.changes(path, before[path], after[path]) for path in changed}
    missing = hunks.ours(hunk for patch in patches for hunk in patch.hunks)
    missing -= hunks.ours(each.hunk for placed in made.values() for each in placed)
    report.placed = [(name, _judged(each, missing)) for name, each in report.placed]
    report.by_hand += [
        f"{each.hunk.path}: hunk {each.hunk.number} was left out; it was for: "
        + purpose(name, each.hunk)
        for name, each in report.placed
        if each.outcome == "left out"
    ]
    texts = {}
    for patch in patches:
        placed = [each for path in changed if owners[path] is patch for each in made[path]]
        texts[patch.name] = hunks.write_patch(patch, before, placed)
    return texts


def _judged(placed: hunks.Placed, missing: Counter[str]) -> hunks.Placed:
    """Whether a hunk that failed is in the tree now, by the names that it brings."""
    if placed.start is not None:
        return placed
    names = hunks.ours([placed.hunk])  # some of which upstream may have brought to that line itself
    left_out = bool(names) and all(missing[name] > 0 for name in names)
    return replace(placed, resumed="left out" if left_out else "by hand")


def _owners(patches: list[hunks.Patch], changed: list[str]) -> dict[str, hunks.Patch]:
    """Whose a changed file is: that of a file new to all of them goes to the largest patch."""
    owners = {}
    for path in changed:
        found = [patch for patch in patches if any(hunk.path == path for hunk in patch.hunks)]
        if len(found) > 1:
            raise UpgradeError(
                f"--resume: {path} is changed by {' and '.join(p.name for p in found)}, so whose "
                "a change by hand is cannot be told: write these patches anew with git diff"
            )
        owners[path] = found[0] if found else max(patches, key=lambda patch: len(patch.hunks))
    return owners


def _missing(report: Report, old: Path, new: Path, patched: Path) -> str:
    """What is known of each hunk that has no place."""
    told = []
    for name, each in report.placed:
        if each.start is not None:
            continue
        hunk = each.hunk
        where = f"line {hunk.core_start + 1}" + (f", {hunk.heading}" if hunk.heading else "")
        told.append(f"native/patches/{name}: hunk {hunk.number} of {hunk.path} ({where}) FAILED")
        told.append(f"  for: {purpose(name, hunk)}")
        wanted = max(hunk.old_core or hunk.old, key=lambda line: len(line.strip()))
        told.append(f"  looked for: {wanted.strip()}")
        before, after = (read_tree(tree, {hunk.path})[hunk.path] for tree in (old, new))
        versions = hunks.Versions(before, after)
        if (new / hunk.path).is_file():
            told.append(f"  upstream: {each.note}")
            there = versions.replaced_by(hunk.core_start, len(hunk.old_core))[1]
            told += [f"    {n + 1}: {versions.new[n]}" for n in there[:SHOWN]]
            told.append(f"  look at: {patched / hunk.path}:{there.start + 1}")
        else:
            told.append("  upstream: the file is gone")
        if found := _elsewhere(new, wanted):
            told.append(f"  the same line is at: {', '.join(found[:3])}")
    told.append(
        f"{patched} has all other hunks. Put these into its files, or change native/src so that it "
        "needs them no more, and go on with the same command and --resume."
    )
    return "\n".join(told)


def _elsewhere(tree: Path, wanted: str) -> list[str]:
    """Where the sources have a line; short ones are in too many places to say anything."""
    return [
        f"{file.relative_to(tree).as_posix()}:{number}"
        for file in sorted((tree / "src").rglob("*.[ch]*"))
        for number, line in enumerate(changes.text(file).splitlines(), 1)
        if line.strip() == wanted.strip() and len(line.strip()) > SHORT
    ]
