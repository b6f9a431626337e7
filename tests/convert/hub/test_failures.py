"""What is said where a hub fails, is away, or sends what it should not; and what works without."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from alora_gguf.convert import Pick

from alora_gguf.errors import AloraError, HubError, InputError, MissingFileError
from alora_gguf.gguf.header import GGUFHeader, read_header
from tests.support.hub_repos import Hub, adapter_files, fetch_adapter, fetch_base, write_gguf
from tests.support.hub_server import SIGNATURE, TOKEN, Handler, HubServer, Padded
from tests.support.libraries import README
from tests.support.peft_files import Case

ANY = Pick()


# Without a network -------------------------------------------------------------------------------

FIND = """
import sys
from alora_gguf.convert.find import find_source
from alora_gguf.convert.hub.fetch import fetch_base
from alora_gguf.convert.hub.reference import parse_reference
from alora_gguf.errors import AloraError
try:
    if sys.argv[2] == "adapter":
        print(find_source(sys.argv[1]).directory)
    else:
        print(fetch_base(parse_reference(sys.argv[1])))
except AloraError as error:
    print(f"{type(error).__name__}: {error}")
"""


def run(reference: str, kind: str, folder: Path, **environment: str) -> str:
    """What a process of its own finds, and nothing but that: stderr must stay empty."""
    own = {"HF_HUB_CACHE": str(folder), "HF_TOKEN": "", **environment}
    kept = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY")}
    result = subprocess.run(
        [sys.executable, "-c", FIND, reference, kind],
        env=kept | own,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stderr == ""
    return result.stdout.strip()


def test_the_environment_decides(server: HubServer, tmp_path: Path, small_gguf: Padded) -> None:
    commit = server.add("o/r", {**adapter_files(), "m.gguf": small_gguf, "b/config.json": {}})
    snapshot = tmp_path / "models--o--r" / "snapshots" / commit
    assert run("hf://o/r", "adapter", tmp_path, HF_ENDPOINT=server.url) == str(snapshot)
    assert run("hf://o/r/b", "base", tmp_path, HF_ENDPOINT=server.url) == str(snapshot / "b")
    asked = len(server.asked)
    offline = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "1"}
    assert run("hf://o/r", "adapter", tmp_path, **offline) == str(snapshot)
    assert run("hf://o/r@main/b", "base", tmp_path, **offline) == str(snapshot / "b")
    assert run("hf://o/other", "adapter", tmp_path, **offline) == (
        f"HubError: hf://o/other: is not in the cache {tmp_path}, and HF_HUB_OFFLINE keeps it "
        "from being fetched; unset it, or fetch once while there is a network"
    )
    assert len(server.asked) == asked


def test_the_command_from_a_hub_to_a_file(server: HubServer, case: Case, tmp_path: Path) -> None:
    case.convert()
    local = read_header(case.out)
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = {f"sure/m/alora/{name}": (case.source / name).read_bytes() for name in names}
    commit = server.add("me/library", files | {"README.md": README})
    server.add("me/base-GGUF", {"q/base.gguf": case.base.read_bytes()})
    environment = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN": ""}
    arguments = "convert hf://me/library --base hf://me/base-GGUF/q/base.gguf --outtype f32"
    result = subprocess.run(
        [sys.executable, "-c", "from alora_gguf.__main__ import main; main()", *arguments.split()],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    header = read_header(tmp_path / "sure-m-alora.gguf")
    assert header.string("general.name") == "sure"
    assert header.string("general.license") == "apache-2.0"
    assert commit in map(str, header.metadata.values())
    assert list(header.tensors) == list(local.tensors)
    for name in header.tensors:
        assert header.tensor_data(name) == local.tensor_data(name)
    # of the base only the header, of its other data nothing
    assert not list((tmp_path / "hub" / "models--me--base-GGUF").glob("blobs/*"))


def test_offline(server: HubServer, hub: Hub, tmp_path: Path, small_gguf: Padded) -> None:
    away = Hub(endpoint=server.url, cache=hub.cache, offline=True)
    files = adapter_files("a/m/alora") | adapter_files("a/m/lora")
    commit = server.add("o/r", files | {"m.gguf": small_gguf})
    with pytest.raises(HubError, match=r"hf://o/r: is not in the cache .* HF_HUB_OFFLINE"):
        fetch_adapter("hf://o/r", ANY, hub=away)
    found = fetch_adapter("hf://o/r", Pick(technology="alora"), hub=hub)
    asked = len(server.asked)
    # the other adapter was never fetched, so there is one only
    assert fetch_adapter("hf://o/r", ANY, hub=away) == found
    assert fetch_adapter(f"hf://o/r@{commit}/a", Pick(technology="alora"), hub=away) == found
    for reference in ("hf://o/r@other", "hf://o/r/b", "hf://o/s", "hf://o/r/a/m/lora"):
        with pytest.raises(HubError, match=rf"{reference}: is not in the cache"):
            fetch_adapter(reference, ANY, hub=away)
    with pytest.raises(HubError, match=r"m\.gguf: is not in the cache"):
        fetch_base("hf://o/r/m.gguf", hub=away)
    with pytest.raises(InputError, match=r"hf://o/r/a: has no config\.json"):
        fetch_base("hf://o/r/a", hub=away)
    folder = hub.cache / "models--o--r" / "snapshots" / commit / "a"
    (folder / "config.json").write_text("{}")
    assert fetch_base("hf://o/r/a", hub=away) == folder
    (found.weights).unlink()
    with pytest.raises(MissingFileError, match=r"safetensors: there is no such file; download the"):
        fetch_adapter("hf://o/r", ANY, hub=away)
    assert len(server.asked) == asked


def test_a_gguf_offline(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    padded = write_gguf(tmp_path / "m.gguf", tokens=5, data_bytes=1 << 16)
    server.add("o/r", {"m.gguf": padded[: padded.size]})
    from huggingface_hub import HfApi

    HfApi(endpoint=hub.endpoint).hf_hub_download("o/r", "m.gguf", cache_dir=hub.cache)
    away = Hub(cache=hub.cache, offline=True)
    header = fetch_base("hf://o/r/m.gguf", hub=away)
    assert isinstance(header, GGUFHeader)
    assert header.name == "hf://o/r/m.gguf"
    assert header.metadata == read_header(padded[: padded.size]).metadata


# Failures ----------------------------------------------------------------------------------------


def failure(hub: Hub, reference: str = "hf://o/r") -> AloraError:
    """The error of fetching; it names the reference and nothing secret."""
    fetch = fetch_base if reference.endswith(".gguf") else fetch_adapter
    arguments = (reference,) if fetch is fetch_base else (reference, ANY)
    with pytest.raises(AloraError) as caught:
        fetch(*arguments, hub=hub)  # type: ignore[operator]
    message = str(caught.value)
    assert message.startswith(reference)
    for secret in (TOKEN, SIGNATURE, "Bearer", "password"):
        assert secret not in message
    assert "\n" not in message
    return caught.value


def test_repositories_that_are_not_there(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = server.url.removeprefix("http://")
    message = (
        f"hf://o/r: there is no repository o/r on {host} that you may see; check the name or, if "
        "it is private, log in with `hf auth login` (or set HF_TOKEN)"
    )
    assert str(failure(hub)) == message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert str(failure(hub)) == message
    assert isinstance(failure(hub), HubError)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    server.add("o/r", adapter_files())
    server.repos["o/r"].private = True
    assert str(failure(hub)) == message


def test_gated_repositories(server: HubServer, hub: Hub, small_gguf: Padded) -> None:
    server.add("o/r", adapter_files("a") | {"m.gguf": small_gguf})
    server.repos["o/r"].gated = True
    for reference in ("hf://o/r", "hf://o/r/m.gguf"):
        error = failure(hub, reference)
        assert isinstance(error, HubError)
        assert "o/r is gated: ask for access on its page at 127.0.0.1" in str(error)
        assert "`hf auth login`" in str(error)


def test_revisions_that_are_not_there(server: HubServer, hub: Hub) -> None:
    server.add("o/r", adapter_files())
    error = failure(hub, "hf://o/r@v9")
    assert isinstance(error, HubError)
    assert "there is no revision 'v9' of o/r on 127.0.0.1" in str(error)
    assert str(error).endswith("; check the branch, tag or commit")
    assert str(failure(hub, "hf://o/r@feature/x")).endswith("; a '/' in its name is written %2F")


def answering(status: int, code: str = "", only: str = "") -> Any:
    """Trouble: this status for every request whose path has `only` in it, with an echo of what a
    careless server might echo.
    """

    def answer(handler: Handler) -> bool:
        if only not in handler.path:
            return False
        echo = f"password of {handler.headers.get('Authorization')}"
        handler.refuse(status, code, echo)
        return True

    return answer


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "", "there is no repository o/r on .* log in with `hf auth login`"),
        (403, "", r"refuses access to o/r \(HTTP 403\); log in with `hf auth login`"),
        (404, "", r"is not on .* \(any more\); try again, or check HF_ENDPOINT"),
        (404, "EntryNotFound", r"is not on .* \(any more\)"),
        (418, "", "failed with HTTP 418; try again later"),
        (429, "", r"has had too many requests \(HTTP 429\); wait some minutes"),
        (500, "", "failed with HTTP 500; try again later"),
        (503, "", "failed with HTTP 503; try again later"),
    ],
)
def test_refusals_of_a_hub(
    server: HubServer,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    small_gguf: Padded,
    status: int,
    code: str,
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.add("o/r", adapter_files() | {"m.gguf": small_gguf})
    server.trouble = answering(status, code)
    assert re.search(f"^hf://o/r: .*{message}", str(failure(hub)))
    # the same of the file, once the repository has been described
    server.trouble = answering(status, code, only="/resolve/")
    assert re.search(rf": 'm\.gguf': .*{message}", str(failure(hub, "hf://o/r/m.gguf")))
    if status not in (429, 500, 503):  # for these huggingface_hub tries again for half a minute
        assert re.search(rf"'adapter_config\.json': .*{message}", str(failure(hub)))


def test_a_hub_that_is_not_there(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    server.close()
    assert str(failure(hub)) == (
        f"hf://o/r: {server.url.removeprefix('http://')} cannot be reached (Connection refused); "
        "check the network, proxy settings and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use what "
        "was fetched before"
    )
    nowhere = Hub(endpoint="http://user:password@hub.invalid", cache=tmp_path, timeout=5)
    assert "hub.invalid cannot be reached" in str(failure(nowhere))


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://x", "http://", "http://a:b", "x://"])
def test_endpoints_that_are_none(tmp_path: Path, endpoint: str) -> None:
    with pytest.raises(InputError, match="HF_ENDPOINT is not a hub's address such as https://hugg"):
        fetch_adapter("hf://o/r", ANY, hub=Hub(endpoint=endpoint, cache=tmp_path))


def test_a_hub_that_does_not_answer(server: HubServer, hub: Hub, small_gguf: Padded) -> None:
    server.add("o/r", adapter_files() | {"m.gguf": small_gguf})
    hasty = Hub(endpoint=server.url, cache=hub.cache, timeout=0.2)

    ended = threading.Event()

    def wait(handler: Handler) -> bool:
        return ended.wait(30)

    try:
        server.trouble = wait
        assert "did not answer in time; try again later" in str(failure(hasty))
        server.trouble = lambda handler: handler.server.storage and wait(handler)
        error = str(failure(hasty, "hf://o/r/m.gguf"))
        assert re.search(r"'m\.gguf': 127.0.0.1:\d+ did not answer in time", error)
    finally:
        ended.set()


def test_answers_that_are_no_hubs(server: HubServer, hub: Hub) -> None:
    server.add("o/r", adapter_files())
    bodies = (b"<html>Welcome</html>", b"[]", b'{"sha": "x"}', b"{}", b'"x"', b"", b"\xff")
    for body in bodies:

        def answer(handler: Handler, body: bytes = body) -> bool:
            handler.reply(200, body)
            return True

        server.trouble = answer
        assert re.search("did not (answer as a hub does|name a commit)", str(failure(hub)))
        assert "HF_ENDPOINT" in str(failure(hub))


def test_a_commit_that_leads_elsewhere(server: HubServer, hub: Hub) -> None:
    server.add("o/r", adapter_files())
    info = {"id": "o/r", "sha": "../../../../etc", "siblings": []}

    def answer(handler: Handler) -> bool:
        handler.reply(200, json.dumps(info).encode())
        return True

    server.trouble = answer
    assert "did not name a commit" in str(failure(hub))


def test_files_of_another_commit(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    server.add("o/r", adapter_files())
    messages = {
        "f" * 40: "127.0.0.1:\\d+ sent 'adapter_config.json' of another commit than the one asked",
        "../../../../x": "127.0.0.1:\\d+ sent a X-Repo-Commit header that is not a file name",
    }
    for commit, message in messages.items():

        def answer(handler: Handler, commit: str = commit) -> bool:
            if "/resolve/" not in handler.path:
                return False
            handler.reply(200, b"{}", X_Repo_Commit=commit, ETag=f'"{commit[-1] * 40}"')
            return True

        server.trouble = answer
        assert re.search(message, str(failure(hub)))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("header", ["ETag", "X_Linked_Etag", "X_Repo_Commit", "X_Xet_Hash"])
@pytest.mark.parametrize("name", ["{outside}/evil", "../../../../evil", "a/b", "..", "a\\b", ""])
@pytest.mark.parametrize("second", [False, True])
def test_headers_that_are_paths(
    server: HubServer, hub: Hub, tmp_path: Path, header: str, name: str, second: bool
) -> None:
    """huggingface_hub would write a file there; also if only the second answer is bad."""
    server.add("o/r", adapter_files())
    asked = 0

    def answer(handler: Handler) -> bool:
        nonlocal asked
        if "/resolve/" not in handler.path:
            return False
        asked += 1
        good = {"X_Repo_Commit": server.repos["o/r"].revisions["main"], "ETag": '"abc"'}
        bad = {header: f'"{name.format(outside=tmp_path)}"'} if asked > second else {}
        handler.reply(200, b"{}", **(good | bad))
        return True

    server.trouble = answer
    error = str(failure(hub))
    if not second:  # else the first answer may be all that is asked for, and is no configuration
        assert "header that is not a file name" in error
    assert sorted(path.name for path in tmp_path.rglob("*evil*")) == []
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


def test_missing_files_name_no_path(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    """Of those huggingface_hub notes the commit that the answer names."""
    server.add("o/r", adapter_files())

    def answer(handler: Handler) -> bool:
        if "/resolve/" in handler.path:
            handler.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=f"{tmp_path}/evil")
        return "/resolve/" in handler.path

    server.trouble = answer
    assert "header that is not a file name" in str(failure(hub))
    assert list(tmp_path.rglob("*evil*")) == []


def test_bodies_without_an_end(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alora_gguf.convert.hub.guard._MAX_LISTING", 1 << 20)
    server.add("o/r", adapter_files())
    for where in ("/api/", "/resolve/"):

        def answer(handler: Handler, where: str = where) -> bool:
            if where not in handler.path:
                return False
            commit = server.repos["o/r"].revisions["main"]
            handler.reply(200, b" " * (4 << 20), X_Repo_Commit=commit, ETag='"abc"')
            return True

        server.trouble = answer
        assert re.search(r"sent more than the \d+ bytes it had announced", str(failure(hub)))


def test_bodies_that_drip(server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alora_gguf.convert.hub.guard._GRACE", 0.2)
    server.add("o/r", adapter_files())

    def answer(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(1000):
                handler.wfile.write(b" ")
                time.sleep(0.02)
        handler.close_connection = True
        return True

    server.trouble = answer
    started = time.monotonic()
    assert "bytes in 0 seconds; try again later" in str(failure(hub))
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("where", ["/api/", "/resolve/", "/blobs/"])
def test_headers_that_drip(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A byte now and then is never late for a client's own timeout, which is one for each read."""
    monkeypatch.setattr("alora_gguf.convert.hub.guard._PATIENCE", 0.3 - 10)  # beside its 10 s
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 10)
    server.add("o/r", adapter_files())
    stopped = threading.Event()

    def answer(handler: Handler) -> bool:
        if where not in handler.path:
            return False
        with contextlib.suppress(OSError):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not stopped.wait(0.02):
                handler.wfile.write(b"a")
        handler.close_connection = True
        return True

    server.trouble = answer
    started = time.monotonic()
    assert "sent no whole answer in 0 seconds; try again later" in str(failure(hub))
    assert time.monotonic() - started < 5
    stopped.set()
    server.trouble = None
    assert fetch_adapter("hf://o/r", ANY, hub=hub)  # nothing is locked


