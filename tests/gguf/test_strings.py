"""Passing strings by stretches ends where passing them one by one does."""

from __future__ import annotations

import random
import struct
import sys

import numpy as np
import pytest

from alora_gguf.gguf import parser as gguf_strings
from alora_gguf.gguf.parser import skip_strings

FILLER = b"\x05\0\0\0\0\0\0\0after"


def stored(strings: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(s)) + s for s in strings)


def some_strings(seed: int, n: int = 20_000) -> list[bytes]:
    """Mostly short ones, as in a vocabulary; some are long, or empty, or look like lengths."""
    rng = random.Random(seed)
    odd = [b"", b"\0", b"\0" * 9, b"\3\0\0\0\0\0\0\0abc", b"x" * 255, b"y" * 256, b"z" * 70_000]
    often = seed % 3 * 0.0005
    return [
        rng.choice(odd) if rng.random() < often else rng.randbytes(rng.randrange(1, 12))
        for _ in range(n)
    ]


@pytest.mark.parametrize("seed", range(9))
def test_ends_where_the_last_string_ends(seed: int) -> None:
    strings = some_strings(seed)
    data = b"head" + stored(strings) + FILLER
    assert "numpy" in sys.modules
    assert skip_strings(memoryview(data), 4, len(strings)) == len(data) - len(FILLER)


def test_stretches_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    strings = some_strings(0)
    walked = []
    walk = gguf_strings._walk

    def watched(data: memoryview, pos: int, count: int) -> int:
        walked.append(count)
        return walk(data, pos, count)

    monkeypatch.setattr(gguf_strings, "_walk", watched)
    data = memoryview(stored(strings) + FILLER)
    assert skip_strings(data, 0, len(strings)) == len(data) - len(FILLER)
    assert sum(walked) < len(strings) / 2


def test_without_numpy_it_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    strings = some_strings(1)
    data = memoryview(stored(strings))
    monkeypatch.delitem(sys.modules, "numpy")
    assert skip_strings(data, 0, len(strings)) == len(data)


@pytest.mark.parametrize("seed", range(3))
def test_strings_that_go_on_past_the_end(seed: int) -> None:
    strings = some_strings(seed)
    data = stored(strings)
    for cut in np.random.default_rng(seed).integers(0, len(data), 20):
        assert skip_strings(memoryview(data[:cut]), 0, len(strings)) > cut


def test_a_length_beyond_all_bounds() -> None:
    data = memoryview(stored(some_strings(0, 5000)) + b"\xff" * 8 + b"rest")
    assert skip_strings(data, 0, 5001) > len(data)
    assert skip_strings(data, 0, 5002) > len(data)
