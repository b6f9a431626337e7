"""`alora-gguf serve`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from alora_gguf.cli import run

from alora_gguf import Store, demo
from alora_gguf.serve import Settings
from tests.support import stored


def start(*options: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "alora_gguf", "serve", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_the_demo_until_it_is_told_to_stop(tmp_path: Path, how: signal.Signals) -> None:
    folder = tmp_path / "switch"
    process = start("--index", str(folder), ALORA_API_KEY="secret")
    try:
        assert process.stdout is not None
        lines = []
        while not (line := process.stdout.readline()).startswith("Serving demo at http://127."):
            lines.append(line)
            assert line, process.communicate()
        url = line.split()[-1]
        assert f"adapter_source={str(folder)!r}" in "".join(lines)
        index = json.loads((folder / "adapter_index.json").read_text())
        assert [each["adapter_name"] for each in index["adapters"]] == list(demo.INTRINSICS)
        assert all((folder / each["io_config"]).is_file() for each in index["adapters"])
        assert httpx.get(url + "/v1/models").status_code == 401
        key = {"authorization": "Bearer secret"}
        models = httpx.get(url + "/v1/models", headers=key).json()["data"]
        assert len(models) == 6
        process.send_signal(how)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["-m", "smollm2"], "smollm2"),
        (["-m", "Mine"], "Mine"),
        (["-m", "Mine", "--name", "other"], "other"),
        (["-m", str(demo.base_path())], None),  # its file's
        ([], "demo"),
    ],
)
def test_a_base_is_served_by_the_name_that_was_given(
    options: list[str], name: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ALORA_GGUF_HOME", str(tmp_path / "store"))
    stored.add(Store(), "mine", demo.base_path().read_bytes(), kind="base")
    stored.add(Store(), "smollm2", demo.base_path().read_bytes(), kind="base")
    names = []

    class NoServer:
        def __init__(self, _load: object, settings: Settings, **_: object) -> None:
            names.append(settings.name)

        def serve_until_stopped(self) -> None:
            pass

    monkeypatch.setattr("alora_gguf.serve.Server", NoServer)
    assert run(["serve", *options]) == 0
    assert names == [name]


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run(["serve", "--port", port]) == 1
    assert f"127.0.0.1:{port}: cannot listen there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["-a", "x=/nowhere.gguf"], "/nowhere.gguf"),
        (["-m", "/nowhere.gguf"], "/nowhere.gguf"),
        (["-a", "jailbreak=x.gguf"], "two adapters are named 'jailbreak'"),
        (["--api-key", ""], "API key is empty"),
        (["--name", "a:b"], "without ':'"),
        (["--cors", "localhost:3000"], "is no origin"),
        (["--index", "/proc/nothing"], "/proc/nothing"),
        (["--contract", f"nobody={demo.io_yaml_path('jailbreak')}"], "no adapter here"),
    ],
)
def test_what_is_wrong_is_said(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "--port", "0", *options]) == 1
    assert says in capsys.readouterr().err


def test_a_template_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bad.jinja"
    file.write_text("{% if %}")
    assert run(["serve", "--port", "0", "--chat-template", str(file)]) == 1
    assert "the chat template cannot be parsed" in capsys.readouterr().err


def test_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [each for each in sys.modules if each.startswith("alora_gguf.serve")]:
        monkeypatch.delitem(sys.modules, name)
    hidden: Any = None
    monkeypatch.setitem(sys.modules, "starlette", hidden)
    for name in [each for each in sys.modules if each.startswith("starlette.")]:
        monkeypatch.setitem(sys.modules, name, hidden)
    assert run(["serve"]) == 1
    assert "pip install 'alora-gguf[serve]'" in capsys.readouterr().err