def test_files_come_over_http_where_xet_is_installed(server: HubServer, hub: Hub) -> None:
    """hf_xet would ask other servers, without our limits of size and time."""
    server.add("o/r", adapter_files())

    asked: list[str] = []
    reply = Handler.reply

    def with_xet(handler: Handler, status: int, *arguments: Any, **headers: Any) -> None:
        asked.append(handler.path)
        if "/resolve/" in handler.path:
            headers |= {"X_Xet_Hash": "a" * 64, "X_Xet_Refresh_Route": f"{server.url}/xet-token"}
        reply(handler, status, *arguments, **headers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handler, "reply", with_xet)
        assert fetch_adapter("hf://o/r", ANY, hub=hub)
    assert any("/blobs/" in path for path in asked)
    assert not any("xet" in path for path in asked)


def test_downloads_that_end_early(server: HubServer, hub: Hub, small_gguf: Padded) -> None:
    server.add("o/r", adapter_files() | {"m.gguf": small_gguf})

    def half(handler: Handler) -> bool:
        if handler.command != "GET" or not handler.server.storage:
            return False
        handler.reply(200, b"GGUF", ETag='"x"')
        return True

    server.trouble = half
    assert "'adapter_model.safetensors': did not arrive whole" in str(failure(hub))
    assert "hf://o/r/m.gguf: did not arrive whole; try" in str(failure(hub, "hf://o/r/m.gguf"))

    def cut(handler: Handler) -> bool:
        if not handler.server.storage:
            return False
        handler.reply(206, b"GGUF", promised=5000, Content_Range="bytes 0-4999/5000")
        return True

    server.trouble = cut
    error = str(failure(hub, "hf://o/r/m.gguf"))
    assert "'m.gguf': the connection to 127.0.0.1" in error
    assert "broke off; try again" in error


