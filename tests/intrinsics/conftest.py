"""The peer of these tests: mellea, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.mellea import Mellea


@pytest.fixture(scope="session")
def mellea() -> Iterator[Mellea]:
    pytest.importorskip("pydantic", reason="mellea's formatters need it")
    peer = Mellea()
    yield peer
    peer.close()
