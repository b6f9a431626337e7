"""Ollama's client."""

from __future__ import annotations

import json
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.serve import Server

from .conftest import QUESTION, package

OPTIONS = {"temperature": 0, "num_predict": 24}


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return package("ollama").Client(host=server.url)


def test_chat(client: Any, said: str) -> None:
    got = client.chat(model="demo", messages=[QUESTION], options=OPTIONS)
    assert got.message.content == said
    assert got.done
    assert got.eval_count > 0
    parts = list(
        client.chat(model="demo:latest", messages=[QUESTION], options=OPTIONS, stream=True)
    )
    assert "".join(part.message.content for part in parts) == said
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_a_tag_is_an_adapter(client: Any, model: ag.Model) -> None:
    schema = model.contract("jailbreak").response_format
    got = client.chat(
        model="demo:jailbreak",
        messages=[QUESTION],
        format=schema,
        logprobs=True,
        top_logprobs=5,
        options=OPTIONS,
    )
    with model.chat(messages=[QUESTION]) as chat:
        wanted = chat.invoke("jailbreak")
    assert json.loads(got.message.content) == json.loads(wanted.text)
    assert "".join(each.token for each in got.logprobs) == got.message.content
    assert all(each.top_logprobs for each in got.logprobs)


def test_generate(client: Any, said: str, model: ag.Model) -> None:
    got = client.generate(model="demo", prompt=QUESTION["content"], options=OPTIONS)
    assert got.response == said
    raw = client.generate(model="demo", prompt="The ferry to", raw=True, options=OPTIONS)
    with model.session() as session:
        tokens = model.tokenize("The ferry to", add_special=True)
        assert raw.response == session.generate(prompt=tokens, temperature=0, max_tokens=24).read()
    parts = client.generate(model="demo", prompt=QUESTION["content"], options=OPTIONS, stream=True)
    assert "".join(part.response for part in parts) == said
    assert client.generate(model="demo").done_reason == "load"


def test_json(client: Any) -> None:
    got = client.chat(
        model="demo",
        messages=[QUESTION],
        format={"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
                "additionalProperties": False},
        options={"temperature": 0, "num_predict": 96},
    )  # fmt: skip
    assert isinstance(json.loads(got.message.content)["ok"], bool)


def test_what_there_is(client: Any) -> None:
    tags = [each.model for each in client.list().models]
    assert tags[:2] == ["demo", "demo:answerability"]
    assert [each.model for each in client.ps().models] == tags
    shown = client.show("demo:jailbreak")
    assert shown.modelinfo["adapter.kind"] == "alora"
    assert shown.details.parent_model == "demo"
    assert "completion" in shown.capabilities


def test_embed(client: Any, model: ag.Model) -> None:
    got = client.embed(model="demo", input=["Good morning.", "Good night."])
    wanted = model.embed(["Good morning.", "Good night."]).vectors
    assert got.embeddings[0] == pytest.approx(list(map(float, wanted[0])), abs=1e-4)


def test_errors_are_its_own(client: Any) -> None:
    with pytest.raises(package("ollama").ResponseError, match="nobody") as refused:
        client.chat(model="demo:nobody", messages=[QUESTION])
    assert refused.value.status_code == 404
