"""POST /v1/chat/completions: what it answers is what the Python API answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import alora_gguf as ag
from alora_gguf.serve import Server
from tests.support.serving import open_exact, serving

DOCUMENTS = [{"text": "The ferry to Harwich leaves at nine.", "doc_id": "1"}]
QUESTION = {"role": "user", "content": "When does the ferry to Harwich leave?"}
ASKED: dict[str, Any] = {
    "messages": [QUESTION],
    "documents": DOCUMENTS,
    "temperature": 0,
    "max_tokens": 24,
}


@pytest.fixture(scope="module")
def model() -> Iterator[ag.Model]:
    with open_exact() as model:
        yield model


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(open_exact) as server:
        yield server


def ask(client: httpx.Client, **changes: Any) -> Any:
    answer = client.post("/v1/chat/completions", json=ASKED | changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chunks(client: httpx.Client, **changes: Any) -> list[Any]:
    body = ASKED | {"stream": True} | changes
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_reply_is_the_python_apis(client: httpx.Client, model: ag.Model) -> None:
    with model.chat(messages=[QUESTION], documents=DOCUMENTS) as chat:
        said = chat.reply(temperature=0, max_tokens=24, logprobs=2)
    got = ask(client, logprobs=True, top_logprobs=2)
    choice = got["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": said.text, "refusal": None}
    assert choice["finish_reason"] == said.finish_reason
    assert got["usage"]["completion_tokens"] == said.timings.generated
    content = choice["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == said.text
    assert b"".join(bytes(each["bytes"]) for each in content) == said.text.encode()
    assert said.logprobs is not None
    assert [each["logprob"] for each in content] == pytest.approx(
        [each.logprob for each in said.logprobs if each.text], abs=1e-3
    )
    assert all(len(each["top_logprobs"]) >= 2 for each in content)


def test_a_stream_says_the_same(client: httpx.Client) -> None:
    whole = ask(client, logprobs=True)
    parts = chunks(client, logprobs=True, stream_options={"include_usage": True})
    deltas = [part["choices"][0]["delta"] for part in parts if part["choices"]]
    assert deltas[0]["role"] == "assistant"
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == whole["choices"][0]["message"]["content"]
    scored = [
        each
        for part in parts
        for choice in part["choices"]
        for each in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert "".join(each["token"] for each in scored) == text
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_a_conversation_that_is_known_is_not_read_again(client: httpx.Client) -> None:
    first = ask(client)
    said = first["choices"][0]["message"]["content"]
    turns = [
        QUESTION,
        {"role": "assistant", "content": said},
        {"role": "user", "content": "Thanks."},
    ]
    got = ask(client, messages=turns)
    usage = got["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= first["usage"]["prompt_tokens"] - 1
    assert got["timings"]["cache_n"] == usage["prompt_tokens_details"]["cached_tokens"]


def test_verdicts_come_after_the_reply(client: httpx.Client, model: ag.Model) -> None:
    names = ["answerability", "hallucination", "uncertainty"]
    got = ask(client, verdicts=names)
    with model.chat(messages=[QUESTION], documents=DOCUMENTS) as chat:
        said = chat.reply(temperature=0, max_tokens=24)
        calls = [
            ag.IntrinsicCall(name, upto=1 if model.contract(name).judges == "question" else None)
            for name in names
        ]
        wanted = chat.invoke_many(calls)
    assert got["choices"][0]["message"]["content"] == said.text
    verdicts = got["alora"]["verdicts"]
    assert [each["label"] for each in verdicts] == names
    for each, result in zip(verdicts, wanted, strict=True):
        assert each["text"] == result.text
        assert each["value"] == pytest.approx(result.value, abs=1e-3)
    streamed = [
        verdict
        for part in chunks(client, verdicts=names)
        for verdict in part.get("alora", {}).get("verdicts", [])
    ]
    assert [each["text"] for each in streamed] == [result.text for result in wanted]


def test_intrinsics_are_answered_in_place_of_a_reply(client: httpx.Client, model: ag.Model) -> None:
    names = ["answerability", {"name": "jailbreak", "alias": "safe"}]
    got = ask(client, intrinsics=names)
    values = json.loads(got["choices"][0]["message"]["content"])
    with model.chat(messages=[QUESTION], documents=DOCUMENTS) as chat:
        wanted = chat.invoke_many(["answerability", "jailbreak"])
    assert [*values] == ["answerability", "safe"]
    assert list(values.values()) == [pytest.approx(each.value, abs=1e-3) for each in wanted]
    (only,) = chunks(client, intrinsics=["jailbreak"])
    assert json.loads(only["choices"][0]["delta"]["content"])["jailbreak"] == pytest.approx(
        values["safe"], abs=1e-3
    )


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "timetable",
            "description": "When ferries leave.",
            "parameters": {
                "type": "object",
                "properties": {"harbour": {"enum": ["Harwich", "Dover"]}},
                "required": ["harbour"],
                "additionalProperties": False,
            },
        },
    }
]


def test_tools_are_called(client: httpx.Client) -> None:
    choice = {"type": "function", "function": {"name": "timetable"}}
    asked: dict[str, Any] = {"tools": TOOLS, "tool_choice": choice, "max_tokens": 96,
                             "parallel_tool_calls": False}  # fmt: skip
    got = ask(client, **asked)["choices"][0]
    assert got["finish_reason"] == "tool_calls"
    (call,) = got["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "timetable")
    assert json.loads(call["function"]["arguments"])["harbour"] in ("Harwich", "Dover")
    assert got["message"]["content"] is None
    deltas = [part["choices"][0] for part in chunks(client, **asked) if part["choices"]]
    (streamed,) = [d["delta"]["tool_calls"] for d in deltas if "tool_calls" in d["delta"]]
    assert streamed[0]["function"] == call["function"]
    assert deltas[-1]["finish_reason"] == "tool_calls"
    answered = [
        QUESTION,
        got["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "At nine."},
    ]
    assert ask(client, messages=answered, tools=TOOLS, tool_choice="none")["choices"]


def test_a_tool_that_there_is_not(client: httpx.Client) -> None:
    body = ASKED | {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "timetable" in answer.json()["error"]["message"]
