"""Chats beyond stock: JSON Schemas in OpenAI's form, documents, template arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.chat.limits import Formatter
from alora_gguf.llama import Llama

from .cases import PAGE
from .cases_chat import MESSAGES, TOOLS

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bomel", "Carnby"]}, "open": {"type": "boolean"}},
    "required": ["city", "open"],
    "additionalProperties": False,
}
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 48}


@pytest.fixture(scope="module")
def llm(paths: dict[str, Path]) -> Iterator[Llama]:
    with Llama(paths["demo"], n_ctx=1024, verbose=False, n_threads=1) as opened:
        yield opened


def content(answer: Any) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
        {"type": "json_schema", "schema": SCHEMA},
        {"type": "json_object", "schema": SCHEMA},
    ],
)
@pytest.mark.parametrize("chat_format", [None, "chatml-function-calling", "llama-2"])
def test_json_schema(llm: Llama, form: dict[str, Any], chat_format: str | None) -> None:
    known, llm.chat_format = llm.chat_format, chat_format or llm.chat_format
    try:
        answer = json.loads(content(llm.create_chat_completion(MESSAGES, response_format=form)))
        chunks = llm.create_chat_completion(MESSAGES, response_format=form, stream=True, seed=3)
        streamed = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    finally:
        llm.chat_format = known
    for value in (answer, json.loads(streamed)):
        assert set(value) == {"city", "open"}
        assert value["city"] in ("Bomel", "Carnby")


@pytest.mark.parametrize(
    ("form", "kind", "words"),
    [
        ({"type": "json_schema"}, ag.InputError, "json_schema has no schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, ag.InputError, "has no schema"),
        ({"type": "xml"}, ag.InputError, "type is 'xml'"),
        ({}, ag.InputError, "type is None"),
        (
            {"type": "json_object", "schema": {"$ref": "#/nothing"}},
            ag.SchemaError,
            "cannot be used",
        ),
        (
            {"type": "json_schema", "schema": {"type": "quaternion"}},
            ag.SchemaError,
            "cannot be used",
        ),
        ({"type": "json_schema", "schema": {"x": {1, 2}}}, ag.SchemaError, "not JSON"),
    ],
)
def test_formats_that_cannot_be(llm: Llama, form: Any, kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        llm.create_chat_completion(MESSAGES, response_format=form)


def test_logprobs_need_neither_logits_all_nor_top_logprobs(llm: Llama) -> None:
    answer = llm.create_chat_completion(MESSAGES, logprobs=True, temperature=0, max_tokens=4)
    logprobs = answer["choices"][0]["logprobs"]["content"]
    assert len(logprobs) == answer["usage"]["completion_tokens"]
    assert all(len(each["top_logprobs"]) == 1 for each in logprobs)  # the chosen one
    more = llm.create_chat_completion(
        MESSAGES, logprobs=True, top_logprobs=5, temperature=0, max_tokens=4
    )
    for one, other in zip(logprobs, more["choices"][0]["logprobs"]["content"], strict=True):
        assert one["logprob"] == other["logprob"]
        assert len(other["top_logprobs"]) == 5
    assert "logprobs" in next(iter(llm.create_chat_completion(MESSAGES, stream=True)))["choices"][0]


def test_documents(llm: Llama) -> None:
    with_page = llm.create_chat_completion(MESSAGES, documents=[PAGE], **GREEDY)
    same = llm.create_chat_completion(
        MESSAGES, chat_template_kwargs=None, documents=[{"text": PAGE}], **GREEDY
    )
    assert with_page["choices"] == same["choices"]
    assert "Castle Street" in content(with_page)
    assert "Castle Street" not in content(llm.create_chat_completion(MESSAGES, **GREEDY))
    named = llm.create_chat_completion(MESSAGES, documents=[ag.Document(PAGE, doc_id="7")])
    assert named["usage"]["prompt_tokens"] == with_page["usage"]["prompt_tokens"]
    with pytest.raises(ag.InputError, match=r"documents\[0\]"):
        llm.create_chat_completion(MESSAGES, documents=[3])  # type: ignore[list-item]


def test_messages_may_be_ours(llm: Llama) -> None:
    ours = [ag.Message(m["role"], m["content"]) for m in MESSAGES]
    one = llm.create_chat_completion(ours, **GREEDY)
    assert one["choices"] == llm.create_chat_completion(MESSAGES, **GREEDY)["choices"]


def test_template_arguments_that_nobody_reads(llm: Llama, paths: dict[str, Path]) -> None:
    with pytest.raises(ag.InputError, match="no use for 'thinking'"):
        llm.create_chat_completion(MESSAGES, chat_template_kwargs={"thinking": True})
    with pytest.raises(ag.InputError, match="cannot set 'bos_token'"):
        llm.create_chat_completion(MESSAGES, chat_template_kwargs={"bos_token": "x"})
    with pytest.raises(ag.InputError, match="cannot set messages, temperature"):
        llm.create_chat_completion(
            MESSAGES, chat_template_kwargs={"temperature": 1, "messages": []}
        )
    with (
        Llama(paths["tiny"], n_ctx=256, verbose=False, n_threads=1) as tiny,
        pytest.raises(ag.InputError, match="tone cannot be used with this chat format"),
    ):
        tiny.create_chat_completion(MESSAGES, chat_template_kwargs={"tone": "kind"})


def test_documents_that_nobody_takes_stand_in_a_message(paths: dict[str, Path]) -> None:
    """As a Chat has them; in a chat format of stock's before what the user says."""
    text = "You have access to the following documents:\n\n[Document 1]\nx"
    with Llama(paths["tiny"], n_ctx=256, verbose=False, n_threads=1) as tiny:
        given: Any = [{"role": "user", "content": "Hello"}]
        with_page = tiny.create_chat_completion(given, documents=["x"], **GREEDY)
        given[0]["content"] = f"{text}\n\nHello"
        assert tiny.create_chat_completion(given, **GREEDY)["choices"] == with_page["choices"]
        assert given[0]["content"] == f"{text}\n\nHello"


