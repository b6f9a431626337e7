"""Keys and values of the conversations before invocations: computed once, by the base and without
gradients, and kept in a file that is mapped into memory.

What conversations begin with alike, such as a document that several questions are about, is
computed and kept once. Values are F32: rounded to F16 they move gradients of a real model by
percents, to BF16 by tens (`python -m benchmarks.train --gradients`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .attention import Prefix, PrefixLayer

Tokens = tuple[int, ...]
_Path = tuple[tuple[int, int], ...]  # of segments, each with how many of its tokens are before
_Layers = list[tuple[Tensor, Tensor]]  # keys and values of a segment, [heads, tokens, width]
_MOST: Final = 512  # tokens of a segment: scores of attention take tokens x (tokens before + these)
_AT_ONCE: Final = 512  # tokens of segments that are computed together
_APART: Final = 32  # tokens that could be computed in the time that one more call takes
_FILE: Final = "prefixes.f32"
_DONE: Final = "prefixes.done"


class Shape(NamedTuple):
    """A layer's heads of keys and values, and how wide each of their keys and values is."""

    heads: int
    keys: int
    values: int


@dataclass(frozen=True)
class _Segment:
    """Tokens that stand after a path of other segments."""

    tokens: Tokens
    path: _Path
    start: int  # its position


