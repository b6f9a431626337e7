"""The converter's fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_repos import Hub, write_gguf
from tests.support.hub_server import HubServer, Padded, running
from tests.support.peft_files import Case, sound_case


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return sound_case(tmp_path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub of our own, for a client without anybody's token."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "")
    with running() as server:
        yield server


@pytest.fixture
def hub(server: HubServer, tmp_path: Path) -> Hub:
    return Hub(endpoint=server.url, cache=tmp_path / "cache", timeout=5.0)


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Padded:
    """4 GiB of a base, of which only the header of some kilobytes exists."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", tokens=100)


@pytest.fixture(scope="session")
def large_gguf(tmp_path_factory: pytest.TempPathFactory) -> Padded:
    """The same with a header of 9 MB."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", tokens=460_000)