def test_pages_instead_of_files(server: HubServer, hub: Hub, small_gguf: Padded) -> None:
    server.add("o/r", {"m.gguf": small_gguf})

    def page(handler: Handler) -> bool:
        if handler.server.storage:
            handler.reply(200, b"<!DOCTYPE html><html>Please log in to this WiFi</html>")
        return handler.server.storage

    server.trouble = page
    assert "is not a GGUF file: an HTML page" in str(failure(hub, "hf://o/r/m.gguf"))


def test_other_bytes_than_those_asked_for(server: HubServer, hub: Hub, small_gguf: Padded) -> None:
    server.add("o/r", {"m.gguf": small_gguf})
    for status, span in ((206, "bytes 5-9/10"), (206, ""), (204, "")):

        def wrong(handler: Handler, status: int = status, span: str = span) -> bool:
            if handler.server.storage:
                handler.reply(status, b"" if status == 204 else b"12345", Content_Range=span)
            return handler.server.storage

        server.trouble = wrong
        assert f"sent other bytes of 'm.gguf' than those asked for (HTTP {status})" in str(
            failure(hub, "hf://o/r/m.gguf")
        )


def test_a_cache_that_cannot_be_written(server: HubServer, tmp_path: Path) -> None:
    server.add("o/r", adapter_files())
    (tmp_path / "file").touch()
    hub = Hub(endpoint=server.url, cache=tmp_path / "file" / "cache", timeout=5)
    error = str(failure(hub))
    assert "'adapter_config.json': the cache" in error
    assert "cannot be written: Not a directory; make room, or set HF_HUB_CACHE" in error


def test_listings_without_sizes(server: HubServer, hub: Hub, small_gguf: Padded) -> None:
    server.add("o/r", {"m.gguf": small_gguf})
    commit = server.repos["o/r"].revisions["main"]
    info = {"id": "o/r", "sha": commit, "siblings": [{"rfilename": "m.gguf", "size": "5"}]}

    def answer(handler: Handler) -> bool:
        handler.reply(200, json.dumps(info).encode())
        return True

    server.trouble = answer
    assert "does not say how large it is; download it" in str(failure(hub, "hf://o/r/m.gguf"))
