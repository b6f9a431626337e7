"""Passages: some clean sentences in a row, of an article."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from . import sources

# words of a passage: a laptop computes its keys and values in a second
_FEWEST: Final = 60
_MOST: Final = 170
_SENTENCE: Final = (4, 45)  # words of a sentence
_FOREIGN: Final = re.compile(r"""[`\[\]{}<>|_*=\\]|\.\.|http|@|"[^"]*$|^[^(]*\)|\([^)]*$""")
# what the shallow grammar does not read
_HARD: Final = re.compile(r"""[;:"`()\[\]{}<>|_*=/\\?!…—–]|--|\s-|''|\.\.|http|@|\be\.g|\bi\.e""")


class Word(NamedTuple):
    """A token, the space before it, its part of speech (Universal Dependencies'), its lemma, and
    the entity it belongs to ("DATE 7" begins at token 7) or "".
    """

    text: str
    space: str
    tag: str
    lemma: str
    entity: str


@dataclass(frozen=True)
class Sentence:
    """`begins_lower`: its first word is no name and would be written small elsewhere."""

    words: tuple[Word, ...]
    begins_lower: bool = False

    @cached_property
    def text(self) -> str:
        return said(self.words)

    @cached_property
    def plain(self) -> bool:
        """Without brackets, quotations and the like."""
        return not _HARD.search(self.text)


@dataclass(frozen=True)
class Passage:
    """`article` names the source and the article: passages of one article stay in one split."""

    source: str
    article: str
    sentences: tuple[Sentence, ...]

    def text(self, without: int | None = None) -> str:
        return " ".join(s.text for i, s in enumerate(self.sentences) if i != without)


def said(words: Sequence[Word]) -> str:
    """The words as text, without space at the ends."""
    return "".join(w.space + w.text for w in words).strip()


def sentence(words: Sequence[Sequence[Any]]) -> Sentence:
    """One of tag.mjs's; any space between its words becomes one."""
    return Sentence(tuple(Word(w[0], " " if w[1] else "", *w[2:]) for w in words))


def with_small_beginnings(paragraphs: list[list[Sentence]]) -> list[list[Sentence]]:
    """The same, having learnt from all of them which words are written small."""
    small, capital = Counter[str](), Counter[str]()
    for one in (each for paragraph in paragraphs for each in paragraph):
        for w in one.words[1:]:
            (small if w.text.islower() else capital)[w.text.lower()] += 1
    return [
        [
            replace(one, begins_lower=small[first] > 2 * capital[first])
            for one in paragraph
            if (first := one.words[0].text.lower())
        ]
        for paragraph in paragraphs
    ]


def is_clean(one: Sentence) -> bool:
    """A whole sentence without what makes it hard to ask about it or looks like leftovers."""
    text = one.text
    n = len(text.split())
    return (
        _SENTENCE[0] <= n <= _SENTENCE[1]
        and text.endswith(".")
        and (text[0].isupper() or text[0].isdigit())
        and not _FOREIGN.search(text)
        and any(w.tag in ("VERB", "AUX") for w in one.words)
    )


def passages(source: str, folder: Path) -> list[Passage]:
    """All passages of a source."""
    articles = sources.articles(source, folder)
    flat = [paragraph for article in articles for paragraph in article.paragraphs]
    read = [[sentence(words) for words in each] for each in sources.tagged(flat, folder)]
    tagged = iter(with_small_beginnings(read))
    found: list[Passage] = []
    seen: set[str] = set()
    for article in articles:
        for _ in article.paragraphs:
            for run in _runs(next(tagged)):
                if run[0].text not in seen:
                    found.append(Passage(source, f"{source} {article.number}", tuple(run)))
                seen.update(s.text for s in run)
    return found


def _runs(sentences: list[Sentence]) -> Iterator[list[Sentence]]:
    """Clean sentences in a row, cut into passages."""
    run: list[Sentence] = []
    n = 0
    for one in [*sentences, None]:
        words = len(one.text.split()) if one is not None else 0
        clean = one is not None and is_clean(one)
        if not clean or n + words > _MOST:
            if n >= _FEWEST and len(run) >= 3:
                yield run
            run, n = [], 0
        if one is not None and clean:
            run.append(one)
            n += words
