"""The basic examples of libraries that use llama_cpp.Llama, on our class in its place.

`make test-peers` installs them into an environment of their own and runs these; elsewhere each is
skipped unless its package is there. ALORA_PEER_MODEL names another model than the demo's.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any, Literal

import pytest

import alora_gguf
from alora_gguf import demo

SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
QUESTION = "The Bomel library"


@pytest.fixture(scope="module", autouse=True)
def in_its_place() -> Iterator[None]:
    """As docs/llama.md says, before any of the libraries is imported."""
    with pytest.MonkeyPatch.context() as patch:
        ours = alora_gguf.Llama
        import llama_cpp

        patch.setattr(llama_cpp, "Llama", ours)
        patch.setattr(llama_cpp.llama, "Llama", ours)
        yield


@pytest.fixture(scope="module")
def path() -> str:
    return os.environ.get("ALORA_PEER_MODEL") or str(demo.base_path())


@pytest.fixture
def llm(path: str) -> Iterator[alora_gguf.Llama]:
    with alora_gguf.Llama(path, n_ctx=1024, n_threads=2, verbose=False) as opened:
        yield opened


def package(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed: make test-peers")


def greedy(llm: Any, prompt: str = "The library opens at") -> str:
    text: str = llm(prompt, max_tokens=6, temperature=0)["choices"][0]["text"]
    return text


def test_guidance(llm: alora_gguf.Llama) -> None:
    guidance = package("guidance")
    before = greedy(llm)
    model = guidance.models.LlamaCpp(llm, echo=False)
    model += "Q: " + QUESTION + " A: in " + guidance.select(["Rome", "Castle Street"], name="where")
    assert model["where"] in ("Rome", "Castle Street")
    model += ". It has " + guidance.gen("n", regex="[0-9]+", max_tokens=4) + " books"
    assert model["n"].isdigit()
    assert greedy(llm) == before  # guidance decodes on the same context


def test_lm_format_enforcer(llm: alora_gguf.Llama) -> None:
    package("lmformatenforcer")
    from lmformatenforcer import JsonSchemaParser
    from lmformatenforcer.integrations.llamacpp import build_llamacpp_logits_processor

    processor = build_llamacpp_logits_processor(llm, JsonSchemaParser(SCHEMA))
    # control tokens have no text, so that it allows them everywhere
    empty = {t: -100.0 for t in range(llm.n_vocab()) if not llm.detokenize([t])}
    del empty[llm.token_eos()]
    answer = llm(
        "One or two? ", logits_processor=[processor], logit_bias=empty, max_tokens=60, temperature=0
    )
    assert json.loads(answer["choices"][0]["text"])["n"] in (1, 2)


LANGCHAIN: dict[str, Any] = {"n_ctx": 512, "temperature": 0, "max_tokens": 8, "verbose": False}


def test_langchain_llm(path: str) -> None:
    package("langchain_community")
    from langchain_community.llms import LlamaCpp

    llm = LlamaCpp(model_path=path, **LANGCHAIN)
    whole = llm.invoke(QUESTION)
    assert whole
    assert "".join(llm.stream(QUESTION)) == whole
    assert llm.get_num_tokens(QUESTION) > 3


def test_langchain_chat(path: str) -> None:
    package("langchain_community")
    from langchain_community.chat_models import ChatLlamaCpp

    chat = ChatLlamaCpp(model_path=path, **LANGCHAIN)
    whole = chat.invoke([("system", "Be short."), ("user", QUESTION)])
    assert whole.content
    chunks = chat.stream([("system", "Be short."), ("user", QUESTION)])
    assert "".join(str(chunk.content) for chunk in chunks) == whole.content


def test_langchain_embeddings(path: str) -> None:
    package("langchain_community")
    from langchain_community.embeddings import LlamaCppEmbeddings

    embeddings = LlamaCppEmbeddings(model_path=path, verbose=False)
    one = embeddings.embed_query("some text")
    assert one
    assert embeddings.embed_documents(["some text", "more of it"])


def test_llama_index(path: str) -> None:
    package("llama_index.llms.llama_cpp")
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.llama_cpp import LlamaCPP

    llm = LlamaCPP(
        model_path=path, temperature=0, max_new_tokens=8, context_window=512, verbose=False
    )
    assert llm.metadata.context_window == 512
    whole = llm.complete(QUESTION).text
    assert whole
    *_, last = llm.stream_complete(QUESTION)
    assert last.text == whole
    assert llm.chat([ChatMessage(role="user", content=QUESTION)]).message.content is not None


def test_outlines(llm: alora_gguf.Llama) -> None:
    outlines = package("outlines")
    package("numba")  # its masks for numpy need it
    model = outlines.from_llamacpp(llm)
    assert model("One or two? ", Literal["one", "two"], max_tokens=8) in ("one", "two")
    assert model(QUESTION, max_tokens=4)


def test_instructor(llm: alora_gguf.Llama) -> None:
    instructor = package("instructor")
    package("openai")
    from pydantic import BaseModel

    class Place(BaseModel):
        street: Literal["Castle Street", "Mill Lane"]
        open: bool

    create = instructor.patch(
        create=llm.create_chat_completion_openai_v1, mode=instructor.Mode.JSON_SCHEMA
    )
    place = create(
        messages=[{"role": "user", "content": QUESTION}], response_model=Place, max_tokens=200
    )
    assert place.street in ("Castle Street", "Mill Lane")


def test_haystack(path: str) -> None:
    package("haystack_integrations.components.generators.llama_cpp")
    from haystack.dataclasses import ChatMessage
    from haystack_integrations.components.generators.llama_cpp import LlamaCppChatGenerator

    options = {"max_tokens": 8, "temperature": 0}
    chat = LlamaCppChatGenerator(model=path, n_ctx=512, generation_kwargs=options)
    chat.warm_up()
    assert chat.run([ChatMessage.from_user(QUESTION)])["replies"][0].text is not None


def test_autogen(path: str) -> None:
    package("autogen_ext")
    from autogen_core.models import UserMessage
    from autogen_ext.models.llama_cpp import LlamaCppChatCompletionClient

    client = LlamaCppChatCompletionClient(model_path=path, n_ctx=512, verbose=False)
    answer = asyncio.run(
        client.create(
            [UserMessage(content=QUESTION, source="user")],
            extra_create_args={"max_tokens": 8, "temperature": 0},
        )
    )
    assert isinstance(answer.content, str)
    assert answer.usage.completion_tokens > 0


def test_the_server(path: str) -> None:
    package("llama_cpp.server.app")
    package("httpx")
    from fastapi.testclient import TestClient
    from llama_cpp.server.app import create_app
    from llama_cpp.server.settings import ModelSettings, ServerSettings

    model = ModelSettings(model=path, n_ctx=512, cache=True, verbose=False)
    client = TestClient(create_app(server_settings=ServerSettings(), model_settings=[model]))
    ask = {"prompt": QUESTION, "max_tokens": 8, "temperature": 0}
    answers = [client.post("/v1/completions", json=ask).json()["choices"] for _ in range(2)]
    assert answers[0] == answers[1]
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 8}
    assert client.post("/v1/chat/completions", json=chat).json()["choices"]
    with client.stream("POST", "/v1/chat/completions", json={**chat, "stream": True}) as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    form = {"type": "json_object", "schema": {"const": "😊 naïve"}}
    answer = client.post("/v1/chat/completions", json={**chat, "response_format": form}).json()
    assert answer["choices"]


def test_a_custom_langchain_llm(llm: alora_gguf.Llama) -> None:
    """llama-cpp-python's own example: an LLM around an object."""
    package("langchain_core")
    from langchain_core.language_models.llms import LLM

    class Custom(LLM):
        llm: Any

        @property
        def _llm_type(self) -> str:
            return "custom"

        def _call(self, prompt: str, *_: Any, **__: Any) -> str:
            return greedy(self.llm, prompt)

    assert Custom(llm=llm).invoke(QUESTION) == greedy(llm, QUESTION)
