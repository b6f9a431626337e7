"""Logits at every position: one adapter, cut batches, forks; and that the tolerance can fail."""

from __future__ import annotations

import numpy as np
import pytest

import alora_gguf as ag

from .checks import TOLERANCE, assert_close, error
from .sides import ALORA, LORA, OTHER, Asked, Sides, open_model, read, read_forks, words

pytestmark = pytest.mark.parity

CONVERSATION = words(20)  # longer than gemma3's window of 16


def prompt(sides: Sides, name: str) -> list[int]:
    """A prompt that an aLoRA is on in from position 20 of 32 on."""
    return [*CONVERSATION, *sides.invocation(name), *words(12 - len(sides.invocation(name)), 1)]


@pytest.mark.parametrize("name", [ALORA, OTHER, LORA])
def test_one_adapter(sides: Sides, name: str) -> None:
    tokens = prompt(sides, name)
    ours = sides.ours(tokens, name)
    assert_close(sides, ours, sides.theirs(tokens, name), f"{name}, one batch")
    if name == LORA:
        return
    assert sides.first(tokens, name) == 20
    assert_close(sides, ours[:20], sides.theirs(tokens)[:20], f"{name}, before its activation")
    # slot 0 adds exact zeros: before the activation nothing differs, whatever shares the batch
    np.testing.assert_array_equal(ours[:20], sides.ours(tokens)[:20])


def test_the_base(sides: Sides) -> None:
    tokens = prompt(sides, ALORA)
    assert_close(sides, sides.ours(tokens), sides.theirs(tokens), "base")


@pytest.mark.parametrize(
    "cuts",
    [
        pytest.param((12,), id="activation inside the second batch"),
        pytest.param((20,), id="activation begins a batch"),
        pytest.param((8, 22, 27), id="a cut inside the invocation"),
        pytest.param(tuple(range(18, 26)), id="token by token over it"),
    ],
)
def test_several_batches(sides: Sides, cuts: tuple[int, ...]) -> None:
    tokens = prompt(sides, ALORA)
    ours = sides.ours(tokens, ALORA, cuts=cuts)
    assert_close(sides, ours, sides.theirs(tokens, ALORA), f"batches cut at {cuts}")


def test_a_lora_over_several_batches(sides: Sides) -> None:
    tokens = prompt(sides, LORA)
    ours = sides.ours(tokens, LORA, cuts=(1, 13))
    assert_close(sides, ours, sides.theirs(tokens, LORA), "lora, three batches")


ASKED = [
    Asked([*words(4, 2), 5, 5, 6, *words(3, 3)], ALORA),
    Asked([1, 2, 3, *words(6, 4)], OTHER),
    Asked(words(7, 5), LORA),
    Asked([*words(3, 6), 5, 5, 6, *words(2, 7)], None),
]


def assert_forks(sides: Sides, model: ag.Model) -> None:
    rows = read_forks(model, CONVERSATION, ASKED)
    for ours, ask in zip(rows, ASKED, strict=True):
        theirs = sides.theirs([*CONVERSATION, *ask.suffix], ask.name)[len(CONVERSATION) :]
        assert_close(sides, ours, theirs, f"fork of {ask.name or 'base'}")


def test_forks_of_one_conversation(sides: Sides) -> None:
    assert_forks(sides, sides.model)


def test_graphs_smaller_than_the_batch(sides: Sides) -> None:
    tokens = prompt(sides, ALORA)
    with open_model(sides.tiny, sides.files, n_ubatch=5) as model:
        assert_close(
            sides, read(model, tokens, ALORA), sides.theirs(tokens, ALORA), "graphs of 5 tokens"
        )
        assert_forks(sides, model)


@pytest.mark.parametrize("off", [-1, 1])
def test_one_token_off_is_clearly_wrong(sides: Sides, off: int) -> None:
    tokens = prompt(sides, ALORA)
    ours = sides.ours(tokens, ALORA, first=20 + off)
    assert error(ours, sides.theirs(tokens, ALORA)) > 20 * TOLERANCE


def test_adapters_differ(sides: Sides) -> None:
    """No test here could pass with another adapter, or none, in the place of the right one."""
    tokens = [*CONVERSATION, 5, 5, 6, *words(3, 8), 1, 2, 3]
    first = 20
    rows = [sides.theirs(tokens), sides.theirs(tokens, LORA)]
    rows += [sides.theirs(tokens, name, first=first) for name in (ALORA, OTHER)]
    for i, one in enumerate(rows):
        for another in rows[:i]:
            assert error(one[first:], another[first:]) > 20 * TOLERANCE
