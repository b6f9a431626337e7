"""What calls return can be written as JSON; and what a conversation comes to without reading it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

import pytest

import alora_gguf as ag
from alora_gguf import demo

QUESTION = "When does the Bomel library open?"


@pytest.fixture(scope="module")
def chat() -> Iterator[ag.Chat]:
    with (
        ag.Model(demo.base_path(), adapters=demo.adapter_paths(), n_threads=1) as model,
        model.chat(documents=demo.DOCUMENTS) as chat,
    ):
        yield chat


def test_answers_and_log_probabilities(chat: ag.Chat) -> None:
    reply = chat.say(QUESTION, max_tokens=4, temperature=0, logprobs=2)
    assert reply.logprobs is not None
    json.dumps([*map(asdict, chat.messages), *map(asdict, chat.documents)])
    json.dumps([*map(asdict, reply.logprobs), asdict(reply.timings)])
    whole, cut = chat.invoke("jailbreak"), chat.invoke("uncertainty", max_tokens=1)
    assert json.loads(json.dumps(whole.to_dict()))["value"] == whole.value
    assert set(whole.to_dict()) == {"value", "text", "finish_reason", "timings"}
    assert set(json.loads(json.dumps(cut.to_dict()))) == {
        "error", "text", "finish_reason", "timings",
    }  # fmt: skip


def test_tokens_are_counted_as_they_would_be_read(chat: ag.Chat) -> None:
    with chat.fork() as fork:
        before = fork.tokens
        said = [*fork.messages, ag.Message("user", "Who runs it?")]
        n, fewer = fork.count(said), fork.count(said, fork.documents[:1])
        assert fork.tokens == before
        assert fewer < n < fork.count(said, [*fork.documents, "Ada Lorn has a cat."])
        timings = fork.say("Who runs it?", max_tokens=1, temperature=0).timings
        assert timings.reused + timings.evaluated == n
        with pytest.raises(ag.CacheFullError):
            fork.count(["word " * 100_000])
        assert chat.model.n_ctx_train == 2048
        assert "messages" in fork.template
