"""Texts and a model, apart from conversations: bytes of tokens."""

from __future__ import annotations

import pytest

import alora_gguf as ag


def test_the_bytes_of_tokens_are_the_bytes_of_their_text(model: ag.Model) -> None:
    text = "naïve 😊 words"
    tokens = model.tokenize(text)
    assert b"".join(map(model.token_bytes, tokens)) == text.encode()
    end = model.end_tokens[0]
    assert model.token_bytes(end) == b""
    assert model.token_bytes(end, special=True).decode() == model.detokenize([end], special=True)
    with pytest.raises(ag.InputError, match=r"token: token 0 is -1, expected an id in \[0, "):
        model.token_bytes(-1)