class Prefixes:
    """The prefixes of all examples of all tasks."""

    def __init__(
        self,
        model: Any,
        shapes: Sequence[Shape],
        prefixes: Sequence[Tokens],
        folder: Path,
        *,
        limit: int,
        identity: str = "",
        without_adapter: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """`model` computes, without the adapter that `without_adapter` switches off; `folder` gets
        a file of at most `limit` bytes, for the model that `identity` stands for. What does not fit
        is computed each time it is needed.
        """
        self.model, self.shapes, self.without_adapter = model, tuple(shapes), without_adapter
        self._segments, self._paths = _plan(prefixes)
        self.n_given = sum(map(len, prefixes))  # tokens, each prefix counted for itself
        self._values = sum(heads * (keys + values) for heads, keys, values in self.shapes)
        self._offsets = self._place(limit // (4 * self._values))
        self._rounds = self._schedule()
        self._model_identity = identity
        self._file, self._done_file = folder / _FILE, folder / _DONE
        self._kept: Any = None  # the file
        self._values_kept = torch.empty(0)  # what is in it
        self.n_done = 0

    @staticmethod
    def written(folder: Path) -> int:
        """Bytes of a file that is there."""
        file = folder / _FILE
        return file.stat().st_size if file.is_file() else 0

    @property
    def n_tokens(self) -> int:
        """To compute in all."""
        return sum(len(each.tokens) for each in self._segments)

    @property
    def n_kept(self) -> int:
        """Tokens that are kept; the others are computed each time."""
        return sum(len(self._segments[i].tokens) for i in self._offsets)

    @property
    def n_done_tokens(self) -> int:
        """Those of them that are there."""
        there = (i for which in self._rounds[: self.n_done] for i in which)
        return sum(len(self._segments[i].tokens) for i in there)

    @property
    def n_bytes(self) -> int:
        """Of the file."""
        return self.n_kept * self._values * 4

    def open(self) -> None:
        """Makes the file, or goes on with one that was made for the same prefixes."""
        if not self._offsets:
            return
        there = self._done_file.is_file()
        known = self._done_file.read_text(encoding="utf-8").split() if there else []
        same = known[:1] == [self._identity] and self._file.is_file()
        if same and self._file.stat().st_size == self.n_bytes:
            self.n_done = int(known[1])
        mode: Literal["r+", "w+"] = "r+" if self.n_done else "w+"
        self._kept = np.memmap(
            str(self._file), np.float32, mode, shape=(self.n_kept * self._values,)
        )
        self._values_kept = torch.from_numpy(np.asarray(self._kept))

    def compute(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Computes what is not there yet; may be stopped and called again."""
        done = self.n_done_tokens
        total = self.n_kept
        for number in range(self.n_done, len(self._rounds)):
            if progress is not None:
                progress(done, total)
            which = self._rounds[number]
            for i, layers in zip(which, self._computed(which), strict=True):
                self._keep(i, layers)
            done += sum(len(self._segments[i].tokens) for i in which)
            self.n_done = number + 1
            if self.n_done % 32 == 0 or self.n_done == len(self._rounds):
                self._note()
        if progress is not None and total:
            progress(total, total)

    def before(self, prefixes: Sequence[Tokens]) -> tuple[Prefix, list[int]]:
        """What comes before a batch of suffixes, and how many tokens of each prefix are in it: all
        of them.
        """
        return self._joined([self._paths[each] for each in prefixes]), list(map(len, prefixes))

    def close(self, *, remove: bool = True) -> None:
        """Lets go of the file, and removes it."""
        self._kept, self._values_kept = None, torch.empty(0)
        if remove:
            for file in (self._file, self._done_file):
                file.unlink(missing_ok=True)

    # ---- where things are -----------------------------------------------------------------------

    @property
    def _identity(self) -> str:
        told = hashlib.sha256(
            repr((self._model_identity, self.shapes, sorted(self._offsets))).encode()
        )
        for segment in self._segments:
            told.update(
                np.asarray(segment.tokens, np.int32).tobytes() + repr(segment.path).encode()
            )
        return told.hexdigest()

    def _place(self, room: int) -> dict[int, int]:
        """Where segments begin in the file, in tokens. Those that most conversations share come
        first; one without what comes before it would be of no use.
        """
        users = dict.fromkeys(range(len(self._segments)), 0)
        for path in self._paths.values():
            for i, _ in path:
                users[i] += 1
        offsets: dict[int, int] = {}
        at = 0
        order = sorted(users, key=lambda i: (-users[i], self._segments[i].start, i))
        for i in order:
            segment = self._segments[i]
            whole = all(before in offsets for before, _ in segment.path)
            if whole and at + len(segment.tokens) <= room:
                offsets[i] = at
                at += len(segment.tokens)
        return offsets

    def _schedule(self) -> list[list[int]]:
        """Segments that are computed together: after those that they need, and of about one
        length.
        """
        depth: dict[int, int] = {}
        for i, segment in enumerate(self._segments):  # those before are earlier in the list
            depth[i] = 1 + max((depth[j] for j, _ in segment.path), default=-1)
        order = sorted(
            self._offsets,
            key=lambda i: (depth[i], len(self._segments[i].tokens), self._segments[i].start, i),
        )
        rounds: list[list[int]] = []
        for i in order:
            last = rounds[-1] if rounds else []
            longest = len(self._segments[i].tokens)  # they grow
            if last and depth[last[0]] == depth[i] and (len(last) + 1) * longest <= _AT_ONCE:
                last.append(i)
            else:
                rounds.append([i])
        return rounds

    def _note(self) -> None:
        self._kept.flush()
        part = self._done_file.with_suffix(".part")
        part.write_text(f"{self._identity} {self.n_done}\n", encoding="utf-8")
        part.replace(self._done_file)

    # ---- computing ------------------------------------------------------------------------------

    def _computed(self, which: Sequence[int]) -> list[_Layers]:
        """Keys and values of segments."""
        segments = [self._segments[i] for i in which]
        before = self._joined([each.path for each in segments])
        with torch.no_grad(), self.without_adapter():
            return _read(self.model, before, [each.tokens for each in segments])

    def _joined(self, paths: Sequence[_Path]) -> Prefix:
        found: dict[int, _Layers] = {}
        for i in sorted({i for path in paths for i, _ in path}):  # those before come first
            found[i] = self._kept_of(i) if i in self._offsets else self._computed([i])[0]
        return _joined(self.shapes, found, paths, self.model.dtype)

    def _keep(self, i: int, layers: _Layers) -> None:
        for kept, new in zip(self._kept_of(i), layers, strict=True):
            for one, other in zip(kept, new, strict=True):
                one.copy_(other)

    def _kept_of(self, i: int) -> _Layers:
        """A segment's keys and values, in the file."""
        n = len(self._segments[i].tokens)
        at = self._offsets[i] * self._values
        found = []
        for heads, *widths in self.shapes:
            pair = []
            for width in widths:
                size = heads * n * width
                pair.append(self._values_kept[at : at + size].view(heads, n, width))
                at += size
            found.append((pair[0], pair[1]))
        return found


class SharedPrefixes:
    """What the conversations of a batch begin with alike, computed once, with gradients: before a
    plain LoRA, which acts on it too. What is one conversation's own is among the suffixes, unless
    the others would have to be padded for it.
    """

    def __init__(self, model: Any, shapes: Sequence[Shape]) -> None:
        self.model, self.shapes = model, tuple(shapes)

    def before(self, prefixes: Sequence[Tokens]) -> tuple[Prefix, list[int]]:
        """What comes before a batch of suffixes, and how many tokens of each prefix are in it."""
        segments, paths = _shared(prefixes)
        found: dict[int, _Layers] = {}
        for i, each in segments.items():
            before = _joined(self.shapes, found, [each.path], self.model.dtype)
            (found[i],) = _read(self.model, before, [each.tokens])
        joined = _joined(self.shapes, found, paths, self.model.dtype)
        return joined, [sum(n for _, n in path) for path in paths]

    @staticmethod
    def n_tokens(prefixes: Sequence[Tokens]) -> int:
        """How many are computed of prefixes of one batch."""
        segments, paths = _shared(prefixes)
        alone = sum(map(len, prefixes)) - sum(n for path in paths for _, n in path)
        return alone + sum(len(each.tokens) for each in segments.values())


def _shared(prefixes: Sequence[Tokens]) -> tuple[dict[int, _Segment], list[_Path]]:
    """The segments to compute before a batch, those before others first; and each prefix's: those
    that several have, and those of one that is much longer than the others.
    """
    segments, found = _plan(prefixes)
    users = Counter(i for each in prefixes for i, _ in found[each])
    own = [sum(n for i, n in found[each] if users[i] == 1) for each in prefixes]
    longest = _longest_padded(own)
    # those of several stand before those of one, as a trie's paths part and do not meet again
    paths = [
        tuple(part for part in found[each] if users[part[0]] > 1 or n > longest)
        for each, n in zip(prefixes, own, strict=True)
    ]
    needed = {i for path in paths for i, _ in path}
    return {i: each for i, each in enumerate(segments) if i in needed}, paths


def _longest_padded(own: Sequence[int]) -> int:
    """Of so many tokens in each row, how many the longest may have that the others are padded to:
    what is longer is computed before, which costs as much as some more tokens.
    """

    def cost(limit: int) -> int:
        apart = [n for n in own if n > limit]
        padded_to = max(n for n in (0, *own) if n <= limit)
        return sum(apart) + _APART * len(apart) + len(own) * padded_to

    return min({0, *own}, key=lambda limit: (cost(limit), limit))


def _read(model: Any, before: Prefix, segments: Sequence[Tokens]) -> list[_Layers]:
    """Keys and values of segments, each after its row of what is `before`."""
    ids, mask = padded(segments)
    before.go_on(model, ids, mask, keep=ids.shape[1])
    new = [layer.new for layer in before.layers if layer.new is not None]
    return [
        [(keys[row, :, : len(each)], values[row, :, : len(each)]) for keys, values in new]
        for row, each in enumerate(segments)
    ]


def _joined(
    shapes: Sequence[Shape],
    found: Mapping[int, _Layers],
    paths: Sequence[_Path],
    dtype: torch.dtype,
) -> Prefix:
    """Rows of segments, padded on the left."""
    lengths = [sum(n for _, n in path) for path in paths]
    longest = max(lengths, default=0)
    layers = []
    for number, (heads, *widths) in enumerate(shapes):
        parts = []
        for which, width in enumerate(widths):
            rows = []
            for length, path in zip(lengths, paths, strict=True):
                row = [found[i][number][which][:, :n] for i, n in path]
                row.insert(0, torch.zeros(heads, longest - length, width))
                rows.append(torch.cat(row, 1))
            parts.append(torch.stack(rows).to(dtype))
        layers.append(PrefixLayer(*parts))
    return Prefix(tuple(layers), torch.tensor(lengths))


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids [n, longest] with zeros on the right, and the mask that is 0 there."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return ids, mask


def _plan(prefixes: Sequence[Tokens]) -> tuple[list[_Segment], dict[Tokens, _Path]]:
    """Segments that prefixes are made of, and each one's path. In sorted order what two prefixes
    share is what neighbours share.
    """
    segments: list[_Segment] = []
    paths: dict[Tokens, _Path] = {(): ()}
    last: Tokens = ()
    for prefix in sorted(set(prefixes)):
        shared = n_common(last, prefix)
        path, left = [], shared
        for i, n in paths[last]:
            if left:
                path.append((i, min(n, left)))
                left -= path[-1][1]
        for start in range(shared, len(prefix), _MOST):
            tokens = prefix[start : start + _MOST]
            segments.append(_Segment(tokens, tuple(path), start))
            path.append((len(segments) - 1, len(tokens)))
        paths[prefix] = tuple(path)
        last = prefix
    return segments, paths


def n_common(one: Tokens, other: Tokens) -> int:
    """How many tokens two begin with alike."""
    n = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        n += 1
    return n
