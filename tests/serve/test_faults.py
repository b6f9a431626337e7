"""Clients that break off, dawdle or talk nonsense, and a server that is stopped: nothing is lost
for the others, and nothing of theirs is computed any longer.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from alora_gguf import demo
from alora_gguf.serve import Server, guard, streams
from alora_gguf.serve import server as process
from tests.support.batches import slow_batches
from tests.support.serving import serving

QUESTION = {"role": "user", "content": "When does the ferry to Harwich leave?"}
ASKED: dict[str, Any] = {"messages": [QUESTION], "temperature": 0, "max_tokens": 8}
LONG: dict[str, Any] = {  # 400 batches and more
    "messages": [QUESTION],
    "max_tokens": 700,
    "stream": True,
    "logit_bias": {},
    "guided_json": {"type": "array", "items": {"type": "integer"}, "minItems": 400},
}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Seconds that a test can wait for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "_HEADER_SECONDS", 0.5)
        patch.setattr(guard, "BODY_SECONDS", 0.5)
        yield


@pytest.fixture(scope="module")
def server(impatient: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "other.gguf").write_bytes(demo.adapter_path("jailbreak").read_bytes())
    with serving(adapters_dir=folder) as server:
        yield server


def talk(server: Server, data: bytes, wait: bool = True) -> bytes:
    """What the server says to some bytes, until it closes or half a second has gone by."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as conn:
        conn.sendall(data)
        said = b""
        conn.settimeout(2 if wait else 0.01)
        try:
            while part := conn.recv(65536):
                said += part
                if not wait or b'"finish_reason":"' in said:
                    break
        except (TimeoutError, ConnectionResetError):
            pass
        return said


