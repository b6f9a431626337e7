"""Numbers the sentences of messages and documents, and knows afterwards which number was which.

Splitting is nltk's Punkt without a trained model, so nothing is downloaded, and the sentences are
those that the adapters were trained with.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from alora_gguf.errors import InputError

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


def split(text: str) -> list[str]:
    """The sentences of a text, without the space between them; none of an empty text.

    Raises InputError if nltk is not installed.
    """
    return [str(sentence) for sentence in _splitter().tokenize(text)]


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
    found = split(text)
    return join_tagged(found, prefix, first), _numbered(found, first, document_id, message_index)


def join_tagged(sentences: Sequence[str], prefix: str, first: int) -> str:
    """Sentences with their tags, as one text."""
    return " ".join(f"<{prefix}{first + i}> {text}" for i, text in enumerate(sentences))


def _numbered(
    sentences: Sequence[str], first: int, document_id: str | None, message_index: int | None
) -> list[Sentence]:
    out, begin = [], 0
    for i, sentence in enumerate(sentences):
        text = sentence if i == len(sentences) - 1 else f"{sentence} "
        end = begin + len(text)
        out.append(Sentence(first + i, begin, end, text, document_id, message_index))
        begin = end
    return out


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
