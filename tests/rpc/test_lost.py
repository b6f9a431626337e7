"""Servers that are not there, not free, or lost: one error that says so, and the process lives."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import alora_gguf as ag
from alora_gguf import cli, demo
from tests.support.rpc import RpcServer, rpc_servers
from tests.support.serving import serving

LOST = "the RPC server was lost, and with it the layers and the cells that it held"


@pytest.fixture
def server() -> Iterator[RpcServer]:
    with rpc_servers(1) as (server,):
        yield server


def opened(*endpoints: str) -> ag.Model:
    adapter = demo.adapter_path("answerability")
    return ag.Model(demo.base_path(), adapters={"answerability": adapter}, rpc=endpoints)


def test_between_two_calls(server: RpcServer, tmp_path: Path) -> None:
    with opened(server.endpoint) as model, model.chat() as chat:
        chat.say("Hello", max_tokens=4)
        server.kill()
        for call in (
            lambda: chat.say("Hello"),
            lambda: chat.invoke("answerability"),
            lambda: model.embed(["hello"]),
            lambda: chat.save(tmp_path / "saved"),
            lambda: model.load_adapter("uncertainty", demo.adapter_path("uncertainty")),
        ):
            with pytest.raises(ag.RpcError, match=f"{server.endpoint}: {LOST}"):
                call()
    assert not list(tmp_path.iterdir())  # not even half a file


def test_while_it_computes(server: RpcServer) -> None:
    """And what waits in the same batches hears of it, too."""
    with opened(server.endpoint) as model, model.session() as session:
        tokens = model.tokenize("a long text " * 500)[:2000]
        read = list[int]()

        def progress(n: int, _of: int) -> None:
            read.append(n)
            if len(read) == 1:
                server.kill()

        with pytest.raises(ag.RpcError, match=LOST):
            session.append(tokens, progress=progress)
        assert max(read) < 2000


def test_the_same_server_started_again(server: RpcServer) -> None:
    """Models that are opened on it anew work; the one that lost it does not come back by itself."""
    with opened(server.endpoint) as lost, lost.chat() as chat:
        chat.say("Hello", max_tokens=4)
        server.kill()
        with pytest.raises(ag.RpcError, match=LOST):
            chat.say("Hello")
        server.start()
        with pytest.raises(ag.RpcError, match=LOST):
            chat.say("Hello")
    with opened(server.endpoint) as model, model.chat() as chat:
        chat.add(ag.Message("user", "When does it open?"))
        assert chat.invoke("answerability").value


def test_two_models_of_one_process(server: RpcServer) -> None:
    with opened(server.endpoint) as one, opened(server.endpoint) as other:
        said = [each.chat().say("Hello", temperature=0, max_tokens=8) for each in (one, other)]
    assert said[0].text == said[1].text


def test_all_who_wait_hear_of_it(server: RpcServer) -> None:
    with opened(server.endpoint) as model:
        chats = [model.chat() for _ in range(4)]
        for chat in chats:
            chat.say("Hello", max_tokens=2)
        server.kill()
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(chat.say, "And then?") for chat in chats]
        for call in calls:
            assert isinstance(call.exception(), ag.RpcError)


def test_behind_http(server: RpcServer) -> None:
    """A client is told that it is the server's fault, and who watches it hears of it."""
    asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    url = "/v1/chat/completions"
    with (
        serving(lambda: opened(server.endpoint)) as http,
        httpx.Client(base_url=http.url, timeout=60) as client,
    ):
        assert client.post(url, json=asked).status_code == 200
        assert client.get("/health").json()["status"] == "ready"
        server.kill()
        answer = client.post(url, json=asked)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["type"]) == (500, "rpc", "server_error")
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "lost")