def test_template_arguments(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    source = "{{ tone }}:{{ messages[0].content }}"
    handler = Jinja2ChatFormatter(source, eos_token="", bos_token="").to_chat_handler()
    monkeypatch.setitem(llm.metadata, "tokenizer.chat_template.mine", source)
    monkeypatch.setitem(llm._chat_handlers, "chat_template.mine", handler)
    monkeypatch.setattr(llm, "chat_format", "chat_template.mine")
    answer = llm.create_chat_completion(
        [{"role": "user", "content": "hello"}],
        chat_template_kwargs={"tone": "kind"},
        max_tokens=1,
    )
    assert answer["usage"]["prompt_tokens"] == len(llm.tokenize(b"kind:hello", add_bos=False))


@pytest.mark.parametrize("chat_format", [None, "chatml-function-calling", "llama-2"])
def test_a_schema_keeps_every_character(
    llm: Llama, chat_format: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama-cpp-python's grammar of a schema loses what is outside the basic plane."""
    monkeypatch.setattr(llm, "chat_format", chat_format or llm.chat_format)
    form: Any = {"type": "json_object", "schema": {"const": "😊 naïve"}}
    answer = llm.create_chat_completion(MESSAGES, response_format=form)
    assert json.loads(content(answer)) == "😊 naïve"
    chunks = llm.create_chat_completion(MESSAGES, response_format=form, stream=True)
    assert json.loads("".join(c["choices"][0]["delta"].get("content") or "" for c in chunks))


def test_logprobs_have_the_raw_bytes(llm: Llama) -> None:
    """One after the other, they are the content; also where a character is several tokens."""
    form: Any = {"type": "json_object", "schema": {"const": "😊 naïve"}}
    options: Any = {"response_format": form, "logprobs": True, "top_logprobs": 2}
    answer = llm.create_chat_completion(MESSAGES, **options)
    entries = answer["choices"][0]["logprobs"]["content"]
    assert b"".join(map(bytes, (each["bytes"] for each in entries))).decode() == content(answer)
    assert any(bytes(each["bytes"]) != each["token"].encode() for each in entries)
    data = b""
    for chunk in llm.create_chat_completion(MESSAGES, stream=True, **options):
        choice = chunk["choices"][0]
        for each in (choice["logprobs"] or {"content": []})["content"]:
            data += bytes(each["bytes"])
    assert data.decode() == content(answer)


def test_a_tool_that_does_not_exist(llm: Llama) -> None:
    choice: Any = {"type": "function", "function": {"name": "nothing"}}
    with pytest.raises(ValueError, match="nothing"):
        llm.create_chat_completion(MESSAGES, tools=TOOLS, tool_choice=choice)  # type: ignore[arg-type]


HALF = "a\ud800"
FUNCTION = {"name": "f", "description": HALF, "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"messages": [{"role": "user", "content": HALF}]}, r"messages\[0\]\['content'\]"),
        ({"messages": [{"role": HALF, "content": "a"}]}, r"messages\[0\]\['role'\]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]},
            r"\['text'\]",
        ),
        ({"messages": [{"role": "user", "content": "a", HALF: 1}]}, "a key"),
        ({"stop": HALF}, "stop"),
        ({"stop": ["b", HALF]}, r"stop\[1\]"),
        ({"model": HALF}, "model"),
        ({"response_format": {"type": "json_object", "schema": {"const": HALF}}}, "const"),
        ({"response_format": {"type": "json_schema", "json_schema": {HALF: 1}}}, "a key"),
        ({"tools": [{"type": "function", "function": FUNCTION}]}, "description"),
        ({"tool_choice": {"type": "function", "function": {"name": HALF}}}, "name"),
        ({"functions": [FUNCTION]}, "description"),
        ({"documents": [{"text": "a", "title": HALF}]}, "title"),
        ({"documents": [HALF]}, r"documents\[0\]"),
        ({"chat_template_kwargs": {"a": {"b": HALF}}}, "chat_template_kwargs"),
        ({"intrinsic": "x", "intrinsic_arguments": {"a": HALF}}, "intrinsic_arguments"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_half_a_surrogate_pair_in_a_chat(
    llm: Llama, options: dict[str, Any], name: str, stream: bool
) -> None:
    given = {"messages": MESSAGES, "max_tokens": 1, "stream": stream, **options}
    for chat_format in ("chat_template.default", "chatml-function-calling"):
        known, llm.chat_format = llm.chat_format, chat_format
        try:
            with pytest.raises(ag.InputError, match=rf"{name}.* has half of a surrogate pair"):
                llm.create_chat_completion(**given)
        finally:
            llm.chat_format = known


def test_half_a_surrogate_pair_elsewhere(llm: Llama, paths: dict[str, Path]) -> None:
    from llama_cpp import LlamaGrammar

    grammar = LlamaGrammar.from_string(f'root ::= "{HALF}"', verbose=False)
    calls: list[Any] = [
        lambda: llm.create_completion(HALF), lambda: llm(HALF, stream=True),
        lambda: llm("a", suffix=HALF), lambda: llm("a", stop=[HALF]),
        lambda: llm("a", stop=HALF), lambda: llm("a", grammar=grammar),
        lambda: llm(HALF, intrinsic="x"), lambda: llm(HALF, echo=True, logprobs=1),
        lambda: llm("a", adapter=HALF), lambda: llm.embed(HALF), lambda: llm.embed(["b", HALF]),
        lambda: llm.create_embedding(["b", HALF]), lambda: llm.load_adapter(HALF, "x"),
        lambda: llm.load_contract("x", HALF), lambda: llm.unload_adapter(HALF),
        lambda: Llama(HALF), lambda: Llama(paths["demo"], kv_overrides={HALF: 1}),
        lambda: Llama(paths["demo"], kv_overrides={"a": HALF}),
        lambda: Llama(paths["demo"], chat_format=HALF),
        lambda: Llama(paths["demo"], adapters={"x": HALF}),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ag.InputError, match="has half of a surrogate pair"):
            call()
    written: Any = Formatter(r"{{ 'a\ud800' }}", "", "").to_chat_handler()  # as a file's
    with pytest.raises(ag.InputError, match="template writes has half of a surrogate pair"):
        written(llama=llm, messages=MESSAGES)


WIDE = "😊 naïve 漢字"  # 😊 is beyond the basic plane
WIDE_SCHEMAS: dict[str, tuple[Any, Any]] = {
    "const": ({"const": WIDE}, WIDE),
    "enum": ({"enum": [WIDE]}, WIDE),
    "properties": (
        {
            "type": "object",
            "properties": {WIDE: {"const": "𐍈"}},
            "required": [WIDE],
            "additionalProperties": False,
        },
        {WIDE: "𐍈"},
    ),
    "pattern": ({"type": "string", "pattern": "^😊[𝒜-𝒜]{2} 漢$"}, "😊𝒜𝒜 漢"),
}


@pytest.mark.parametrize("kind", WIDE_SCHEMAS)
def test_wide_characters_in_schemas(llm: Llama, paths: dict[str, Path], kind: str) -> None:
    """In both of OpenAI's forms, in streams, in log-probabilities' bytes, and in a Chat."""
    schema, wanted = WIDE_SCHEMAS[kind]
    named = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for form in (named, {"type": "json_object", "schema": schema}):
        options: dict[str, Any] = {**GREEDY, "max_tokens": 200, "response_format": form}
        answer: Any = llm.create_chat_completion(MESSAGES, **options, logprobs=True)
        chunks = llm.create_chat_completion(MESSAGES, **options, logprobs=True, stream=True)
        streamed = [chunk["choices"][0] for chunk in chunks]
        (choice,) = answer["choices"]
        assert choice["finish_reason"] == "stop"
        text = content(answer)
        assert json.loads(text) == wanted
        assert "".join(c["delta"].get("content") or "" for c in streamed) == text
        scored = [t for c in streamed if c.get("logprobs") for t in c["logprobs"]["content"]]
        for tokens in (choice["logprobs"]["content"], scored):
            assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == text
    with ag.Model(paths["demo"], n_ctx=512, n_threads=1) as model:
        reply = model.chat(messages=["hi"]).reply(schema=schema, max_tokens=200, temperature=0)
        assert json.loads(reply.text) == wanted


@pytest.mark.parametrize("kind", WIDE_SCHEMAS)
def test_wide_characters_in_tools(llm: Llama, kind: str) -> None:
    """Stock makes grammars of their schemas, in which it escapes them as JSON does."""
    schema, wanted = WIDE_SCHEMAS[kind]
    parameters = {"type": "object", "properties": {"a😊": schema}, "required": ["a😊"]}
    known, llm.chat_format = llm.chat_format, "chatml-function-calling"
    try:
        answer: Any = llm.create_chat_completion(
            MESSAGES,
            tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}],
            tool_choice={"type": "function", "function": {"name": "f"}},
            temperature=0.0,
            max_tokens=200,
        )
    finally:
        llm.chat_format = known
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"a😊": wanted}


@pytest.mark.parametrize(
    ("messages", "wrong"),
    [
        ("hi", "messages is 'hi', expected a list of messages such as "),
        (
            {"role": "user", "content": "x"},
            "messages is {'role': 'user', 'content': 'x'}, expected",
        ),
        (None, "messages is None, expected a list of messages"),
        (3, "messages is 3, expected a list of messages"),
        (["hi"], "messages[0] is 'hi', expected a Message or a mapping with role, content"),
        ([None], "messages[0] is None, expected a Message"),
        ([{"rol": "user", "content": "x"}], "messages[0] has no role, expected a word such as"),
        ([{"role": "user"}], "messages[0] has no content, expected text"),
        ([{"role": "user", "content": None}], "messages[0] has no content, expected text"),
    ],
)
def test_what_is_no_message_is_told_where_the_template_stumbles(
    llm: Llama, messages: Any, wrong: str
) -> None:
    """It was jinja2's UndefinedError, which speaks of a 'str object'."""
    with pytest.raises(ag.InputError) as caught:
        llm.create_chat_completion(messages, max_tokens=1)
    assert str(caught.value).startswith(wrong)


@pytest.mark.parametrize("messages", ["", [], ({"role": "user", "content": "Hi"},)])
def test_what_stock_takes_is_taken(llm: Llama, messages: Any) -> None:
    assert content(llm.create_chat_completion(messages, max_tokens=2, temperature=0.0))
