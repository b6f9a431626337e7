"""What conversations have in common: the beginnings that several of them share, each to be read
once, and the order of work in which each is needed for as short a time as can be.

Knows only tokens.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

MIN_GAIN: Final = 16
"""Tokens: fewer are read as fast as they are shared."""

_MANY: Final = 16  # beginnings that are open at a time


@dataclass(eq=False, slots=True)
class Beginning:
    """Tokens that two or more conversations begin with.

    end      how many
    parent   a shorter one that itself is shared by more
    example  the first conversation that begins so
    """

    end: int
    parent: Beginning | None
    example: int

    @property
    def own(self) -> int:
        """Tokens beyond the parent's."""
        return self.end - (self.parent.end if self.parent is not None else 0)

    def path(self) -> list[Beginning]:
        """All that it goes on from and itself, the shortest first."""
        found, at = list[Beginning](), self
        while True:
            found.append(at)
            if at.parent is None:
                return found[::-1]
            at = at.parent


@dataclass(frozen=True, slots=True)
class Order:
    """The order to work in, as numbers of conversations, and the longest beginning that each has,
    by its number.
    """

    order: tuple[int, ...]
    beginnings: tuple[Beginning | None, ...]

    def path(self, number: int) -> list[Beginning]:
        """All beginnings of a conversation, the shortest first."""
        longest = self.beginnings[number]
        return [] if longest is None else longest.path()

    def most_open(self) -> int:
        """How many beginnings there must be at a time when conversations are worked on in order:
        each from its first conversation to the last that goes on from nothing longer.
        """
        since, until = dict[Beginning, int](), dict[Beginning, int]()
        for place, number in enumerate(self.order):
            path = self.path(number)
            new = [each for each in path if each not in since]
            for each in new:
                since[each] = place
            going_on = {each.parent for each in new} | set(path[-1:])
            until.update((each, place) for each in going_on if each is not None)
        steps = sorted([(at, 1) for at in since.values()] + [(at + 1, -1) for at in until.values()])
        most = now = 0
        for _, step in steps:
            now += step
            most = max(most, now)
        return most


def in_order(conversations: Sequence[array[int]]) -> Order:
    """What conversations, given as tokens, share; those that share most come after one another,
    else they stay in the order they have.
    """
    nodes, above = _tree(conversations)
    kept = _worth_it(nodes)
    beginnings = tuple(kept[node] for node in above)
    sizes = Counter[Beginning]()
    for number, longest in enumerate(beginnings):
        for each in longest.path() if longest is not None else ():
            sizes[each] += 1
            each.example = number if sizes[each] == 1 else each.example
    found = _sorted(beginnings, dict.fromkeys(sizes, 0))
    if found.most_open() > _MANY:  # the largest last: then they are as many as sizes can be halved
        found = _sorted(beginnings, sizes)
    return found


def apart(conversations: Sequence[array[int]]) -> Order:
    """The same as though they shared nothing."""
    n = len(conversations)
    return Order(tuple(range(n)), (None,) * n)


def _sorted(beginnings: tuple[Beginning | None, ...], ranks: Mapping[Beginning, int]) -> Order:
    """By the ranks of the beginnings that conversations share, then by what comes first."""
    paths = [
        (
            *((ranks[each], each.example) for each in (longest.path() if longest else ())),
            (0, number),
        )
        for number, longest in enumerate(beginnings)
    ]
    order = sorted(range(len(beginnings)), key=paths.__getitem__)
    return Order(tuple(order), beginnings)


def _tree(conversations: Sequence[array[int]]) -> tuple[list[Beginning], list[Beginning]]:
    """Every beginning that two conversations have in common and no longer one, the empty one first,
    and each conversation's longest.
    """
    root = Beginning(0, None, -1)
    nodes, stack = [root], [root]
    above = [root] * len(conversations)
    order = sorted(range(len(conversations)), key=lambda i: conversations[i])
    for number, common in zip(order, _common_with_next(conversations, order), strict=True):
        if common > stack[-1].end:
            stack.append(Beginning(common, stack[-1], -1))
            nodes.append(stack[-1])
            above[number] = stack[-1]
            continue
        above[number] = last = stack[-1]
        while stack[-1].end > common:
            last = stack.pop()
        if stack[-1].end < common:
            last.parent = between = Beginning(common, stack[-1], -1)
            nodes.append(between)
            stack.append(between)
    return nodes, above


def _common_with_next(conversations: Sequence[array[int]], order: Sequence[int]) -> Iterator[int]:
    for one, other in pairwise(order):
        yield common(conversations[one], conversations[other])
    if order:
        yield 0


def common(one: array[int], other: array[int]) -> int:
    """With how many tokens both begin."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _worth_it(nodes: Sequence[Beginning]) -> dict[Beginning, Beginning | None]:
    """For each beginning the longest part of it that is worth reading on its own, if any is; the
    parents of those are such ones, too.
    """
    kept = dict[Beginning, Beginning | None]()
    for node in sorted(nodes, key=lambda each: each.end):
        parent = kept[node.parent] if node.parent is not None else None
        gain = node.end - (parent.end if parent is not None else 0)
        kept[node] = node if gain >= MIN_GAIN else parent
        node.parent = parent
    return kept
