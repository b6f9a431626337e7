"""LiteLLM and LangChain."""

from __future__ import annotations

from typing import Any

import pytest

from alora_gguf.serve import Server

from .conftest import DOCUMENTS, QUESTION, package

LIKELIEST: dict[str, Any] = {"temperature": 0, "max_tokens": 24}


@pytest.mark.parametrize("door", ["openai", "ollama_chat"])
def test_litellm(server: Server, said: str, door: str) -> None:
    litellm = package("litellm")
    url = server.url + ("/v1" if door == "openai" else "")
    asked = {"model": f"{door}/demo", "api_base": url, "api_key": "any", "messages": [QUESTION]}
    got = litellm.completion(**asked, **LIKELIEST)
    assert got.choices[0].message.content == said
    parts = litellm.completion(**asked, **LIKELIEST, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == said


def test_langchain(server: Server, said: str) -> None:
    langchain = package("langchain_openai")
    llm = langchain.ChatOpenAI(
        model="demo", base_url=server.url + "/v1", api_key="any", max_retries=0, **LIKELIEST
    )
    got = llm.invoke(QUESTION["content"])
    assert got.content == said
    assert got.usage_metadata["output_tokens"] > 0
    assert "".join(part.content for part in llm.stream(QUESTION["content"])) == said
    judged = llm.bind(extra_body={"documents": DOCUMENTS, "verdicts": ["hallucination"]})
    assert judged.invoke(QUESTION["content"]).content


def test_langchain_completions(server: Server) -> None:
    langchain = package("langchain_openai")
    llm = langchain.OpenAI(
        model="demo", base_url=server.url + "/v1", api_key="any", max_retries=0, **LIKELIEST
    )
    assert isinstance(llm.invoke("The ferry to"), str)
    assert len(llm.batch(["The ferry to", "The library"])) == 2
