"""Numbers the sentences of messages and documents, and knows afterwards which number was which.

Splitting is nltk's Punkt without a trained model, so nothing is downloaded, and the sentences are
those that the adapters were trained with.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from alora_gguf.errors import InputError
from alora_gguf.messages import Document, Message

LAST_MESSAGE: Final = "last_message"
DOCUMENTS: Final = "documents"
HISTORY: Final = "all_but_last_message"
PLACES: Final = (LAST_MESSAGE, DOCUMENTS, HISTORY)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence that was given a number.

    `begin` and `end` are offsets in characters into its text's sentences joined by single blanks;
    `text` is what is there, with the blank before the next sentence. `document_id` is what its
    document is called, `message_index` which of the messages before the last (from 0) it is of.
    """

    number: int
    begin: int
    end: int
    text: str
    document_id: str | None = None
    message_index: int | None = None


def number_sentences(
    prefixes: Mapping[str, str],
    messages: Sequence[Message],
    documents: Sequence[Document],
) -> tuple[list[Message], list[Document], dict[str, tuple[Sentence, ...]]]:
    """Messages and documents with tags in the places that `prefixes` names, and the sentences by
    place. The last message, which is there if it is named, is counted from 0; documents and the
    messages before the last share a counter.
    """
    messages, documents = list(messages), list(documents)
    sentences: dict[str, list[Sentence]] = {place: [] for place in PLACES if place in prefixes}
    if LAST_MESSAGE in prefixes:
        text, sentences[LAST_MESSAGE] = tag(messages[-1].content, prefixes[LAST_MESSAGE], 0)
        messages[-1] = replace(messages[-1], content=text)
    count = 0
    for i, document in enumerate(documents if DOCUMENTS in prefixes else ()):
        text, found = tag(document.text, prefixes[DOCUMENTS], count, document_id=document.doc_id)
        documents[i] = replace(document, text=text)
        sentences[DOCUMENTS] += found
        count += len(found)
    for i, message in enumerate(messages[:-1] if HISTORY in prefixes else ()):
        text, found = tag(message.content, prefixes[HISTORY], count, message_index=i)
        messages[i] = replace(message, content=text)
        sentences[HISTORY] += found
        count += len(found)
    return messages, documents, {place: tuple(found) for place, found in sentences.items()}


def tag(
    text: str,
    prefix: str,
    first: int,
    *,
    document_id: str | None = None,
    message_index: int | None = None,
) -> tuple[str, list[Sentence]]:
    """The text with `<{prefix}{number}> ` before each sentence, counted from `first`; and them.

    Sentences are joined by single blanks, whatever stood between them.
    """
    texts = split(text)
    found, begin = [], 0
    for i, sentence in enumerate(texts):
        said = sentence if i == len(texts) - 1 else f"{sentence} "
        end = begin + len(said)
        found.append(Sentence(first + i, begin, end, said, document_id, message_index))
        begin = end
    return "".join(f"<{prefix}{sentence.number}> {sentence.text}" for sentence in found), found


def split(text: str) -> list[str]:
    """The sentences of a text, without the space between them; none of an empty text.

    Raises InputError if nltk is not installed.
    """
    return [str(sentence) for sentence in _splitter().tokenize(text)]


@functools.cache
def _splitter() -> Any:
    try:
        from nltk.tokenize.punkt import PunktSentenceTokenizer
    except ImportError as error:
        raise InputError(
            f"this intrinsic numbers sentences, which nltk splits, but {error.name or 'it'} "
            "is not installed: pip install 'alora-gguf[sentences]'"
        ) from None
    return PunktSentenceTokenizer()
