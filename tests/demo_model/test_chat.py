"""The chat template: transformers and llama-cpp-python render what chat.render() does."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from alora_gguf.engine import native as _native
from examples.demo_model import chat, tokenizer
from examples.demo_model.chat import Message
from tests.demo_model.tiny_granite import N_VOCAB, TEXTS

DOCUMENTS: dict[str, list[str]] = {
    "no document": [],
    "one": ["The kettle costs 48 crowns."],
    "two": ["  Space around, and a line\nbreak. \n", 'It\'s "quoted" <b>&amp;</b> {{ no.code }}'],
    "eleven": [f"Text {i}." for i in range(11)],
}
TALKS: dict[str, list[Message]] = {
    "no turn": [],
    "user": [Message("user", "Who owns it?")],
    "turns": [
        Message("user", " Hello!\n"),
        Message("assistant", "Hello. {% raw %} 'n' \\n"),
        Message("user", "你好, 12?"),
    ],
    "system": [
        Message("system", "Be brief.\n"),
        Message("user", "Who?"),
        Message("assistant", "I"),
    ],
    "late system": [Message("user", "Who?"), Message("system", "Be brief."), Message("user", "")],
}
CASES = [
    pytest.param(DOCUMENTS[d], TALKS[t], ask, id=f"{d}-{t}-{ask}")
    for d, t, ask in product(DOCUMENTS, TALKS, (False, True))
]
# transformers refuses a conversation without messages
WITH_MESSAGES = [case for case in CASES if case.values[1]]


def as_dicts(messages: list[Message]) -> list[dict[str, Any]]:
    return [{"role": m.role, "content": m.content} for m in messages]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(TEXTS, folder, N_VOCAB)
    return folder


@pytest.mark.parametrize(("documents", "messages", "ask"), WITH_MESSAGES)
def test_transformers_renders_the_same(
    documents: list[str], messages: list[Message], ask: bool, directory: Path
) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(directory).apply_chat_template(
        as_dicts(messages),
        documents=[{"text": text} for text in documents] or None,
        add_generation_prompt=ask,
        tokenize=False,
    )
    assert theirs == chat.render(documents, messages, generation_prompt=ask)


@pytest.mark.parametrize(("documents", "messages", "ask"), CASES)
def test_llama_cpp_python_renders_the_same(
    documents: list[str], messages: list[Message], ask: bool
) -> None:
    _native.load()
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    formatter = Jinja2ChatFormatter(
        chat.TEMPLATE, eos_token=chat.END_TEXT, bos_token="", add_generation_prompt=ask
    )
    given = {"documents": [{"text": text} for text in documents]} if documents else {}
    theirs = formatter(messages=as_dicts(messages), **given)  # type: ignore[arg-type]
    assert theirs.prompt == chat.render(documents, messages, generation_prompt=ask)
    assert theirs.stop == [chat.END_TEXT]


def test_a_document_may_bring_its_own_name(directory: Path) -> None:
    from transformers import AutoTokenizer

    text = AutoTokenizer.from_pretrained(directory).apply_chat_template(
        [{"role": "user", "content": "C?"}],
        documents=[{"doc_id": "b7", "text": "A."}, {"text": "B."}],
        tokenize=False,
    )
    assert text == (
        "<|start_of_role|>document b7<|end_of_role|>A.<|end_of_text|>\n"
        "<|start_of_role|>document 2<|end_of_role|>B.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>C?<|end_of_text|>\n"
    )


def test_what_a_conversation_looks_like() -> None:
    text = chat.render(
        ["A."],
        [Message("user", "B?"), Message("system", "C."), Message("assistant", "D.")],
        generation_prompt=True,
    )
    assert text == (
        "<|start_of_role|>system<|end_of_role|>C.<|end_of_text|>\n"
        "<|start_of_role|>document 1<|end_of_role|>A.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>B?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>D.<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>"
    )


def test_an_invocation_takes_the_place_of_the_assistants_marker() -> None:
    talk = [Message("user", "B?")]
    prompt = chat.render([], talk, generation_prompt=True)
    assert prompt == chat.render([], talk) + chat.role_marker("assistant")
    for name in chat.INTRINSICS:
        assert chat.role_marker(name) == f"<|start_of_role|>{name}<|end_of_role|>"
