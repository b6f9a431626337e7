"""`alora-gguf pull` where the hub, the network, the disk or the person says no."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import SIGNATURE, TOKEN, Handler
from tests.support.pulling import BASE, MAIN, PULL_BASE, Pulling
from tests.support.pulls import peft_files

# The hub and the network -------------------------------------------------------------------------


def test_a_download_that_breaks_off_goes_on_where_it_was(
    pulling: Pulling, sure: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # huggingface_hub keeps whole chunks, of ten megabytes
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    sent: list[str | None] = []

    def cut(handler: Handler) -> bool:
        if not handler.server.storage or handler.command != "GET":
            return False
        sent.append(handler.headers.get("Range"))
        if len(sent) > 1:
            return False
        data = pulling.base.read_bytes()
        handler.reply(200, data[:100_000], promised=len(data))
        return True

    pulling.server.trouble = cut
    outcome = pulling(*PULL_BASE)
    assert (outcome.status, outcome.err) == (0, "")
    assert sent == [None, "bytes=100000-"]
    assert pulling.store.resolve("tiny").read_bytes() == pulling.base.read_bytes()
    assert pulling.left_over() == []
    assert SIGNATURE not in outcome.out


def test_what_arrived_whole_is_not_fetched_again(
    pulling: Pulling, sure: tuple[str | Path, ...]
) -> None:
    """A pull that fails half-way goes on with the files that it lacks."""

    def refuse(handler: Handler) -> bool:
        if handler.server.storage:
            handler.refuse(404, "", "gone")
        return handler.server.storage

    pulling.server.trouble = refuse
    assert pulling.error(*sure).startswith("hf://me/sure: 'adapter_model.safetensors': is not on ")
    pulling.server.trouble = None
    before = len(pulling.server.asked)
    assert pulling(*sure).status == 0
    later = [asked.file for asked in pulling.server.asked[before:] if asked.method == "GET"]
    assert [name for name in later if name] == ["adapter_model.safetensors"]


def refusing(status: int, code: str = "") -> Any:
    def refuse(handler: Handler) -> bool:
        handler.refuse(status, code, f"password of {handler.headers.get('Authorization')}")
        return True

    return refuse


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            401,
            "there is no repository {repo} on {host} that you may see; check the name or, if it "
            "is private, log in with `hf auth login` (or set HF_TOKEN)",
        ),
        (403, "{host} refuses access to {repo} (HTTP 403); log in with `hf auth login`, with a "
              "token that may read it"),
        (404, "is not on {host} (any more); try again, or check HF_ENDPOINT"),
        (429, "{host} has had too many requests (HTTP 429); wait some minutes, or log in with "
              "`hf auth login`"),
        (500, "{host} failed with HTTP 500; try again later"),
    ],
)  # fmt: skip
def test_refusals(
    pulling: Pulling, sure: tuple[str | Path, ...], status: int, message: str
) -> None:
    pulling.server.trouble = refusing(status)
    for arguments, repo in ((sure, "me/sure"), (PULL_BASE, BASE)):
        said = message.format(repo=repo, host=pulling.host)
        assert pulling.error(*arguments) == f"hf://{repo}: {said}"
    assert not pulling.home.exists()


def test_repositories_and_revisions_that_are_not_there(
    pulling: Pulling, sure: tuple[str | Path, ...]
) -> None:
    assert pulling.error("pull", "me/other", *sure[2:]).startswith(
        f"hf://me/other: there is no repository me/other on {pulling.host} that you may see"
    )
    assert pulling.error("pull", f"{BASE}@v9", "--file", "*") == (
        f"hf://{BASE}@v9: there is no revision 'v9' of {BASE} on {pulling.host}; check the "
        "branch, tag or commit"
    )


def test_a_token_for_a_private_repository(
    pulling: Pulling, sure: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pulling.server.repos["me/sure"].private = True
    assert "log in with `hf auth login` (or set HF_TOKEN)" in pulling.error(*sure)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    outcome = pulling(*sure)
    assert outcome.status == 0
    assert TOKEN not in outcome.out + outcome.err
    assert {a.authorization for a in pulling.server.asked if a.storage} == {None}


def test_no_network(pulling: Pulling, sure: tuple[str | Path, ...]) -> None:
    pulling.server.close()
    for arguments, repo in ((sure, "me/sure"), (PULL_BASE, BASE)):
        assert pulling.error(*arguments) == (
            f"hf://{repo}: {pulling.host} cannot be reached (Connection refused); check the "
            "network, proxy settings and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use what was "
            "fetched before"
        )


@pytest.mark.parametrize("name", ["../x.gguf", "a/../../x.gguf", "/etc/x.gguf", "C:/x", "a\\..\\x"])
def test_file_names_that_leave_the_repository(pulling: Pulling, tmp_path: Path, name: str) -> None:
    pulling.server.add(BASE, {name: b"x", "tiny.gguf": b"x", **peft_files(tmp_path / "peft")})
    for arguments in (PULL_BASE, ("pull", BASE, "--base", pulling.base)):
        error = pulling.error(*arguments)
        assert error.startswith(
            f"hf://{BASE}: {pulling.host} lists a file whose name leaves the repository ("
        )
        assert error.endswith("; nothing was fetched")
    assert pulling.server.files_asked == []
    assert not pulling.home.exists()


def test_file_names_that_are_odd_are_not_the_stores(pulling: Pulling) -> None:
    """The store's files are called after the entry, whatever they are called on the hub."""
    pulling.server.add(BASE, {"q/-o bad|name?*.gguf": pulling.base.read_bytes()})
    assert pulling("pull", BASE, "--file", "*.gguf").out.startswith("o-bad-name: base, ")
    assert pulling.store.resolve("o-bad-name").name == "o-bad-name.gguf"


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "", ".", "..", ".hidden", "x.gguf", "x.", "con", "a\0b", "ä",
             "x" * 101, "--", "NUL.txt"]
)  # fmt: skip
def test_names_that_are_none(pulling: Pulling, sure: tuple[str | Path, ...], name: str) -> None:
    for arguments in (sure, PULL_BASE):
        error = pulling.error(*arguments, f"--name={name}")
        assert error.endswith(
            " is not a name for the store: expected up to 100 letters, digits, '.', '_' and '-', "
            "the first a letter or a digit, the end neither '.' nor '.gguf', and no device of "
            "Windows such as con"
        )
    assert pulling.left_over() == []


