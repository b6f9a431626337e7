"""The names of a model's parts."""

from __future__ import annotations

import pytest

from alora_gguf.gguf.base import models_in, parts_of, stem_of

PARTS = ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("name", "parts", "stem"),
    [
        ("a/m.gguf", ["a/m.gguf"], "a/m"),
        ("m-00002-of-00002.gguf", ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], "m"),
        ("m-00001-of-00001.gguf", ["m-00001-of-00001.gguf"], "m-00001-of-00001"),
        ("m-00003-of-00002.gguf", ["m-00003-of-00002.gguf"], "m-00003-of-00002"),
        ("m-00000-of-00002.gguf", ["m-00000-of-00002.gguf"], "m-00000-of-00002"),
        ("m-00001-of-99999.gguf", ["m-00001-of-99999.gguf"], "m-00001-of-99999"),
        ("-00001-of-00002.gguf", ["-00001-of-00002.gguf"], "-00001-of-00002"),
    ],
)
def test_names_of_parts(name: str, parts: list[str], stem: str) -> None:
    assert parts_of(name) == parts
    assert stem_of(name) == stem


def test_models_among_files() -> None:
    assert models_in(["b.txt", *reversed(PARTS), "a.gguf"]) == [["a.gguf"], PARTS]
