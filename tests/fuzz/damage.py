"""What goes wrong with bytes and with values of JSON."""

from __future__ import annotations

import copy
import math
import random
import struct
from typing import Any

NUMBERS = (0, 1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 10**9)
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0.5, 1e308, 1e999, -1e999, math.nan, 10**40, "", "x", "\x00"),
    *("\x1b[31m", "😊", "../../x", "y" * 5000, "{last_message}", "{x!r}", "(a+)+$", "(" * 3000),
    *([], [1], [[]], {}, [None], {"": 1}, {"a": {"b": []}}, [0] * 5000),
    *("last_message", "documents", "string", "object"),
)  # fmt: skip


def damaged(
    data: bytes, rng: random.Random, end: int | None = None, *, whole: bool = False
) -> bytes:
    """A copy with a few things wrong before `end`; of the same length if `whole`."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        end = len(out) if end is None else min(end, len(out))
        if end == 0:
            break
        place = rng.randrange(end)
        kind = rng.choice((0, 1, 2, 3, 4, 7) if whole else range(8))
        if kind < 2:
            out[place] = rng.randrange(256)
        elif kind == 2:
            out[place] ^= 1 << rng.randrange(8)
        elif kind == 3:  # a count or a length
            out[place : place + 8] = struct.pack("<Q", rng.choice(NUMBERS))[: len(out) - place]
        elif kind == 4:
            out[place : place + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)[
                : len(out) - place
            ]
        elif kind == 5:
            del out[place : place + rng.randrange(1, 40)]
        elif kind == 6:
            out[place:place] = out[rng.randrange(end) :][: rng.randrange(1, 40)]
        else:
            other = rng.randrange(end)
            piece = out[other : other + 8][: len(out) - place]
            out[place : place + len(piece)] = piece
    return bytes(out)


def changed(value: Any, rng: random.Random) -> tuple[Any, str]:
    """A copy of what JSON holds with one value changed, gone, doubled or put elsewhere."""
    made = [copy.deepcopy(value)]
    places = list(_places(made, 0, ""))
    holder, key, path = rng.choice(places)
    what = rng.randrange(6)
    old = holder[key]
    if what == 0 and holder is not made:
        del holder[key]
        return made[0], f"-{path}"
    if what == 1:
        other, at, _ = rng.choice(places)
        holder[key] = copy.deepcopy(other[at])
    elif what == 2 and isinstance(holder, dict):
        holder[rng.choice(("", "x", "name", "\x1b", "$ref", "type", "y" * 300))] = holder.pop(key)
    elif what == 3 and isinstance(old, (int, float)):
        holder[key] = rng.choice((-old, old + 1, old - 1, old * 2, *NUMBERS))
    elif what == 4 and isinstance(old, str):
        holder[key] = damaged(old.encode(), rng).decode("utf-8", "replace")
    elif what == 5 and isinstance(old, list):
        holder[key] = old * rng.choice((2, 3, 300)) if len(old) < 100 else old[::-1]
    else:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    return made[
        0
    ], f"{path}={str(holder.get(key) if isinstance(holder, dict) else holder[key])[:40]}"


def _places(holder: Any, key: Any, path: str) -> Any:
    yield holder, key, path
    value = holder[key]
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, _ in list(inner):
        yield from _places(value, name, f"{path}.{name}")
