"""The corpus of contracts asked in chats: values are those of requests made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.demo import script
from alora_gguf.gguf.base import BaseFile
from alora_gguf.intrinsics import Contract, rewrite, transform
from tests.support.chats import GREEDY, rendered
from tests.support.files import EXACT

CORPUS = Path(__file__).parents[1] / "intrinsics" / "corpus"
QUESTION, ANSWER = "When does the Bomel library open?", "The Bomel library opens at 9:30."
ARGUMENTS = {
    "guardian": {"criteria": "It is polite.", "target_role": "assistant"},
    "requirement_check": {"requirement": "It is short."},
}
# those whose schema admits only short replies
ALWAYS = {
    "answerability", "factuality_detection", "guardian", "requirement_check", "uncertainty",
}  # fmt: skip


@pytest.fixture(scope="module")
def played() -> Iterator[ag.Model]:
    """The demo's model with its five adapters."""
    with ag.Model(
        demo.base_path(),
        adapters=demo.adapter_paths(),
        n_ctx=8192,
        n_threads=1,
        options=EXACT,
    ) as model:
        yield model


@pytest.fixture
def judge(played: ag.Model) -> Iterator[ag.Model]:
    """The same with an adapter whose contract is to be set."""
    played.load_adapter("judge", demo.adapter_path("jailbreak"))
    yield played
    played.unload_adapter("judge")


def same(one: Any, other: Any) -> bool:
    """Whether two values are, but for what another batch leaves in floats."""
    if isinstance(one, float):
        return isinstance(other, float) and other == pytest.approx(
            one, abs=5e-3
        )  # of 8-bit weights
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", sorted(path.stem for path in CORPUS.glob("*.yaml")))
def test_a_contracts_value_is_that_of_a_request_by_hand(judge: ag.Model, name: str) -> None:
    """What the contract asks for, written by plain Jinja, asked of a bare session, transformed."""
    path, arguments = CORPUS / f"{name}.yaml", ARGUMENTS.get(name, {})
    judge.set_contract("judge", path)
    wanted = Contract.read(path)
    assert judge.contract("judge") == wanted
    documents = [ag.Document(text, doc_id=f"d{i}") for i, text in enumerate(script.DOCUMENTS[:2])]
    said = [ag.Message("user", QUESTION), ag.Message("assistant", ANSWER)]
    request = rewrite(wanted, said, documents, arguments)
    text = rendered(
        BaseFile.read(demo.base_path()).chat_template or "",
        request.messages,
        prompt=False,
        documents=[document.fields() for document in request.documents],
    )
    with judge.chat(documents=documents, messages=said) as chat:
        result = chat.invoke(ag.IntrinsicCall("judge", arguments, max_tokens=48, sampling=GREEDY))
        verdict = chat.session.invoke(
            ag.Invocation(
                "jailbreak",  # the same weights
                prompt=judge.tokenize(text + demo.invocation_of("jailbreak")),
                max_tokens=48,
                schema=None if request.response_format is None else dict(request.response_format),
                logprobs=10 if request.want_logprobs else None,
                stop=wanted.stop,
            )
        )
    assert (result.name, result.text) == ("judge", verdict.text)
    assert result.finish_reason == verdict.finish_reason
    assert result.timings.generated == verdict.timings.generated
    if name in ALWAYS:
        assert result.error is None
    limits = {"max_completion_tokens": 48, "max_tokens": 48}
    wanted = replace(wanted, parameters={**wanted.parameters, **limits})
    if result.error is None:
        expected = transform(wanted, verdict.text, verdict.logprobs, request)
        assert same(result.value, expected.value)
        assert [t.token for t in result.logprobs] == [t.token for t in expected.used]
        return
    with pytest.raises(ag.OutputError) as by_hand:
        transform(wanted, verdict.text, verdict.logprobs, request)
    assert str(result.error) == str(by_hand.value)
    with pytest.raises(ag.OutputError) as raised:
        _ = result.value
    assert raised.value is result.error
    assert result.logprobs == ()


@pytest.mark.slow
def test_five_in_one_batch_are_five_one_by_one(judge: ag.Model) -> None:
    """Other contracts, lengths of prompts and replies, stops, arguments and schemas."""
    calls = []
    for i, (name, arguments) in enumerate(
        (
            ("guardian", {"criteria": "It is polite.", "target_role": "user"}),
            ("context_relevance", {}), ("uncertainty", {}), ("query_rewrite", {}), ("criteria", {}),
        )
    ):  # fmt: skip
        judge.load_adapter(f"a{i}", demo.adapter_path(demo.INTRINSICS[i]))
        judge.set_contract(f"a{i}", CORPUS / f"{name}.yaml")
        calls.append(ag.IntrinsicCall(f"a{i}", arguments, sampling=GREEDY, max_tokens=7 * (i + 3)))
    try:
        with judge.chat(documents=script.DOCUMENTS[:2], messages=[QUESTION]) as chat:
            together = chat.invoke_many([*calls, *demo.INTRINSICS])
            for call, result in zip([*calls, *demo.INTRINSICS], together, strict=True):
                alone = chat.invoke(call)
                assert (alone.name, alone.text) == (result.name, result.text)
                assert alone.finish_reason == result.finish_reason
                assert str(alone.error) == str(result.error)
                assert alone.timings.generated == result.timings.generated
                if alone.error is None:
                    assert same(alone.value, result.value)
                    assert [t.token for t in alone.logprobs] == [t.token for t in result.logprobs]
            assert sum(result.error is None for result in together) >= 8
            assert len({result.timings.evaluated for result in together}) >= 5
    finally:
        for i in range(5):
            judge.unload_adapter(f"a{i}")
