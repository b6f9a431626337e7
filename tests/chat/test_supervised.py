"""Prompts and right replies in tokens are those that the runtime reads and writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import alora_gguf as ag
from alora_gguf import demo
from alora_gguf.demo.script import DOCUMENTS
from alora_gguf.engine.loading import BareVocabulary
from alora_gguf.generate.sampling import usual_tokens
from tests.support import vocabularies

TURNS = [
    {"role": "user", "content": "When does the Bomel library open?"},
    {"role": "assistant", "content": "The Bomel library opens at 9:30."},
    {"role": "user", "content": "And who runs it?"},
]


@pytest.fixture(scope="module")
def model() -> Iterator[ag.Model]:
    with ag.Model(demo.base_path(), adapters=demo.adapter_paths(), n_threads=1) as opened:
        yield opened


@pytest.mark.parametrize("name", demo.INTRINSICS)
def test_they_are_what_an_answer_is_made_of(model: ag.Model, name: str) -> None:
    with model.chat(messages=TURNS, documents=DOCUMENTS[:3]) as chat:
        result = chat.invoke(name)
        found = chat.supervise(name, json.loads(result.text))
    timings = result.timings
    assert len(found.prompt) == timings.reused + timings.evaluated
    invocation = model.adapter(name).invocation
    assert found.prompt[found.first :][: len(invocation)] == invocation
    assert model.detokenize(found.reply[:-1]) == result.text
    assert found.reply[-1] in model.end_tokens
    assert 0 < found.n_forced < len(found.reply)

    # greedy decoding goes the same way, from where it has a choice
    with model.session() as session:
        tokens = [*found.prompt, *found.reply[:-1]]
        first = len(found.prompt) + found.n_forced
        said = session.score(tokens, first=first, logprobs=1, adapter=name)
    if name == "query_rewrite":  # which no schema constrains further
        assert [each.token for each in said] == [each.top[0].token for each in said]


def test_answers_that_the_contract_excludes_are_refused(model: ag.Model) -> None:
    with model.chat(messages=TURNS) as chat:
        for answer in ({"jailbreak": "perhaps"}, {"jailbreak": True}, {}, "yes", 3, None):
            with pytest.raises(ag.InputError, match="does not match the schema"):
                chat.supervise("jailbreak", answer)
        with pytest.raises(ag.UnknownAdapterError):
            chat.supervise("nothing", "yes")
        assert not chat.session.tokens  # nothing was read


def test_a_plain_lora_acts_from_the_start(tmp_path: Path, model: ag.Model) -> None:
    model.load_adapter("plain", demo.adapter_path("jailbreak"), from_start=True)
    try:
        with model.chat(messages=TURNS) as chat:
            assert chat.supervise("plain", {"jailbreak": "no"}).first == 0
    finally:
        model.unload_adapter("plain")


@pytest.mark.parametrize("kind", ["byte_level", "sentence_piece"])
@pytest.mark.parametrize("text", ["the a", "<a", "a. <<b>>", "the\nthe", " in", "é", ""])
def test_texts_have_tokens_that_spell_them(kind: str, text: str, tmp_path: Path) -> None:
    """Also where the vocabulary puts a space before every text."""
    made: Any = getattr(vocabularies, kind)()
    path = vocabularies.write_gguf(tmp_path / "base.gguf", made)
    opened = BareVocabulary(path, "base")
    try:
        tokens = usual_tokens(text.encode(), opened.vocab)
        assert b"".join(map(opened.vocab.piece, tokens)) == text.encode()
        assert bool(tokens) == bool(text)
    finally:
        opened.close()