# Without a network, on purpose -------------------------------------------------------------------


@pytest.mark.slow
def test_offline(pulling: Pulling, sure: tuple[str | Path, ...]) -> None:
    away = {"HF_HUB_OFFLINE": "1"}
    for arguments, repo in ((sure, "me/sure"), (PULL_BASE, BASE)):
        outcome = pulling.process(*arguments, **away)
        assert (outcome.status, outcome.out) == (1, "")
        assert outcome.err == (
            f"Error: hf://{repo}: is not in the cache {pulling.cache}, and HF_HUB_OFFLINE keeps it "
            "from being fetched; unset it, or fetch once while there is a network\n"
        )
    for arguments in (sure, PULL_BASE):
        assert pulling.process(*arguments).status == 0
    asked = len(pulling.server.asked)
    before = {entry.name: entry for entry in pulling.store.contents().entries}
    for arguments, name in ((sure, "sure"), (PULL_BASE, "tiny")):
        outcome = pulling.process(*arguments, "--json", **away)
        assert (outcome.status, outcome.err) == (0, "")
        assert outcome.json["changed"] is False
        assert pulling("rm", name).status == 0
        assert pulling.process(*arguments, "--json", **away).json["changed"] is True
        after = pulling.store.get(name)
        assert (after.files, after.about) == (before[name].files, before[name].about)
    outcome = pulling.process("pull", BASE, "--file", "*Q4*", **away)
    assert outcome.err == (
        f"Error: hf://{BASE}: none of its GGUF files is '*Q4*'; there are tiny.gguf\n"
    )
    assert len(pulling.server.asked) == asked


# The disk ----------------------------------------------------------------------------------------


def test_a_store_that_is_a_file(pulling: Pulling, sure: tuple[str | Path, ...]) -> None:
    pulling.home.write_bytes(b"precious")
    for arguments in (sure, PULL_BASE, ("list",), ("rm", "x")):
        assert pulling.error(*arguments).startswith(f"the store {pulling.home} cannot be ")
    assert pulling.home.read_bytes() == b"precious"


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """Where a small file system can be mounted, by those who run in NAMESPACE."""
    disk = tmp_path / "disk"
    disk.mkdir()
    probe = [*NAMESPACE, f"mount -t tmpfs none '{disk}'"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("mounting a file system without privileges needs Linux's user namespaces")
    return disk


@pytest.mark.parametrize("what", ["adapter", "base", "entry"])
@pytest.mark.slow
def test_a_full_disk(
    pulling: Pulling, sure: tuple[str | Path, ...], small_disk: Path, what: str
) -> None:
    script = (
        'set -e; disk="$1"; shift; mount -t tmpfs -o size=4k none "$disk"\n'
        '"$@" && exit 99\n'  # it should not have been possible
        'find "$disk" -type f -size +0; find "$disk/files" -mindepth 1\n'
    )
    # in F32 the adapter is larger than the disk, in F16 there is no room for its entry
    adapter = (*sure, "--outtype", "f32" if what == "adapter" else "f16")
    arguments = map(str, PULL_BASE if what == "base" else adapter)
    command = [*NAMESPACE, script, "sh", str(small_disk), sys.executable, "-c", MAIN, *arguments]
    environment = pulling.environment(ALORA_GGUF_HOME=str(small_disk))
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert run.stderr == (
        f"Error: the store {small_disk} cannot be written: No space left on device; make room, or "
        "set ALORA_GGUF_HOME to another directory\n"
    )
    assert (run.returncode, run.stdout) == (0, "")


def test_a_full_disk_under_the_cache(
    pulling: Pulling, sure: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert pulling.error(*PULL_BASE) == (
        f"hf://{BASE}: 'tiny.gguf': the cache {pulling.cache} cannot be written: No space left on "
        "device; make room, or set HF_HUB_CACHE to another directory"
    )
