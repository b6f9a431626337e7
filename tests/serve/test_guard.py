"""Who is let in, and what is said to who is not."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

import alora_gguf as ag
from alora_gguf.serve import Server, Settings
from tests.support.serving import serving

SAID = {"messages": [{"role": "user", "content": "Good morning."}], "max_tokens": 2}
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1234", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("192.168.1.5", 200),  # an address cannot be made to lead elsewhere
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_made_to_lead_here_is_refused(
    client: httpx.Client, host: str, status: int
) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == status


def test_pages_elsewhere_may_not_ask(client: httpx.Client, server: Server) -> None:
    refused = client.post(CHAT, json=SAID, headers={"origin": "http://evil.example"})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "forbidden"
    own = {"origin": server.url}
    assert client.get("/v1/models", headers=own).status_code == 200
    assert "access-control-allow-origin" not in client.get("/v1/models", headers=own).headers


def test_key_hosts_origins_and_size_as_told() -> None:
    page = "http://localhost:3000"
    with (
        serving(api_key="secret", hosts=("laptop.lan",), origins=(page,), max_body=1000) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            refused = client.post(CHAT, json=SAID, headers=headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/health").status_code == 200
        key = {"authorization": "Bearer secret"}
        assert client.get("/v1/models", headers={"x-api-key": "secret"}).status_code == 200
        assert client.get("/v1/models", headers={**key, "host": "laptop.lan"}).status_code == 200
        answer = client.get("/v1/models", headers={**key, "origin": page})
        assert answer.headers["access-control-allow-origin"] == page
        asked = {"origin": page, "access-control-request-method": "POST",
                 "access-control-request-headers": "authorization"}  # fmt: skip
        preflight = client.options(CHAT, headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization"
        large = client.post(CHAT, json={**SAID, "user": "x" * 1000}, headers=key)
        assert large.status_code == 413

        def pieces() -> Any:
            for _ in range(20):
                yield b" " * 100

        assert client.post(CHAT, content=pieces(), headers=key).status_code == 413


def test_any_key_will_do_where_none_is_asked_for(client: httpx.Client) -> None:
    answer = client.get("/v1/models", headers={"authorization": "Bearer whatever"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"api_key": ""}, "API key is empty"),
        ({"api_key": "  "}, "API key is empty"),
        ({"name": "a:b"}, "without ':'"),
        ({"name": ""}, "without ':'"),
        ({"origins": ("localhost:3000",)}, "is no origin"),
        ({"origins": ("http://localhost:3000/path",)}, "is no origin"),
    ],
)
def test_settings_that_could_not_be_meant(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ag.InputError, match=says):
        Settings(**settings)


def test_keys_and_origins_as_people_write_them() -> None:
    with serving(api_key="schlüssel", origins=("http://localhost:3000/",)) as server:
        key = {"authorization": "Bearer schlüssel".encode()}
        assert httpx.get(server.url + "/v1/models", headers=key).status_code == 200
        page: Any = {**key, "origin": "http://localhost:3000"}
        assert httpx.get(server.url + "/v1/models", headers=page).status_code == 200
