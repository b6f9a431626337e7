"""Where an aLoRA begins when its invocation occurs several times, or begins with what repeats."""

from __future__ import annotations

from pathlib import Path

import pytest

import alora_gguf as ag
from tests.support import inside
from tests.support.peft_oracle import activation_point, with_invocation

from .checks import assert_close, assert_greedy
from .sides import ALORA, EACH_ONCE, OTHER, Sides, gguf_of, open_model, read, words

pytestmark = pytest.mark.parity

N_REPLY = 8
SEED = 1  # as test_greedy.SEEDS
TAIL = words(3, 9)

# what stands in the prompt, and where in it PEFT begins
REPEATED = [
    (ALORA, [5, 5, 6, 6], 0),
    (ALORA, [5, 5, 5, 6], 1),
    (ALORA, [5, 5, 5, 5, 6, 5], 2),
    (ALORA, [5, 5, 6, 5, 5, 6], 3),
    (ALORA, [5, 5, 6, 5, 5], 0),
    (OTHER, [1, 2, 3, 3], 0),
    (OTHER, [1, 2, 1, 2, 3], 2),
    (OTHER, [1, 1, 2, 3, 1, 2], 1),
]


@pytest.mark.parametrize("last", [False, True], ids=["last of three", "last token of the prompt"])
@pytest.mark.parametrize("name", [ALORA, OTHER])
def test_last_of_several(sides: Sides, name: str, last: bool) -> None:
    invocation = sides.invocation(name)
    tokens = [*words(9), *invocation, *words(5, 1), *invocation, *words(6, 2), *invocation]
    tokens += [] if last else TAIL
    assert sides.first(tokens, name) == 26
    ours = sides.ours(tokens, name)  # finds the place itself
    assert_close(sides, ours, sides.theirs(tokens, name), f"{name}, last of several")
    assert_session(sides, tokens, name, 26)


@pytest.mark.parametrize(("name", "run", "begin"), REPEATED, ids=lambda v: str(v).replace(" ", ""))
def test_repeated_prefixes(sides: Sides, name: str, run: list[int], begin: int) -> None:
    tokens = [*words(11), *run, *TAIL]
    assert sides.first(tokens, name) == 11 + begin
    assert_close(sides, sides.ours(tokens, name), sides.theirs(tokens, name), f"{name} in {run}")
    assert_session(sides, tokens, name, 11 + begin)


def assert_session(sides: Sides, tokens: list[int], name: str, first: int) -> None:
    """A session finds the same place, computes the same, and its cells say so."""
    with sides.model.session() as session:
        session.append(tokens[:4])
        session.append(tokens[4:], adapter=name)
        assert [at for at, _ in session.provenance] == [0, first]
        assert_close(
            sides,
            inside.last_logits(session),
            sides.theirs(tokens, name)[-1],
            f"{name}, a session's",
        )
        session.append(TAIL)
        assert [at for at, _ in session.provenance] == [0]
        assert_close(
            sides,
            inside.last_logits(session),
            sides.theirs([*tokens, *TAIL])[-1],
            "the base's again",
        )


@pytest.mark.parametrize(
    ("name", "conversation", "suffix", "first"),
    [
        pytest.param(ALORA, [5, 5, 6, *words(3, 4)], [7, 5, 5, 6, 8], 18, id="a second one"),
        pytest.param(ALORA, [5, 5], [6, 6], 11, id="over the border"),
        pytest.param(ALORA, [5, 5, 5], [6], 12, id="over the border, ends with it"),
        pytest.param(OTHER, [1, 2, 1, 2], [3, 3], 13, id="over the border, repeated"),
        pytest.param(ALORA, [5, 5], [], 13, id="appended to its own beginning"),
        pytest.param(OTHER, [1, 2, 3, 9], [4], 16, id="appended, though it stood there before"),
    ],
)
def test_invocations_after_a_conversation(
    sides: Sides, name: str, conversation: list[int], suffix: list[int], first: int
) -> None:
    conversation = [*words(11, SEED), *conversation]
    prompt = [*conversation, *suffix]
    if first == len(prompt):
        prompt += sides.invocation(name)
    assert sides.first(prompt, name) == first
    with sides.model.session() as session:
        session.append(conversation)
        state = session.state()
        verdict = session.invoke(
            ag.Invocation(name, suffix, max_tokens=N_REPLY, sampling=EACH_ONCE)
        )
        if sides.rewinds or first >= len(conversation):
            assert verdict.timings.reused == min(first, len(conversation))
        assert session.state() == state
    assert_greedy(sides, prompt, name, verdict.tokens, N_REPLY, each_once=True)


INVOCATIONS = [
    ([7], [7, 7], 1),
    ([4, 4], [4, 4, 4], 1),
    ([4, 4], [4, 4, 4, 9, 4], 1),
    ([1, 2, 1], [1, 2, 1, 2, 1], 2),
    ([1, 2, 1, 2, 3], [1, 2, 1, 2, 1, 2, 3, 3], 2),
    ([5, 6, 5, 5], [5, 6, 5, 6, 5, 5, 6], 2),
    ([5, 5, 5, 6], [5, 5, 5, 5, 5, 6, 5, 5, 5], 2),
]


@pytest.mark.parametrize(("invocation", "run", "begin"), INVOCATIONS, ids=str)
def test_other_invocations(
    llama: Sides, tmp_path: Path, invocation: list[int], run: list[int], begin: int
) -> None:
    """The same weights with another invocation: PEFT's search, then its logits from there."""
    adapter = with_invocation(llama.adapters[ALORA], tmp_path / "it", invocation)
    tokens = [*words(11), *run, *TAIL]
    first = activation_point(adapter, tokens)
    assert first == 11 + begin
    files = {"it": gguf_of(adapter, tmp_path / "it.gguf")}
    with open_model(llama.tiny, files) as model:
        theirs = llama.theirs(tokens, ALORA, first=first)
        assert_close(llama, read(model, tokens, "it"), theirs, f"{invocation} in {run}")
        with model.session() as session:
            session.append(tokens, adapter="it")
            assert [at for at, _ in session.provenance] == [0, first]
            assert_close(llama, inside.last_logits(session), theirs[-1], "a session's")
