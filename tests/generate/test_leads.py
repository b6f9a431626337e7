"""What several invocations begin with, beyond the conversation, is read once; and what can come
after other ways to begin an answer is read along with the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

import alora_gguf as ag
from alora_gguf.generate.plan import WORTH
from tests.support import inside
from tests.support.files import EXACT, Files

TEXT = "<|user|>Is the answer certain?<|end|>"
HEAD = "<|user|>These words are the same for all of them, however they go on: "
WAYS = ("one", "two", "three")
SCHEMA = {"enum": ["AB", "AC", "B"], "x-alora": {"form": "text"}}


@pytest.fixture
def session(model: ag.Model) -> Iterator[ag.Session]:
    with model.session() as opened:
        opened.append(TEXT)
        yield opened


def asked(way: str, adapter: str | None = None) -> ag.Invocation:
    return ag.Invocation(adapter, f"{HEAD}{way}<|end|>", max_tokens=4, logprobs=5)


@pytest.mark.parametrize("adapter", [None, "sure", "lora"])
def test_a_shared_beginning_is_read_once(
    session: ag.Session, model: ag.Model, adapter: str | None
) -> None:
    state, n = session.state(), len(model.tokenize(HEAD))
    head = n if adapter != "lora" else n + len(session.tokens)
    together = session.invoke_many([asked(way, adapter) for way in WAYS])
    first, *others = (each.timings.evaluated for each in together)
    assert first > head
    assert all(each < n for each in others)
    for way, found in zip(WAYS, together, strict=True):
        alone = session.invoke(asked(way, adapter))
        assert found.tokens == alone.tokens
        assert [t.logprob for t in found.logprobs or ()] == pytest.approx(
            [t.logprob for t in alone.logprobs or ()], abs=1e-3
        )
    assert session.state() == state


def test_of_two_adapters_only_what_the_base_reads_is_shared(
    session: ag.Session, model: ag.Model, files: Files
) -> None:
    words = model.detokenize(files.invocation, special=True)
    suffixes = [f"{HEAD}{words} and so on, and on, and on"] * 2
    calls = [
        ag.Invocation(name, suffix, max_tokens=3)
        for name, suffix in zip(("sure", "other"), suffixes, strict=True)
    ]
    found = session.invoke_many(calls)
    assert found[1].timings.evaluated >= len(files.invocation)
    for call, each in zip(calls, found, strict=True):
        assert each.tokens == session.invoke(call).tokens


def test_a_short_beginning_is_not_worth_a_batch(session: ag.Session) -> None:
    calls = [ag.Invocation(None, f"<|user|>{way}<|end|>", max_tokens=1) for way in WAYS]
    for call, found in zip(calls, session.invoke_many(calls), strict=True):
        assert found.timings.evaluated == session.invoke(call).timings.evaluated
    assert WORTH > 8


def test_where_there_is_no_room_for_all_the_others_take_their_turn(files: Files) -> None:
    with files.model(n_ctx=256) as model, model.session() as session:
        session.append(TEXT)
        calls = [asked(f"{way} {i}") for i in range(8) for way in WAYS]
        found = session.invoke_many(calls)
        assert len(found) == len(calls)
        for call, each in zip(calls[-3:], found[-3:], strict=True):
            assert each.tokens == session.invoke(call).tokens


def test_forks_take_turns_rather_than_all_conversations_that_are_over(files: Files) -> None:
    options = replace(EXACT, n_pooled=6, n_seq_max=8)
    with files.model(options=options) as model:
        for k in range(6):
            with model.session() as closed:
                closed.append(f"<|user|>{k}{k}{k} and so on, and on, and on<|end|>")
        with model.session() as session:
            session.append(TEXT)
            calls = [ag.Invocation(None, f"<|user|>{k}<|end|>", max_tokens=2) for k in range(9)]
            found = session.invoke_many(calls)
            assert len(inside.prefix_cache(model).entries) >= 3
            assert found[-1].tokens == session.invoke(calls[-1]).tokens


@pytest.mark.parametrize("head", ["", HEAD])
def test_what_was_drafted_is_what_would_be_read(
    session: ag.Session, model: ag.Model, head: str
) -> None:
    """The draft is read with a short prompt, and after a long one."""
    a, b, c = (model.tokenize(letter)[0] for letter in "ABC")
    how = ag.Invocation(None, f"{head}x<|end|>", max_tokens=2, schema=SCHEMA, logprobs=9)
    verdict = session.invoke(replace(how, drafts=[[b], [a]]))
    begun = session.invoke(replace(how, begun=[a], max_tokens=1))
    assert begun.logprobs is not None
    assert verdict.logprobs is not None
    wanted = {top.token: top.logprob for top in begun.logprobs[1].top}
    assert wanted.keys() == {b, c}
    taken = verdict.tokens[0] == a
    after = verdict.logprobs[1].top if taken else verdict.further[a,]
    assert {top.token: top.logprob for top in after} == pytest.approx(wanted, abs=1e-3)
