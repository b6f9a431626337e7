"""A server of the demo model, and the Python API on the same files beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf.serve import Server
from tests.support.serving import open_exact, serving

DOCUMENTS = [{"text": "The ferry to Harwich leaves at nine.", "doc_id": "1"}]
QUESTION = {"role": "user", "content": "When does the ferry to Harwich leave?"}


def package(name: str) -> Any:
    return pytest.importorskip(name, reason=f"{name} is not installed: make test-clients")


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with serving(open_exact) as server:
        yield server


@pytest.fixture(scope="package")
def model() -> Iterator[ag.Model]:
    with open_exact() as model:
        yield model


@pytest.fixture(scope="package")
def said(model: ag.Model) -> str:
    """What the Python API replies to QUESTION, by the likeliest tokens."""
    with model.chat(messages=[QUESTION]) as chat:
        return chat.reply(temperature=0, max_tokens=24).text
