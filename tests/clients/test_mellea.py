"""mellea: its backend for OpenAI takes the server for a Granite Switch, its Ollama backend for
Ollama.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.serve import Server, program, write_index

from .conftest import DOCUMENTS, QUESTION, package

ANSWER = {"role": "assistant", "content": "The ferry to Harwich leaves at nine."}


@pytest.fixture(scope="module")
def index(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("index")
    assert write_index(server.service, folder) == []
    return folder


@pytest.fixture(scope="module")
def backend(server: Server, index: Path) -> Any:
    package("mellea")
    names: dict[str, Any] = {}
    exec(program(server.service, server.url, index), names)  # what `serve --index` prints
    return names["backend"]


def conversation(name: str) -> list[dict[str, str]]:
    judges = {"hallucination", "uncertainty"}
    return [QUESTION, ANSWER] if name in judges else [QUESTION]


@pytest.mark.parametrize("name", demo.INTRINSICS)
def test_an_intrinsic_answers_as_the_python_api(backend: Any, model: ag.Model, name: str) -> None:
    from mellea.backends.adapters import AdapterType
    from mellea.stdlib import functional
    from mellea.stdlib.components import Document, Message
    from mellea.stdlib.components.intrinsic import Intrinsic
    from mellea.stdlib.context import ChatContext

    turns, context = conversation(name), ChatContext()
    for i, turn in enumerate(turns):
        documents = [Document(DOCUMENTS[0]["text"], doc_id="1")] if not i else None
        context = context.add(Message(turn["role"], turn["content"], documents=documents))
    asked = Intrinsic(name, adapter_types=(AdapterType.ALORA,))
    thunk, _ = functional.act(asked, context, backend, strategy=None)
    with model.chat(messages=turns, documents=DOCUMENTS) as chat:
        wanted = chat.invoke(name).value
    got = json.loads(str(thunk))
    assert got.keys() == wanted.keys()
    for key, value in wanted.items():
        assert got[key] == (pytest.approx(value, abs=5e-3) if isinstance(value, float) else value)


def test_plain_chat(backend: Any, model: ag.Model) -> None:
    from mellea.backends import ModelOption
    from mellea.stdlib import functional
    from mellea.stdlib.context import ChatContext

    options = {ModelOption.TEMPERATURE: 0, ModelOption.MAX_NEW_TOKENS: 24}
    thunk, _ = functional.chat(QUESTION["content"], ChatContext(), backend, model_options=options)
    with model.chat(messages=[QUESTION]) as chat:
        assert thunk.content == chat.reply(temperature=0, max_tokens=24).text


def test_raw_completions(backend: Any) -> None:
    from mellea.backends import ModelOption
    from mellea.core import CBlock
    from mellea.stdlib.context import ChatContext

    options = {ModelOption.MAX_NEW_TOKENS: 8}
    blocks = [CBlock("The ferry to"), CBlock("The library")]
    got = asyncio.run(backend.generate_from_raw(blocks, ChatContext(), model_options=options))
    assert len(got[0] if isinstance(got, tuple) else got) == 2


def test_the_ollama_backend(server: Server, model: ag.Model) -> None:
    package("mellea")
    from mellea.backends import ModelOption
    from mellea.backends.ollama import OllamaModelBackend
    from mellea.stdlib import functional
    from mellea.stdlib.context import ChatContext

    backend = OllamaModelBackend(model_id="demo", base_url=server.url)
    options = {ModelOption.TEMPERATURE: 0, ModelOption.MAX_NEW_TOKENS: 24}
    thunk, _ = functional.chat(QUESTION["content"], ChatContext(), backend, model_options=options)
    with model.chat(messages=[QUESTION]) as chat:
        assert thunk.content == chat.reply(temperature=0, max_tokens=24).text
