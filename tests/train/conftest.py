"""A tiny base with a chat template, and examples for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny_base
from tests.support.chats import PLAIN

WriteLines = Callable[..., Path]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base.write_base(tmp_path_factory.mktemp("base") / "base.gguf", template=PLAIN)


def example(i: int, **more: Any) -> dict[str, Any]:
    """About one of four documents: is there an x in the user's words?"""
    word = f"{'x' if i % 3 == 0 else 'o'}{chr(97 + i % 7)}"
    return {
        "documents": [f"the {'rain' * (i % 4 + 1)}"],
        "messages": [{"role": "user", "content": f"a {word} ?"}],
        "answer": "yes" if i % 3 == 0 else "no",
        **more,
    }


@pytest.fixture
def lines(tmp_path: Path) -> WriteLines:
    """Writes examples, or lines as they are, into a file of a name."""

    def write(values: Sequence[Any], name: str = "x.jsonl") -> Path:
        file = tmp_path / name
        texts = [each if isinstance(each, str) else json.dumps(each) for each in values]
        file.write_text("\n".join(texts) + "\n")
        return file

    return write
