"""A patch's hunks: reads them, finds their places in another version of the files, writes them.

A place is found through the differences between the two versions, line by line, and not by looking
for the text alone: with one line of context, `return cur;` is the end of many a function.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

CONTEXT = 1  # lines around a change, as `git diff -U1` has them
ANCHOR = 5  # lines on one side of a change that say where it belongs, when the other side is gone

Lines = list[str]  # without their newlines
Tree = dict[str, Lines]  # the files that hunks change, by their path


class PatchError(Exception):
    """A patch is not one of ours, or not of the version it is said to be for."""


@dataclass(frozen=True)
class Hunk:
    """Some lines of one file that become others."""

    path: str
    number: int  # within the file, from 1
    start: int  # of the old lines, from 0
    lines: tuple[str, ...]  # each with its ' ', '-' or '+'
    heading: str  # what git says behind @@: the function, as a rule

    @property
    def before(self) -> int:
        """How many lines of context come first."""
        return next(n for n, line in enumerate(self.lines) if line[0] != " ")

    @property
    def after(self) -> int:
        return next(n for n, line in enumerate(reversed(self.lines)) if line[0] != " ")

    @property
    def core(self) -> tuple[str, ...]:
        """The lines between the context before and behind."""
        return self.lines[self.before : len(self.lines) - self.after]

    @property
    def old(self) -> Lines:
        return [line[1:] for line in self.lines if line[0] != "+"]

    @property
    def old_core(self) -> Lines:
        return [line[1:] for line in self.core if line[0] != "+"]

    @property
    def new_core(self) -> Lines:
        return [line[1:] for line in self.core if line[0] != "-"]

    @property
    def core_start(self) -> int:
        return self.start + self.before


@dataclass(frozen=True)
class Patch:
    """One file of native/patches."""

    name: str
    preamble: str  # what stands before the first file
    hunks: tuple[Hunk, ...]


@dataclass(frozen=True)
class Placed:
    """What became of a hunk in another version."""

    hunk: Hunk
    start: int | None  # of its core, from 0; None: it failed
    moved: int = 0
    fuzz: int = 0  # lines of context that are not what they were, or another function's
    note: str = ""
    resumed: str = ""  # it failed, and then was put into the tree "by hand" or "left out"

    @property
    def outcome(self) -> str:
        if self.resumed:
            return self.resumed
        if self.start is None:
            return "failed"
        if self.fuzz:
            return "fuzz"
        return "moved" if self.moved else "exact"

    def __str__(self) -> str:
        way = f"{self.moved:+d}" if self.moved else "same line"
        return {
            "failed": "FAILED",
            self.resumed: self.resumed,
            "exact": "exact",
            "moved": way,
            "fuzz": f"fuzz {self.fuzz} ({way})",
        }[self.outcome]


# ---- reading and writing -------------------------------------------------------------------------

FILE = re.compile(r"diff --git a/(\S+) b/(\S+)")
HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@ ?(.*)")


def read_patch(file: Path) -> Patch:
    """A patch as `git diff -U1` writes it; see patches/ for its exact form."""
    preamble, hunks = "", []
    path = None
    lines = file.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if match := FILE.fullmatch(line):
            if match[1] != match[2]:
                raise PatchError(f"{file}:{at + 1}: {match[1]} may not become {match[2]}")
            path, number = match[1], 0
        elif match := HUNK.fullmatch(line):
            if path is None:
                raise PatchError(f"{file}:{at + 1}: a hunk before any 'diff --git a/… b/…' line")
            number += 1
            body = _hunk_lines(lines, at + 1, int(match[2] or 1), int(match[3] or 1))
            if not any(each[0] in "+-" for each in body):
                raise PatchError(f"{file}:{at + 1}: the hunk's lines are not as many as it says")
            start = int(match[1]) - (1 if match[2] != "0" else 0)
            hunks.append(Hunk(path, number, start, tuple(body), match[4]))
            at += len(body)
        elif path is None:
            preamble += line + "\n"
        elif not line.startswith(("--- a/", "+++ b/", "index ")):
            raise PatchError(f"{file}:{at + 1}: neither a hunk nor the beginning of a file: {line}")
        at += 1
    if not hunks:
        raise PatchError(f"{file}: holds no hunk of the form that `git diff -U1` writes")
    return Patch(file.name, preamble, tuple(hunks))


def _hunk_lines(lines: Lines, at: int, old: int, new: int) -> Lines:
    """The lines of a hunk that says how many it has; none if it has others."""
    body: Lines = []
    while (old > 0 or new > 0) and at < len(lines) and lines[at][:1] in ("", " ", "+", "-"):
        line = lines[at] or " "  # some editors take an empty line's space away
        old, new = old - (line[0] != "+"), new - (line[0] != "-")
        body.append(line)
        at += 1
    return body if old == new == 0 else []


def heading(lines: Lines, start: int) -> int | None:
    """The line that git names behind @@ for a hunk that begins at `start`, as git finds it."""
    for at in range(min(start, len(lines)) - 1, -1, -1):
        if re.match(r"[A-Za-z_$]", lines[at]):
            return at
    return None


def write_patch(patch: Patch, tree: Tree, placed: list[Placed]) -> str:
    """The text of `patch` for `tree`, which has none of its changes yet."""
    text = patch.preamble
    path, shift = None, 0
    order = {each.hunk.path: n for n, each in enumerate(placed)}
    found = [each for each in placed if each.start is not None]
    # functions may have changed places
    for group in _groups(sorted(found, key=lambda p: (order[p.hunk.path], _start(p)))):
        first, last = group[0], group[-1]
        if first.hunk.path != path:
            path, shift = first.hunk.path, 0
            text += f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n"
        lines = tree[path]
        start = max(_start(first) - CONTEXT, 0)
        end = min(_end(last) + CONTEXT, len(lines))
        body, at = [], start
        for each in group:
            body += [f" {line}" for line in lines[at : _start(each)]] + list(each.hunk.core)
            at = _end(each)
        body += [f" {line}" for line in lines[at:end]]
        n_new = sum(line[0] != "-" for line in body)
        n_old = end - start
        function = heading(lines, start)
        title = first.hunk.heading
        if function is None or first.fuzz or not lines[function].startswith(title):
            title = (
                "" if function is None else lines[function].encode()[:80].decode("utf-8", "ignore")
            )
        text += (
            f"@@ -{_span(start, n_old)} +{_span(start + shift, n_new)} @@ {title}".rstrip() + "\n"
        )
        text += "".join(f"{line}\n" for line in body)
        shift += n_new - n_old
    return text


def _start(placed: Placed) -> int:
    assert placed.start is not None  # noqa: S101 - those that failed were left out
    return placed.start


def _end(placed: Placed) -> int:
    return _start(placed) + len(placed.hunk.old_core)


def _groups(placed: list[Placed]) -> Iterator[list[Placed]]:
    """Changes whose context would touch are one hunk, as git has it."""
    group: list[Placed] = []
    for each in placed:
        if group and (
            each.hunk.path != group[-1].hunk.path or _start(each) - _end(group[-1]) > 2 * CONTEXT
        ):
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def _span(start: int, count: int) -> str:
    line = start + (1 if count else 0)
    return str(line) if count == 1 else f"{line},{count}"


# ---- applying ------------------------------------------------------------------------------------


def apply(tree: Tree, placed: list[Placed]) -> Tree:
    """The tree with what could be placed."""
    result = {path: list(lines) for path, lines in tree.items()}
    for each in sorted(placed, key=lambda p: p.start if p.start is not None else -1, reverse=True):
        if each.start is not None:
            result[each.hunk.path][each.start : _end(each)] = each.hunk.new_core
    return result


def at_own_lines(patch: Patch, tree: Tree) -> list[Placed]:
    """Every hunk where the patch says, in the version it was written for."""
    for hunk in patch.hunks:
        lines = tree.get(hunk.path, [])
        if lines[hunk.start : hunk.start + len(hunk.old)] != hunk.old:
            raise PatchError(
                f"{patch.name}: hunk {hunk.number} of {hunk.path} does not match line "
                f"{hunk.start + 1} of the pinned version, so there is nothing to start from; "
                "make `python native/fetch_upstream.py --dest build/upstream` pass first"
            )
    return [Placed(hunk, hunk.core_start) for hunk in patch.hunks]


def changes(path: str, old: Lines, new: Lines) -> list[Placed]:
    """What makes `new` of `old`, as hunks in their places."""
    found: list[Placed] = []
    for _, i, i_end, j, j_end in _matcher(old, new).get_opcodes():
        if old[i:i_end] == new[j:j_end]:
            continue
        lines = [f"-{line}" for line in old[i:i_end]] + [f"+{line}" for line in new[j:j_end]]
        function = heading(old, max(i - CONTEXT, 0))
        title = "" if function is None else old[function].encode()[:80].decode("utf-8", "ignore")
        found.append(Placed(Hunk(path, len(found) + 1, i, tuple(lines), title.rstrip()), i))
    return found


def ours(hunks: Iterable[Hunk]) -> Counter[str]:
    """The names that hunks bring into the files, and how many hunks bring each."""
    names: Counter[str] = Counter()
    for hunk in hunks:
        gone, come = (
            set(re.findall(r"\w{3,}", " ".join(line for line in hunk.lines if line[0] == sign)))
            for sign in "-+"
        )
        names.update(come - gone)
    return names


# ---- placing -------------------------------------------------------------------------------------


def _matcher(old: Lines, new: Lines) -> difflib.SequenceMatcher[str]:
    # autojunk keeps lines such as `}` and empty ones from being anchors, and is fast
    return difflib.SequenceMatcher(None, old, new)


@dataclass
class Versions:
    """One file in two versions, and which lines of one are which of the other."""

    old: Lines
    new: Lines
    line: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i, j, size in _matcher(self.old, self.new).get_matching_blocks():
            self.line.update(zip(range(i, i + size), range(j, j + size), strict=True))

    def together(self, start: int, count: int) -> int | None:
        """Where `count` lines from `start` are now, if they still follow each other."""
        first = self.line.get(start)
        if count == 0 or first is None:
            return None
        kept = all(self.line.get(start + n) == first + n for n in range(count))
        return first if kept else None

    def is_anchor(self, lines: range) -> bool:
        """Whether the first of `lines` is there, with what follows it up to a line of code."""
        kept = []
        for at in lines:
            if self.line.get(at) != self.line.get(lines[0], at) + at - lines[0]:
                break
            kept.append(self.old[at])
        return any(map(_says_something, kept))

    def replaced_by(self, start: int, count: int) -> tuple[range, range]:
        """The old lines around `start` that are gone, and those that are there instead."""
        for tag, i, i_end, j, j_end in _matcher(self.old, self.new).get_opcodes():
            if tag != "equal" and i <= start + count and start - 1 <= i_end:
                return range(i, i_end), range(j, j_end)
        return range(start, start), range(start, start)


def place(patch: Patch, old: Tree, new: Tree) -> list[Placed]:
    """Where each hunk, which is at its own line in `old`, belongs in `new`."""
    versions = {hunk.path: Versions(old[hunk.path], new[hunk.path]) for hunk in patch.hunks}
    return [_place(hunk, versions[hunk.path]) for hunk in patch.hunks]


def _place(hunk: Hunk, versions: Versions) -> Placed:
    found = _by_lines(hunk, versions) or _by_text(hunk, versions)
    if found is None:
        return Placed(hunk, None, note=_why(hunk, versions))
    if not found.fuzz and not _same_function(hunk, versions, _start(found)):
        title = heading(versions.new, _start(found) - hunk.before)
        where = versions.new[title].strip() if title is not None else "no function"
        return replace(found, fuzz=1, note=f"now in: {where}")
    return found


def _same_function(hunk: Hunk, versions: Versions, start: int) -> bool:
    before = heading(versions.old, hunk.start)
    after = heading(versions.new, start - hunk.before)
    if before is None or after is None:
        return before == after
    return versions.line.get(before) == after


def _by_lines(hunk: Hunk, versions: Versions) -> Placed | None:
    """By which lines of the new version are those of the hunk."""
    start = hunk.core_start
    at = versions.together(hunk.start, len(hunk.old))
    if at is not None:
        return Placed(hunk, at + hunk.before, at - hunk.start)
    count = len(hunk.old_core)
    if count:
        at = versions.together(start, count)
        return Placed(hunk, at, at - start, 1, "its context changed") if at is not None else None

    # Nothing is taken away: what is above or below says where, if it says anything.
    if hunk.before and versions.is_anchor(range(start - 1, start - 1 - ANCHOR, -1)):
        at = versions.line[start - 1] + 1
        return Placed(hunk, at, at - start, 1, "the line below it changed")
    if hunk.after and versions.is_anchor(range(start, start + ANCHOR)):
        at = versions.line[start]
        return Placed(hunk, at, at - start, 1, "the line above it changed")
    return None


def _by_text(hunk: Hunk, versions: Versions) -> Placed | None:
    """By its text, where both versions have it once: a function that went elsewhere in its file."""
    for lines, skipped in ((hunk.old, hunk.before), (hunk.old_core, 0)):
        if not any(map(_says_something, lines)):
            continue
        if len(find(versions.old, lines)) == 1 and len(places := find(versions.new, lines)) == 1:
            at = places[0] + skipped
            fuzz = int(lines is not hunk.old)
            return Placed(hunk, at, at - hunk.core_start, fuzz, "found by its text")
    return None


def find(lines: Lines, wanted: Lines) -> list[int]:
    """Every place in `lines` that has the lines `wanted`."""
    size = len(wanted)
    return [
        at for at, line in enumerate(lines) if line == wanted[0] and lines[at : at + size] == wanted
    ]


def _says_something(line: str) -> bool:
    return re.search(r"\w{3}", line) is not None


def _why(hunk: Hunk, versions: Versions) -> str:
    gone, there = versions.replaced_by(hunk.core_start, len(hunk.old_core))
    if not gone and not there:
        return "its lines are there, but no longer beside each other"
    said = f"{_lines(gone)} of the old file"
    return f"{said} became {_lines(there)}" if there else f"{said} were taken away"


def _lines(span: range) -> str:
    if not span:
        return f"nothing (before line {span.start + 1})"
    return f"line {span.start + 1}" if len(span) == 1 else f"lines {span.start + 1} to {span.stop}"
