"""Requests that cannot be answered: each a status below 500 and the field that is wrong."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from alora_gguf import demo
from alora_gguf.serve import Server

HI = [{"role": "user", "content": "hi"}]
CHAT, RAW, RESPONSES, OLLAMA = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/api/chat",
)  # fmt: skip

# path, body, status, field, and what the message says
CASES: list[tuple[str, Any, int, str | None, str]] = [
    (CHAT, "{", 400, None, "not JSON"),
    (CHAT, "[]", 400, None, "object"),
    (CHAT, "[" * 100_000, 400, None, "JSON"),
    (CHAT, '{"messages": ' + '{"a":' * 200 + "1" + "}" * 201, 400, None, "in each other"),
    (CHAT, {}, 400, "messages", "is missing"),
    (CHAT, {"messages": 5}, 400, "messages", "array"),
    (CHAT, {"messages": []}, 400, "messages", "nothing to reply to"),
    (CHAT, {"messages": [{"role": "usr", "content": "x"}]}, 400, "messages",
     "messages[0].role is 'usr', expected system, user, assistant, tool, or one that the chat "
     "template knows; did you mean user?"),
    (CHAT, {"messages": HI, "top_logprobs": 2}, 400, "top_logprobs", "needs logprobs"),
    (CHAT, {"messages": [{"role": "user"}]}, 400, "messages", "content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages",
     "not text"),
    (CHAT, {"messages": [{"role": 5, "content": "x"}]}, 400, "messages", "role"),
    (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, 400, None, ""),
    (CHAT, {"messages": HI, "temperature": -1}, 400, "temperature", "at least 0"),
    (CHAT, {"messages": HI, "temperature": "hot"}, 400, "temperature", "float"),
    (CHAT, {"messages": HI, "top_p": 2}, 400, "top_p", "1"),
    (CHAT, {"messages": HI, "max_tokens": 0}, 400, "max_tokens", "at least 1"),
    (CHAT, {"messages": HI, "stop": ["a", ""]}, 400, None, "stop"),
    (CHAT, {"messages": HI, "n": 0}, 400, "n", "1 to 8"),
    (CHAT, {"messages": HI, "n": 9}, 400, "n", "1 to 8"),
    (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "20"),
    (CHAT, {"messages": HI, "logit_bias": {"x": 1}}, 400, "logit_bias", "integer"),
    (CHAT, {"messages": HI, "logit_bias": {"99999999": 1}}, 400, None, "99999999"),
    (CHAT, {"messages": HI, "response_format": {"type": "xml"}}, 400, "response_format", "xml"),
    (CHAT, {"messages": HI, "response_format": {"type": "json_schema"}}, 400, "response_format",
     "no schema"),
    (CHAT, {"messages": HI, "guided_json": "{"}, 400, "guided_json", "JSON"),
    (CHAT, {"messages": HI, "guided_json": {"type": "nonsense"}}, 400, None, "Schema"),
    (CHAT, {"messages": HI, "guided_json": {"$ref": "#"}}, 400, None, "Schema"),
    (CHAT, {"messages": HI, "structured_outputs": {"regex": "a+"}}, 400, "structured_outputs",
     "regex"),
    (CHAT, {"messages": HI, "guided_json": {}, "guided_choice": ["a"]}, 400, "guided_choice",
     "both"),
    (CHAT, {"messages": HI, "functions": []}, 400, "functions", "cannot be used"),
    (CHAT, {"messages": HI, "modalities": ["audio"]}, 400, "modalities", "text"),
    (CHAT, {"messages": HI, "documents": [{"title": "x"}]}, 400, "documents", "text"),
    ("/v1/decisions", {"input": HI, "questions": [
        {"type": "intrinsic", "intrinsic": "jailbreak"},
        {"type": "intrinsic", "intrinsic": "query_rewrite"},
    ]}, 400, "questions.1", "questions.1 is an intrinsic whose answer is no decision"),
    (CHAT, {"messages": HI, "model": "gpt-4o"}, 404, "model", "gpt-4o"),
    (CHAT, {"messages": HI, "model": "demo:answerabilty"}, 404, None, "mean answerability"),
    (CHAT, {"messages": HI, "adapter": "answerabilty"}, 404, None, "mean answerability"),
    (CHAT, {"messages": HI, "model": "demo:jailbreak", "adapter": "uncertainty"}, 400, "adapter",
     "two adapters"),
    (CHAT, {"messages": HI, "lora": [{"id": 7}]}, 404, "lora", "id 7"),
    (CHAT, {"messages": HI, "lora": [{"id": 0}, {"id": 1}]}, 400, None, "together they can"),
    (CHAT, {"messages": HI, "lora": [{"id": 0, "scale": 1e9}]}, 400, "scale", "1000"),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"adapter_name": 5}}, 400,
     "chat_template_kwargs.adapter_name", "name"),
    (CHAT, {"messages": HI, "verdicts": ["nobody"]}, 404, "verdicts", "nobody"),
    (CHAT, {"messages": HI, "verdicts": [{}]}, 400, "verdicts", "name"),
    (CHAT, {"messages": HI, "verdicts": [{"name": "jailbreak", "x": 1}]}, 400, "verdicts", "'x'"),
    (CHAT, {"messages": HI, "intrinsics": [{"name": "jailbreak", "arguments": {"a": "b"}}]}, 400,
     None, "unknown argument"),
    (CHAT, {"messages": HI, "intrinsics": ["jailbreak"], "verdicts": ["jailbreak"]}, 400,
     "verdicts", "in place of"),
    (CHAT, {"messages": [{"role": "user", "content": "word " * 5000}]}, 400, None, "context"),
    (RESPONSES, {"input": "hi", "previous_response_id": "resp_1"}, 400, "previous_response_id",
     "stored"),
    (RESPONSES, {"input": [{"type": "image"}]}, 400, "input", "image"),
    (RESPONSES, {}, 400, "input", "is missing"),
    (OLLAMA, {"model": "demo:nobody", "messages": HI}, 404, None, "nobody"),
    (OLLAMA, {"model": "demo", "messages": HI, "options": {"temperature": "x"}}, 400, None,
     "temperature"),
    (OLLAMA, {"model": "demo", "messages": HI, "think": True}, 400, None, "does not support"),
    ("/api/create", {"model": "x"}, 403, None, "--adapters-dir"),
    ("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "x"}, 403, None, "--adapters-dir"),
    ("/chat/completions", {}, 404, None, "did you mean /v1/chat/completions?"),
    ("/v1/models", {}, 405, None, "Method Not Allowed"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} {str(case[1])[:60]}")
@pytest.mark.parametrize("stream", [False, True])
def test_it_is_refused_before_anything_is_computed(
    client: httpx.Client, case: tuple[str, Any, int, str | None, str], stream: bool
) -> None:
    path, body, status, field, says = case
    if isinstance(body, dict) and stream:
        body = {**body, "stream": True}
    if isinstance(body, str):
        answer = client.post(path, content=body)
    else:
        import json

        answer = client.post(path, content=json.dumps(body))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    if path.startswith("/api/"):
        assert says in error
        return
    assert says in error["message"], error
    assert error["code"]
    if field is not None:
        assert error["param"] == field, error


def test_no_message_tells_the_servers_paths(client: httpx.Client, server: Server) -> None:
    asked = {"messages": [{"role": "user", "content": "word " * 5000}], "intrinsics": ["jailbreak"]}
    message = client.post(CHAT, json=asked).json()["error"]["message"]
    assert "--n-ctx" in message
    text = f"{server.service.model.path}: the KV cache is full"
    assert server.service.shown(text) == "demo: the KV cache is full"
    path = server.service.model.adapters["jailbreak"].path
    assert server.service.shown(f"{path}: malformed") == "jailbreak: malformed"
    for path in ("/v1/models", "/v1/adapters", "/api/tags", "/lora-adapters"):
        assert str(demo.base_path().parent) not in client.get(path).text
