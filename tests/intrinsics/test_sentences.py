"""Numbered sentences: what is tagged is found again, whatever the text."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alora_gguf.errors import InputError
from alora_gguf.intrinsics import Contract, rewrite
from alora_gguf.intrinsics.sentences import Sentence, _splitter, split, tag
from alora_gguf.messages import Document, Message

SENTENCES = st.lists(
    st.sampled_from(["Yes.", "Is it?", "The cat sleeps.", "No!", "été.", "See <x>.", "1 of 2."]),
    max_size=6,
)
TEXTS = st.one_of(st.text(max_size=80), SENTENCES.map(" ".join), SENTENCES.map("\n\n".join))


def untagged(text: str, prefix: str, first: int, count: int) -> list[str]:
    """What stands between the tags, told from the text alone."""
    if not count:
        return []
    tags = " ".join(f"<{prefix}{first + i}> (.*)" for i in range(count))
    match = re.fullmatch(tags, text, re.DOTALL)
    assert match is not None
    return list(match.groups())


@settings(deadline=None)
@given(SENTENCES, st.integers(0, 12), st.sampled_from(["c", "r", "i "]))
def test_tags_come_off_again(sentences: list[str], first: int, prefix: str) -> None:
    text, found = tag(" ".join(sentences), prefix, first)
    split_again = split(" ".join(sentences))
    assert untagged(text, prefix, first, len(found)) == split_again
    assert [sentence.text.rstrip() for sentence in found] == split_again


@settings(deadline=None)
@given(TEXTS, st.integers(0, 12))
@example("?!", 0)
def test_sentences_cover_the_text(text: str, first: int) -> None:
    tagged, found = tag(text, "c", first, document_id="d", message_index=3)
    joined = " ".join(split(text))
    assert "".join(sentence.text for sentence in found) == joined
    for i, sentence in enumerate(found):
        assert joined[sentence.begin : sentence.end] == sentence.text
        assert (sentence.number, sentence.document_id) == (first + i, "d")
        assert f"<c{first + i}> {sentence.text}" in tagged + " "
    # only space is lost or won: "?!" are two sentences to Punkt, and so to the adapters
    assert "".join(joined.split()) == "".join(text.split())


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.lists(TEXTS, max_size=3))
def test_every_number_stands_for_one_sentence(messages: list[str], documents: list[str]) -> None:
    contract = Contract.parse(
        "model: ~\nresponse_format: ~\ntransformations: ~\n"
        "sentence_boundaries: {last_message: r, documents: c, all_but_last_message: c}\n"
    )
    request = rewrite(
        contract,
        [Message("user", text) for text in messages],
        [Document(text, doc_id=str(i)) for i, text in enumerate(documents)],
    )
    places = request.sentences
    shared = [*places["documents"], *places["all_but_last_message"]]
    assert [s.number for s in shared] == list(range(len(shared)))
    assert [s.number for s in places["last_message"]] == list(range(len(split(messages[-1]))))
    by_document = [s.text for s in places["documents"] if s.document_id == "0"]
    assert "".join(by_document) == " ".join(split(documents[0] if documents else ""))
    for sentence in places["all_but_last_message"]:
        assert sentence.message_index is not None
        assert sentence.text.rstrip(" ") in request.messages[sentence.message_index].content
        assert f"<c{sentence.number}> " in request.messages[sentence.message_index].content


def test_offsets() -> None:
    text, found = tag("Hello there.  Mr. Fox!\nBye", "s", 4)
    assert text == "<s4> Hello there. <s5> Mr. <s6> Fox! <s7> Bye"
    assert found[0] == Sentence(4, 0, 13, "Hello there. ")
    assert found[3] == Sentence(7, 22, 25, "Bye")


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_text_without_sentences(text: str) -> None:
    assert tag(text, "c", 0)[1] in ([], [Sentence(0, 0, len(text), text)])


def test_without_nltk(monkeypatch: pytest.MonkeyPatch) -> None:
    _splitter.cache_clear()
    monkeypatch.setitem(sys.modules, "nltk.tokenize.punkt", None)
    with pytest.raises(InputError, match=r"is not installed: pip install 'alora-gguf\[sentences\]"):
        split("a")
    _splitter.cache_clear()
