"""A hub of our own, a store of our own, and the command line between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tiny_base
from tests.support.hub_server import running
from tests.support.pulling import BASE, Pulling
from tests.support.pulls import peft_files


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base.write_base(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def pulling(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Pulling]:
    from huggingface_hub import constants, file_download

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "")
    with running() as server:
        found = Pulling(server, tmp_path, tiny, capsys)
        # these are looked at only when the client is imported
        url = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
        for module in (constants, file_download):  # versions before 1 have a copy
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", url, raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(found.cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("ALORA_GGUF_HOME", str(found.home))
        monkeypatch.syspath_prepend(found.packages)
        yield found


@pytest.fixture
def sure(pulling: Pulling, tmp_path: Path) -> tuple[str | Path, ...]:
    """Arguments to pull an adapter that is on the hub, beside a base."""
    pulling.server.add("me/sure", peft_files(tmp_path / "peft"))
    pulling.server.add(BASE, {"tiny.gguf": pulling.base.read_bytes()})
    return ("pull", "me/sure", "--base", pulling.base)
