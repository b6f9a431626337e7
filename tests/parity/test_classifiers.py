"""Classifiers' heads against transformers: the state of every family that they read, in one call
with others' logits.
"""

from __future__ import annotations

import numpy as np
import pytest

from alora_gguf.engine.llama_context import Head, Logits, Run
from tests.support import inside
from tests.support.tiny_families import HIDDEN

from .checks import TOLERANCE
from .sides import ALORA, Sides, words

pytestmark = pytest.mark.parity

TEXT = words(24)  # longer than gemma3's window of 16
LABELS = (7, 11, 2)  # tokens
_RNG = np.random.default_rng(3)
HEAD = Head(
    _RNG.normal(size=(3, HIDDEN)).astype(np.float32),
    _RNG.normal(size=3).astype(np.float32),
    LABELS,
)


def theirs(sides: Sides) -> Logits:
    """The head's scores by transformers' last hidden state."""
    import torch

    with torch.inference_mode():
        whole = sides.tiny.load().base_model(input_ids=torch.tensor([TEXT]))
    state: Logits = whole.last_hidden_state[0, -1].numpy()
    return HEAD.weight @ state + HEAD.bias


def test_scores(sides: Sides) -> None:
    engine, others = inside.engine(sides.model), [*words(5, 1), *sides.invocation(ALORA)]
    seqs = [engine.allocate() for _ in range(2)]
    try:
        with inside.runtime(sides.model).bank.using(ALORA, 1.0) as use:
            engine.activate(seqs[1], 5, use.slot, 1.0)
            rows = engine.decode([Run(seqs[0], TEXT, head=HEAD), Run(seqs[1], others, "all")])
    finally:
        for seq in seqs:
            engine.drop(seq)
    scored, beside = rows
    assert scored is not None
    assert beside is not None
    expected = theirs(sides)
    error = np.abs(scored[list(LABELS)] - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE
    assert np.delete(scored, LABELS).max() < -1e8  # nothing else is ever sampled
    # states are no longer asked for, and who shares the batch notices nothing
    np.testing.assert_array_equal(beside, sides.ours(others, ALORA))


def test_the_token_before_is_clearly_another(sides: Sides) -> None:
    engine = inside.engine(sides.model)
    seq = engine.allocate()
    try:
        (row,) = engine.decode([Run(seq, TEXT[:-1], head=HEAD)])
    finally:
        engine.drop(seq)
    assert row is not None
    expected = theirs(sides)
    error = np.abs(row[list(LABELS)] - expected).max() / np.abs(expected).max()
    assert error > 20 * TOLERANCE
