"""Eight adapters asked about a conversation leave its cells, and what comes next, as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import alora_gguf as ag
from tests.support import inside
from tests.support.peft_oracle import make_adapter
from tests.support.tiny_models import TinyModel, tiny_model

from .sides import GREEDY, gguf_of, open_model, words

pytestmark = pytest.mark.parity

INVOCATION = [5, 5, 6]
CONVERSATION = words(36, 40)
NEXT = words(5, 41)


@pytest.fixture(scope="module", params=["llama", "gemma3", "granitemoehybrid"])
def eight(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TinyModel, dict[str, Path]]:
    pytest.importorskip("peft")
    tiny, folder = tiny_model(request.param), tmp_path_factory.mktemp("eight")
    files = {}
    for i in range(8):
        # six aLoRAs and two LoRAs, of several ranks, on two sets of targets
        adapter = make_adapter(
            tiny,
            folder / str(i),
            targets=("attention", "all-linear")[i % 2],
            invocation=None if i in (3, 6) else INVOCATION,
            rank=(4, 8, 16)[i % 3],
            seed=100 + i,
        )
        files[str(i)] = gguf_of(adapter, folder / f"{i}.gguf")
    return tiny, files


@pytest.fixture
def pair(eight: tuple[TinyModel, dict[str, Path]]) -> Iterator[tuple[ag.Model, ag.Model]]:
    """Two models with the same adapters; the second never activates any."""
    tiny, files = eight
    with open_model(tiny, files) as asked, open_model(tiny, files) as quiet:
        yield asked, quiet


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one after another"])
def test_nothing_moved(pair: tuple[ag.Model, ag.Model], at_once: bool) -> None:
    asked, quiet = pair
    session, control = asked.session(), quiet.session()
    session.append(CONVERSATION)
    control.append(CONVERSATION)
    state = session.state()
    assert state == control.state()
    # one of them with text of its own before the invocation
    suffixes = [words(i, 50 + i) for i in range(8)]
    invocations = [
        ag.Invocation(name, suffix, max_tokens=4 + int(name))
        for name, suffix in zip(asked.adapters, suffixes, strict=True)
    ]
    if at_once:
        verdicts = session.invoke_many(invocations)
    else:
        verdicts = [session.invoke(invocation) for invocation in invocations]
    assert len({v.tokens[:4] for v in verdicts}) > 4, "the adapters hardly differ"
    assert session.state() == state
    # the next tokens of the base, several in a batch and one by one
    for tokens in (NEXT, *([t] for t in words(3, 42))):
        session.append(tokens)
        control.append(tokens)
        np.testing.assert_array_equal(inside.last_logits(session), inside.last_logits(control))
        assert session.state() == control.state()


def test_nothing_moved_for_replies(pair: tuple[ag.Model, ag.Model]) -> None:
    """The same between the tokens of a reply that the base is amid of."""
    asked, quiet = pair
    session, control = asked.session(), quiet.session()
    session.append(CONVERSATION)
    control.append(CONVERSATION)
    for _ in range(3):
        session.invoke_many([ag.Invocation(name, max_tokens=3) for name in asked.adapters])
        for one in (session, control):
            one.generate(max_tokens=4, sampling=GREEDY).read()
        assert session.tokens == control.tokens
        np.testing.assert_array_equal(inside.last_logits(session), inside.last_logits(control))
        assert session.state() == control.state()