def request(body: bytes, length: object = None, *headers: str) -> bytes:
    n = len(body) if length is None else length
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", f"Content-Length: {n}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def until(true: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def idle(server: Server) -> bool:
    desk = server.service.desk
    return until(lambda: not desk.running and not desk.waiting)


WHOLE = json.dumps(ASKED).encode()
STREAM = json.dumps(LONG).encode()
FAULTS: dict[str, tuple[bytes, str]] = {
    "nonsense": (b"\x16\x03\x01\x02\x00 hello\r\n\r\n", "400"),
    "no such method": (b"BREW /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", "405"),
    "headers of a megabyte": (request(WHOLE, None, "X: " + "x" * (1 << 20)), "400"),
    "two lengths": (request(WHOLE, None, "Content-Length: 7"), "400"),
    "a negative length": (request(WHOLE, -1), "400"),
    "a length that is none": (request(WHOLE, "many"), "400"),
    "less body than it said": (request(WHOLE, len(WHOLE) + 10), "408"),
    "more body than it said": (request(WHOLE, len(WHOLE) - 10), "400"),
    "a body too large": (request(WHOLE, 1 << 40), "413"),
    "no host": (f"GET {CHAT} HTTP/1.1\r\n\r\n".encode(), "400"),
    "headers that never end": (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localho", ""),
    "silence": (b"", ""),
    "gone at once": (request(WHOLE)[:-20], ""),
    "gone before the answer": (request(WHOLE), ""),
    "gone in a stream": (request(STREAM), ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_others_are_served_as_ever(server: Server, fault: str) -> None:
    wanted = httpx.post(server.url + CHAT, json=ASKED, timeout=60).json()["choices"]
    data, status = FAULTS[fault]
    answers: list[Any] = []

    def ask() -> None:
        answers.append(httpx.post(server.url + CHAT, json=ASKED, timeout=60).json()["choices"])

    others = [threading.Thread(target=ask) for _ in range(4)]
    for each in others:
        each.start()
    said = talk(server, data, wait=not fault.startswith("gone"))
    for each in others:
        each.join(60)
    assert answers == [wanted] * 4
    assert said.split(b" ")[1:2] == ([status.encode()] if status else []) or fault.startswith(
        "gone"
    )
    assert idle(server)
    assert server.service.model.cache_report().promised == 0


def test_who_is_gone_is_not_worked_for(server: Server) -> None:
    begun = threading.Event()

    def leave() -> None:
        with httpx.stream("POST", server.url + CHAT, json=LONG, timeout=60) as answer:
            for _ in answer.iter_lines():
                begun.set()
                return

    threads = [threading.Thread(target=leave) for _ in range(3)]
    for each in threads:
        each.start()
    assert begun.wait(10)
    for each in threads:
        each.join()
    left = time.monotonic()
    assert idle(server)
    assert time.monotonic() - left < 1  # the replies would take longer
    holders = server.service.model.cache_report().holders
    assert all(holder.kind == "closed" for holder in holders)


def test_a_long_silence_is_broken(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment says that the stream is alive before there is a first token to send."""
    monkeypatch.setattr(streams, "PING", 0.02)
    turn = {"role": "user", "content": "The ferry to Harwich leaves at nine. " * 120}
    asked = {"messages": [turn], "max_tokens": 4, "stream": True}
    with httpx.stream("POST", server.url + CHAT, json=asked, timeout=60) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[0].startswith(": ping")
    assert lines[-1] == "data: [DONE]"


def test_a_line_that_is_full_says_so() -> None:
    with serving(n_parallel=1, n_waiting=1) as server, slow_batches():
        with httpx.stream("POST", server.url + CHAT, json=LONG, timeout=60) as running:
            lines = running.iter_lines()  # which closes the stream when nobody has it
            next(lines)
            waiting: list[int] = []
            ask = lambda: waiting.append(  # noqa: E731
                httpx.post(server.url + CHAT, json=ASKED, timeout=60).status_code
            )
            thread = threading.Thread(target=ask)
            thread.start()
            assert until(lambda: server.service.desk.waiting == 1)
            refused = httpx.post(server.url + CHAT, json=ASKED, timeout=60)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["code"] == "busy"
        thread.join(60)
        assert waiting == [200]


@pytest.mark.parametrize(("grace", "whole"), [(30.0, True), (0.05, False)])
def test_it_ends_in_order(grace: float, whole: bool) -> None:
    ended: list[Any] = []
    with serving(grace=grace) as server, slow_batches(0.0 if whole else 0.02):
        begun = threading.Event()

        def read() -> None:
            with httpx.stream("POST", server.url + CHAT, json=LONG, timeout=60) as answer:
                lines = []
                for line in answer.iter_lines():
                    begun.set()
                    lines.append(line)
            ended.append([line for line in lines if line.startswith("data: ")])

        thread = threading.Thread(target=read)
        thread.start()
        assert begun.wait(30)
        with httpx.Client(base_url=server.url) as client:
            client.get("/health")
            server.stop()
            health = client.get("/health")
            assert (health.status_code, health.json()["status"]) == (503, "draining")
            refused = client.post(CHAT, json=ASKED)
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
        thread.join(60)
    (lines,) = ended
    assert lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    if whole:
        assert last["choices"][0]["finish_reason"] in ("stop", "length")
    else:
        assert last["error"]["code"] == "cancelled"


def test_it_says_that_it_is_loading() -> None:
    from tests.support.serving import open_demo

    go_on = threading.Event()

    def load() -> Any:
        assert go_on.wait(60)
        return open_demo()

    def first_answers(url: str) -> None:
        health = httpx.get(url + "/health")
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        assert httpx.post(url + CHAT, json=ASKED).status_code == 503
        go_on.set()

    seen: list[BaseException] = []
    with pytest.MonkeyPatch.context() as patch:
        begin = Server._begin

        def begun(self: Server) -> None:
            begin(self)
            threading.Thread(target=_noting, args=(seen, first_answers, self.url)).start()

        patch.setattr(Server, "_begin", begun)
        with serving(load) as server:
            assert httpx.get(server.url + "/health").json()["status"] == "ready"
    assert seen == []


def _noting(seen: list[BaseException], call: Callable[[str], None], url: str) -> None:
    try:
        call(url)
    except BaseException as error:
        seen.append(error)


def test_an_adapter_that_is_replaced_is_kept_for_who_uses_it(server: Server) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        load = {"lora_name": "mine", "lora_path": "other.gguf"}
        assert client.post("/v1/load_lora_adapter", json=load).status_code == 200
        asked = {"messages": [QUESTION], "adapter": "mine", "stream": True, "max_tokens": 300,
                 "guided_json": LONG["guided_json"], "temperature": 0}  # fmt: skip
        wanted = _text(client, asked)
        got: list[str] = []
        thread = threading.Thread(target=lambda: got.append(_text(client, asked)))
        with slow_batches():
            thread.start()
            assert until(lambda: server.service.desk.running == 1)
            again = client.post("/v1/load_lora_adapter", json=load).json()
            assert again["alora"]["generation"] == 2
            unload = {"lora_name": "mine"}
            assert client.post("/v1/unload_lora_adapter", json=unload).status_code == 200
        thread.join(60)
        assert got == [wanted]
        names = [each["id"] for each in client.get("/v1/models").json()["data"]]
        assert "demo:mine" not in names
        # a number that clients know an adapter by is never another's
        other = {**load, "lora_name": "other"}
        assert client.post("/v1/load_lora_adapter", json=other).status_code == 200
        ids = {each["name"]: each["id"] for each in client.get("/lora-adapters").json()}
        assert ids["other"] == len(demo.INTRINSICS) + 1
        gone = client.post(CHAT, json={**ASKED, "lora": [{"id": len(demo.INTRINSICS)}]})
        assert gone.status_code == 404
        client.post("/v1/unload_lora_adapter", json={"lora_name": "other"})
    assert idle(server)
    assert set(server.service.model.adapters) == set(demo.INTRINSICS)


def _text(client: httpx.Client, asked: dict[str, Any]) -> str:
    with client.stream("POST", CHAT, json=asked) as answer:
        lines = [line for line in answer.iter_lines() if line.startswith("data: {")]
    parts = [json.loads(line.removeprefix("data: ")) for line in lines]
    return "".join(part["choices"][0]["delta"].get("content", "") for part in parts)


@pytest.mark.parametrize("path", ["../x.gguf", "/etc/passwd", "a/../../x.gguf", "link.gguf"])
def test_adapters_are_loaded_from_below_the_directory_alone(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    (tmp_path / "x.gguf").write_bytes(demo.adapter_path("jailbreak").read_bytes())
    (folder / "link.gguf").symlink_to(tmp_path / "x.gguf")
    with serving(adapters_dir=folder) as server:
        answer = httpx.post(
            server.url + "/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": path}
        )
        assert answer.status_code == 403
        assert str(tmp_path) not in answer.text
        (folder / "junk.gguf").write_bytes(b"junk")
        for name in ("junk.gguf", "none.gguf"):
            asked = {"lora_name": "x", "lora_path": name}
            wrong = httpx.post(server.url + "/v1/load_lora_adapter", json=asked)
            assert wrong.status_code in (400, 404)
            assert name in wrong.text
            assert str(tmp_path) not in wrong.text