def test_run_ends(server: RpcServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What all lines would say is said once; those before it are there."""
    lines = tmp_path / "lines.jsonl"
    said = [json.dumps([{"role": "user", "content": f"How high is hill {i}?"}]) for i in range(60)]
    lines.write_text("\n".join(said))
    out = tmp_path / "out.jsonl"
    command = ["run", str(lines), "--reply", "-n", "40", "-o", str(out), "--rpc", server.endpoint]

    def kill_when_begun() -> None:
        while not (out.is_file() and out.stat().st_size):
            time.sleep(0.01)
        server.kill()

    killing = threading.Thread(target=kill_when_begun)
    killing.start()
    assert cli.run([*command, "--jobs", "2"]) == cli.EXIT_USER
    killing.join()
    assert LOST in capfd.readouterr().err
    written = out.read_text().splitlines()
    assert 0 < len(written) < 60
    assert not any("error" in json.loads(line) for line in written)


def test_servers_of_which_no_layer_is_on_any() -> None:
    """They are not asked."""
    with ag.Model(demo.base_path(), rpc=["127.0.0.1:1"], n_gpu_layers=0) as model:
        assert model.chat().say("Hello", max_tokens=2).text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which files are open")
def test_many_vain_tries_keep_no_connection() -> None:
    def n_open() -> int:
        return len([*Path("/proc/self/fd").iterdir()])

    before = n_open()
    for _ in range(5):
        with pytest.raises(ag.RpcError):
            opened("127.0.0.1:1")
    assert n_open() <= before + 1


def test_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    absent = "no RPC server of this release of llama.cpp answers there"
    with pytest.raises(ag.RpcError, match=rf"1:{port}: {absent}.* nothing listens"):
        opened(f"127.0.0.1:{port}")


def test_one_that_serves_another_process() -> None:
    """Which takes the connection, and says nothing."""
    busy = socket.create_server(("127.0.0.1", 0))
    with busy, pytest.raises(ag.RpcError, match="serves one process at a time"):
        opened(f"127.0.0.1:{busy.getsockname()[1]}")


@pytest.mark.parametrize(
    "rpc",
    [
        "host",
        "host:",
        "h\0:50052",
        " :50052",
        "host:\u0661",
        ":50052",
        "host:0",
        "host:65536",
        "[::1]:50052",
    ],
)
def test_what_names_no_server(rpc: str) -> None:
    with pytest.raises(ag.InputError, match="rpc must be servers as 'host:port'"):
        ag.ContextOptions(rpc=[rpc])


def test_servers_on_the_command_line(capfd: pytest.CaptureFixture[str], server: RpcServer) -> None:
    for arguments, said in (
        (["--port", str(server.port)], f"{server.endpoint}: cannot listen: Address already in use"),
        (["--host", "localhost"], "host must be an IPv4 address, such as 10.0.0.2"),
    ):
        assert cli.run(["rpc-server", *arguments]) == cli.EXIT_USER
        assert said in capfd.readouterr().err
    assert cli.run(["run", "x", "--reply", "--rpc", server.endpoint, "--ray", "local"]) == 2
    assert "give one of them" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent to a whole console there")
@pytest.mark.parametrize("computing", [False, True])
def test_ctrl_c(server: RpcServer, computing: bool) -> None:
    if computing:
        with opened(server.endpoint) as model, model.session() as session:
            tokens = model.tokenize("a long text " * 500)[:2000]

            def interrupt(*_: object) -> None:
                server.process.send_signal(signal.SIGINT)

            with pytest.raises(ag.RpcError, match=LOST):
                session.append(tokens, progress=interrupt)
    else:
        server.process.send_signal(signal.SIGINT)
    _, err = server.process.communicate(timeout=20)
    assert (server.process.returncode, err) == (0, "Ended.\n")


def test_a_client_that_is_gone_makes_room_for_the_next(server: RpcServer) -> None:
    program = (
        "import os; import alora_gguf as ag; from alora_gguf import demo\n"
        f"model = ag.Model(demo.base_path(), rpc=[{server.endpoint!r}])\n"
        "os._exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 7
    with opened(server.endpoint) as model:
        assert model.chat().say("Hello", max_tokens=2).text
