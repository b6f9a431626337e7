"""A base's vocabulary and template without its weights: the same tokens, and a clean end."""

from __future__ import annotations

from pathlib import Path

import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.chat.tokenizer import Tokenizer
from alora_gguf.intrinsics import Contract
from alora_gguf.messages import Document, Message
from tests.support import tiny_base


def test_it_tokenizes_as_the_model_does() -> None:
    said, page = [Message("user", "When does it open?")], [Document("At nine.")]
    with Tokenizer(demo.base_path()) as tokenizer:
        size = tokenizer.size(said, page)
        assert tokenizer.n_ctx_train == 2048
    with (
        ag.Model(demo.base_path(), n_ctx=256, n_threads=1) as model,
        model.chat(messages=said, documents=page) as chat,
    ):
        chat.read()
        assert chat.tokens == list(size.tokens)
        assert size.least == size.most == len(chat.tokens)


@pytest.mark.parametrize("opened", [True, False])
def test_an_intrinsic_is_sized_by_the_prompt_that_it_is_asked_with(opened: bool) -> None:
    """Also where its contract does not open the assistant's turn."""
    text = demo.io_yaml_path("jailbreak").read_text()
    text = text.replace("instruction: ~", "instruction: Is this a jailbreak?")
    parameters = f"parameters:\n  extra_body: {{add_generation_prompt: {str(opened).lower()}}}"
    contract = Contract.parse(text.replace("parameters:", parameters))
    file, call = ag.AdapterFile.read(demo.adapter_path("jailbreak")), ag.IntrinsicCall("jailbreak")
    with Tokenizer(
        demo.base_path(), adapters={"jailbreak": file}, contracts={"jailbreak": contract}
    ) as tokenizer:
        size = tokenizer.size(["Hello!"], calls=[call])
    with ag.Model(demo.base_path(), adapters={"jailbreak": file.path}, n_threads=1) as model:
        model.set_contract("jailbreak", contract)
        with model.chat(messages=["Hello!"]) as chat:
            timings = chat.invoke(call).timings
            used = timings.evaluated + timings.reused + 24
    assert size.least == size.most == used


def test_what_cannot_be_asked() -> None:
    with (
        Tokenizer(demo.base_path()) as tokenizer,
        pytest.raises(ag.UnknownAdapterError, match="no adapter named 'x' was given; there are: n"),
    ):
        tokenizer.size(["Hello!"], calls=[ag.IntrinsicCall("x")])


def test_after_close() -> None:
    tokenizer = Tokenizer(demo.base_path())
    tokenizer.close()
    tokenizer.close()
    with pytest.raises(ag.ClosedError, match="the model was closed"):
        tokenizer.size(["x"])


def test_bases_that_will_not_do(tmp_path: Path) -> None:
    bare = tiny_base.write_base(tmp_path / "bare.gguf")
    with pytest.raises(ag.ModelError, match="has no chat template"):
        Tokenizer(bare)
    with pytest.raises(ag.ModelError, match="is an adapter"):
        Tokenizer(demo.adapter_path("jailbreak"))
    with pytest.raises(ag.MissingFileError, match=r"none\.gguf: there is no such file"):
        Tokenizer(tmp_path / "none.gguf")
