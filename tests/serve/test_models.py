"""What is listed, and the adapters that requests name in every spelling in use."""

from __future__ import annotations

import socket
from typing import Any

import httpx

from alora_gguf import demo
from alora_gguf.serve import Server

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "When does the ferry leave?"}],
    "temperature": 0,
    "max_tokens": 12,
}
SPELLINGS: list[dict[str, Any]] = [
    {"model": "demo:jailbreak"},
    {"model": "jailbreak"},
    {"model": "demo", "adapter": "jailbreak"},
    {"adapter_id": "jailbreak"},
    {"adapter": "demo:jailbreak"},
    {"lora": [{"id": 4}]},
    {"lora": [{"id": 0, "scale": 0}, {"name": "jailbreak", "scale": 1}]},
    {"chat_template_kwargs": {"adapter_name": "jailbreak"}},
    {"model": "demo:jailbreak", "adapter": "jailbreak"},
]
BASE: list[dict[str, Any]] = [
    {}, {"model": "demo"}, {"model": "demo:latest"}, {"lora": []}, {"lora": [{"id": 0, "scale": 0}]}
]  # fmt: skip


def said(client: httpx.Client, **more: Any) -> tuple[str, str]:
    answer = client.post(CHAT, json=ASKED | more).json()
    return answer["model"], answer["choices"][0]["message"]["content"]


def test_every_spelling_names_the_same_adapter(client: httpx.Client) -> None:
    by_adapter = {said(client, **each) for each in SPELLINGS}
    by_base = {said(client, **each) for each in BASE}
    assert [model for model, _ in by_adapter] == ["demo:jailbreak"]
    assert [model for model, _ in by_base] == ["demo"]
    assert by_adapter.isdisjoint(by_base)


def test_a_scale_is_the_adapters(client: httpx.Client) -> None:
    none = said(client, lora=[{"name": "jailbreak", "scale": 1e-6}])
    assert none[1] != said(client, adapter="jailbreak")[1]


def test_models_say_what_there_is(client: httpx.Client) -> None:
    base, *adapters = client.get("/v1/models").json()["data"]
    assert (base["id"], base["parent"]) == ("demo", None)
    assert [each["id"] for each in adapters] == [f"demo:{name}" for name in demo.INTRINSICS]
    for each in adapters:
        about = each["alora"]
        assert about["kind"] == "alora"
        assert about["generation"] == 1
        assert about["intrinsic"]
        assert len(about["sha256"]) == 64
        assert about["invocation"]["text"].startswith("<|start_of_role|>")
        assert client.get(f"/v1/models/{each['id']}").json()["id"] == each["id"]
    assert client.get("/v1/models/demo:nobody").status_code == 404
    lora = client.get("/lora-adapters").json()
    assert [each["id"] for each in lora] == list(range(len(demo.INTRINSICS)))


def test_the_cache_says_whose_cells_it_has(client: httpx.Client) -> None:
    said(client, adapter="jailbreak")
    report = client.get("/v1/cache").json()
    assert report["used"] + report["promised"] + report["free"] == report["n_cells"]
    spans = [span for holder in report["holders"] for span in holder["spans"] or ()]
    assert "jailbreak" in {span["adapter"] for span in spans}


def test_health_versions_and_metrics(client: httpx.Client) -> None:
    assert client.get("/health").json()["status"] == "ready"
    assert client.get("/ping").text == "pong"
    version = tuple(map(int, client.get("/version").json()["version"].split(".")))
    assert version >= (0, 12, 0)  # from which on mellea sends structured_outputs

    def counted(text: str) -> float:
        return sum(
            float(line.split()[-1])
            for line in text.splitlines()
            if line.startswith('alora_tokens_total{kind="written"}')
        )

    before = counted(client.get("/metrics").text)
    n = client.post(CHAT, json=ASKED).json()["usage"]["completion_tokens"]
    client.get("/no/such/path")
    text = client.get("/metrics").text
    assert counted(text) == before + n
    assert 'alora_requests_total{path="/v1/chat/completions",status="200"}' in text
    assert "/no/such" not in text  # strangers' paths would be labels without end


def test_answers_do_not_wait_for_receipts(server: Server) -> None:
    """asyncio switches Nagle's algorithm off only where a socket says that it is TCP."""
    assert server._socket.proto == socket.IPPROTO_TCP
