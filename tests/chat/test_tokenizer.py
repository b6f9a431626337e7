"""A base's vocabulary and template without its weights: the same tokens, and a clean end."""

from __future__ import annotations

from pathlib import Path

import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.chat.prompt import Dialogue
from alora_gguf.chat.tokenizer import Tokenizer
from alora_gguf.messages import Document, Message
from tests.support import tiny_base


def test_it_tokenizes_as_the_model_does() -> None:
    said, page = (Message("user", "When does it open?"),), (Document("At nine."),)
    with Tokenizer(demo.base_path()) as tokenizer:
        tokens = Dialogue(tokenizer.template, tokenizer.vocab, said, page).written(prompt=False)
        assert tokenizer.n_trained == 2048
        assert tokenizer.rewinds
    with (
        ag.Model(demo.base_path(), n_ctx=256, n_threads=1) as model,
        model.chat(messages=said, documents=page) as chat,
    ):
        chat.read()
        assert chat.tokens == list(tokens.tokens)


def test_after_close() -> None:
    tokenizer = Tokenizer(demo.base_path())
    tokenizer.close()
    tokenizer.close()
    with pytest.raises(ag.ClosedError, match="the model was closed"):
        tokenizer.vocab.tokenize("x", add_special=False, parse_special=True)


def test_bases_that_will_not_do(tmp_path: Path) -> None:
    bare = tiny_base.write_base(tmp_path / "bare.gguf")
    with pytest.raises(ag.ModelError, match="has no chat template"):
        Tokenizer(bare)
    with pytest.raises(ag.ModelError, match="is an adapter"):
        Tokenizer(demo.adapter_path("jailbreak"))
    with pytest.raises(ag.ModelError, match=r"none\.gguf: "):
        Tokenizer(tmp_path / "none.gguf")
