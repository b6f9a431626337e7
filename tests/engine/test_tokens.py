"""The one rule of reuse, against a record that keeps a provenance per token."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alora_gguf as ag
from alora_gguf.chat.tokenizer import Tokenizer
from alora_gguf.engine.tokens import BASE, CachedTokens, Characters, Provenance, spans_for
from alora_gguf.errors import ClosedError
from tests.support import inside, tiny_base

A, B = Provenance("a", 1.0), Provenance("b", 1.0)


def record(tokens: list[int], first: int | None, who: Provenance) -> CachedTokens:
    cached = CachedTokens()
    cached.extend(tokens, spans_for(first, who))
    return cached


def test_base_cells_serve_everyone_up_to_the_activation() -> None:
    cached = record([1, 2, 3, 4], None, BASE)
    assert cached.common_prefix([1, 2, 3, 4, 5], spans_for(None, BASE)) == 4
    assert cached.common_prefix([1, 2, 3, 4, 5], spans_for(2, A)) == 2
    assert cached.common_prefix([1, 2, 3, 4, 5], spans_for(0, A)) == 0
    assert cached.common_prefix([1, 2, 9, 4], spans_for(None, BASE)) == 2


def test_adapted_cells_serve_only_the_same_weights_at_the_same_scale() -> None:
    cached = record([1, 2, 3, 4], 2, A)
    assert cached.common_prefix([1, 2, 3, 4], spans_for(2, A)) == 4
    assert cached.common_prefix([1, 2, 3, 4], spans_for(2, B)) == 2
    assert cached.common_prefix([1, 2, 3, 4], spans_for(2, Provenance("a", 0.5))) == 2
    assert cached.common_prefix([1, 2, 3, 4], spans_for(3, A)) == 2
    assert cached.common_prefix([1, 2, 3, 4], spans_for(1, A)) == 1
    assert cached.common_prefix([1, 2, 3, 4], spans_for(None, BASE)) == 2


def test_a_scale_of_zero_is_the_base_and_scales_are_compared_as_float32() -> None:
    assert Provenance.of("a", 0.0) == BASE
    assert Provenance.of("a", -0.0) == BASE
    assert Provenance.of(None, 3.0) == BASE
    assert Provenance.of("a", 0.1) == Provenance.of("a", 0.1 + 1e-12)
    assert Provenance.of("a", 0.1) != Provenance.of("a", 0.2)


WHO = st.sampled_from([BASE, A, B, Provenance("a", 2.0)])


@settings(max_examples=300, deadline=None)
@given(st.data())
@pytest.mark.slow
def test_it_equals_a_record_per_token(data: st.DataObject) -> None:
    cached, naive = CachedTokens(), list[tuple[int, Provenance]]()
    for _ in range(data.draw(st.integers(1, 6))):
        if data.draw(st.booleans()):
            n = data.draw(st.integers(0, len(naive)))
            cached.truncate(n)
            del naive[n:]
        more = data.draw(st.lists(st.integers(0, 2), max_size=5))
        first, who = data.draw(st.none() | st.integers(0, 10)), data.draw(WHO)
        spans = spans_for(first, who)
        start = len(naive)
        cached.extend(more, spans)
        naive += [
            (t, who if first is not None and start + i >= first else BASE)
            for i, t in enumerate(more)
        ]
        assert [(t, cached.at(i)) for i, t in enumerate(cached.tokens)] == naive
        assert all(a[1] != b[1] for a, b in pairwise(cached.spans))
        copy = cached.copy(len(naive) // 2)
        assert [(t, copy.at(i)) for i, t in enumerate(copy.tokens)] == naive[: len(naive) // 2]
    want = data.draw(st.lists(st.integers(0, 2), max_size=12))
    first, who = data.draw(st.none() | st.integers(0, 10)), data.draw(WHO)
    target = [(t, who if first is not None and i >= first else BASE) for i, t in enumerate(want)]
    same = 0
    while same < min(len(naive), len(target)) and naive[same] == target[same]:
        same += 1
    assert cached.common_prefix(want, spans_for(first, who)) == same


def test_a_long_text_stops_no_other_thread(tmp_path: Path) -> None:
    with Tokenizer(tiny_base.write_base(tmp_path / "base.gguf"), template="{{ 'x' }}") as opened:
        vocab = opened._bare.vocab
        with vocab.opened():  # as one that is in C for long
            done = threading.Thread(target=vocab.encode, args=("the", "x"), kwargs={"begins": True})
            done.start()
            done.join(20)
            assert not done.is_alive()
            closing = threading.Thread(target=vocab.close)
            closing.start()
            closing.join(0.05)
            assert closing.is_alive()  # the model is not freed meanwhile
        closing.join(20)
        with pytest.raises(ClosedError):
            vocab.bos_to_add()


def test_who_asks_for_characters_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is not freed while llama.cpp is asked which characters have tokens."""
    readers = []

    class Watched(Characters):
        def __init__(self, *given: Any) -> None:
            readers.append(vocab._readers)
            super().__init__(*given)

    monkeypatch.setattr("alora_gguf.engine.tokens.Characters", Watched)
    with Tokenizer(tiny_base.write_base(tmp_path / "base.gguf"), template="{{ 'x' }}") as opened:
        vocab = opened._bare.vocab
        vocab.tokenize("the", add_special=False, parse_special=False)
    assert readers == [1]
    vocab._characters = None
    with pytest.raises(ClosedError):
        vocab.tokenize("the", add_special=False, parse_special=False)
    assert readers == [1]


@pytest.mark.parametrize("kind", ["Tokenizer", "Model"])
def test_a_vocabulary_that_outlives_its_model_is_closed(tmp_path: Path, kind: str) -> None:
    base = tiny_base.write_base(tmp_path / "base.gguf")
    if kind == "Tokenizer":
        vocab = Tokenizer(base, template="{{ 'x' }}")._bare.vocab
    else:
        vocab = inside.vocab(ag.Model(base, n_ctx=64, n_threads=1))
    gc.collect()
    with pytest.raises(ClosedError):
        vocab.tokenize("the", add_special=False, parse_special=False)
    with pytest.raises(ClosedError):
        vocab.bos_to_add()


OUT_OF_MEMORY = """
import resource, sys
from alora_gguf import InputError, Tokenizer
vocab = Tokenizer(sys.argv[1], template="{{ 'x' }}")._bare.vocab
text = "the cat sat on it " * 500_000  # 9 MB
vocab.tokenize("the", add_special=False, parse_special=True)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
for spare in range(20, 200, 6):  # where Python's own buffer has room, llama.cpp's have none
    resource.setrlimit(resource.RLIMIT_AS, (used + spare * 1_000_000, resource.RLIM_INFINITY))
    try:
        vocab.tokenize(text, add_special=False, parse_special=True)
    except InputError as error:
        assert "not enough memory to split a text of 9000000 bytes" in str(error), error
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert vocab.tokenize("the", add_special=False, parse_special=True)
print("survived")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of memory that is kept")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="sanitizers need address space")
def test_where_memory_ends_text_is_refused(tmp_path: Path) -> None:
    """llama_tokenize() throws through C, which ends the process."""
    base = tiny_base.write_base(tmp_path / "base.gguf")
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(base)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout == "survived\n", run.stderr[-2000:]
