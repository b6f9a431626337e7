"""One server for all tests that change nothing of it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from alora_gguf.serve import Server
from tests.support.serving import serving


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
