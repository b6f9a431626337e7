"""Control tokens in text: where a vocabulary's tokenizer would see them, and the tokens of text in
which some are only quoted.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np

from .tokens import Vocabulary

Marks = tuple[tuple[int, bool], ...]
"""Places in a text, ascending: the character at (index, always) is no part of a special token. What
is `always` so is split behind that character, whatever its tokens would be.
"""

_UNKNOWN, _CONTROL, _USER_DEFINED, _LSTRIP, _RSTRIP = (1 << n for n in (0, 3, 4, 7, 8))
_TAKEN: Final = _UNKNOWN | _CONTROL | _USER_DEFINED
_SPACE: Final = " \t\n\v\f\r"  # C's isspace()


class SpecialTokens:
    """What a vocabulary's tokenizer takes out of a text before it splits the rest."""

    def __init__(self, vocab: Vocabulary) -> None:
        self._vocab = vocab
        self.texts: dict[str, tuple[int, int]] = {}  # longest first: token, attributes
        self.control: set[str] = set()
        found = []
        kinds = vocab.attributes
        with vocab.opened() as llama:
            for token in np.flatnonzero(np.asarray(kinds, np.int32) & _TAKEN).tolist():
                text = llama.llama_vocab_get_text(vocab.handle, token)
                found.append((text or b"", token, kinds[token]))
        for data, token, attributes in sorted(found, key=lambda each: -len(each[0])):
            text = data.decode("utf-8", "surrogateescape")  # no text has what is not UTF-8
            if text:
                self.texts.setdefault(text, (token, attributes))
                if attributes & (_UNKNOWN | _CONTROL):
                    self.control.add(text)
        self._ids = {token for _, token, _ in found}

    @classmethod
    def of(cls, vocab: Vocabulary) -> SpecialTokens:
        """A vocabulary's, made once."""
        known: SpecialTokens | None = vocab.kept.get("special")
        if known is None:
            known = vocab.kept["special"] = cls(vocab)
        return known

    def markers(self, template: str) -> Markers:
        """What a conversation is built of: control tokens, and added ones that a chat template
        writes (tags, such as those around tools, and roles in some files).
        """
        added = {t for t in self.texts if t.strip() and t in template} - self.control
        return Markers(self.control, added)

    def tokenize(self, text: str, marks: Marks) -> tuple[int, ...]:
        """The tokens of `text`, in which what is marked is no control token. Without marks they are
        those that llama.cpp makes with parse_special.
        """
        if not marks:
            tokens = self._vocab.tokenize(text, add_special=False, parse_special=True)
            return tuple(tokens) if text else ()
        out: list[int] = []
        for begin, end, token in self._parts(text, [index for index, _ in marks]):
            if token is None:
                inside = [(i - begin, always) for i, always in marks if begin <= i < end]
                out += self._ordinary(text[begin:end], inside)
            else:
                out.append(token)
        return tuple(out)

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The parts of a text, each with its token where it is a special one."""
        for begin, end, token in self._parts(text, ()):
            yield text[begin:end], token

    def _parts(self, text: str, inert: Sequence[int]) -> list[tuple[int, int, int | None]]:
        """(begin, end, special token or None) in order, as tokenizer_st_partition() splits."""
        parts: list[tuple[int, int, int | None]] = [(0, len(text), None)]
        for special, (token, attributes) in self.texts.items():
            if special not in text:
                continue
            split: list[tuple[int, int, int | None]] = []
            for begin, end, known in parts:
                at, start = begin, begin
                while known is None and (at := text.find(special, at, end)) >= 0:
                    after = at + len(special)
                    i = bisect_left(inert, at)
                    if i < len(inert) and inert[i] < after:
                        at += 1
                        continue
                    left = at
                    while attributes & _LSTRIP and left > start and text[left - 1] in _SPACE:
                        left -= 1
                    split += [(start, left, None)] if left > start else []
                    split.append((at, after, token))
                    while attributes & _RSTRIP and after < end and text[after] in _SPACE:
                        after += 1
                    at = start = after
                split += [(start, end, known)] if end > start else []
            parts = split
        return parts

    def _ordinary(self, text: str, marks: Sequence[tuple[int, bool]]) -> list[int]:
        """The tokens of text without special ones but those that are marked."""
        tokens = self._vocab.tokenize(text, add_special=False, parse_special=False)
        special = self._ids.intersection(tokens)  # added ones are seen nevertheless
        cuts = [i + 1 for i, always in marks if always or special]
        ends = [cut for cut in dict.fromkeys(cuts) if cut < len(text)]
        if not ends:
            return tokens
        pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
        out = self._vocab.tokenize(pieces[0], add_special=False, parse_special=False)
        for piece in pieces[1:]:
            out += self._continued(piece)
        return out

    def _continued(self, text: str) -> list[int]:
        """The tokens of what goes on, before which a vocabulary puts no space."""
        vocab = self._vocab
        tokens = vocab.tokenize(text, add_special=False, parse_special=False)
        if vocab.detokenize(tokens, special=True) == text:
            return tokens
        behind = vocab.tokenize("\n" + text, add_special=False, parse_special=False)
        for n in range(1, len(behind)):
            if vocab.detokenize(behind[:n], special=True).endswith("\n"):
                return behind[n:]
        return tokens


class Markers:
    """The texts of tokens that conversations are built of."""

    def __init__(self, control: Collection[str], added: Collection[str]) -> None:
        self.texts = {*control, *added}
        self._firsts: dict[bool, tuple[re.Pattern[str], dict[str, dict[int, set[str]]]]] = {}
        for all_of_them in (False, True):
            texts = self.texts if all_of_them else control
            by_first: dict[str, dict[int, set[str]]] = {}
            for text in texts:
                by_first.setdefault(text[0], {}).setdefault(len(text), set()).add(text)
            firsts = "".join(map(re.escape, by_first)) or r"^\s\S"
            self._firsts[all_of_them] = re.compile(f"[{firsts}]"), by_first

    def find(self, text: str, *, added: bool = True) -> Iterator[int]:
        """Where they begin in `text`; without `added` those of control tokens only."""
        firsts, texts = self._firsts[added]
        for match in firsts.finditer(text):
            at = match.start()
            if any(text[at : at + n] in known for n, known in texts[text[at]].items()):
                yield at


def spelled(tokens: Sequence[int], vocab: Vocabulary, markers: Markers) -> tuple[str, Marks]:
    """The text of tokens that were read or written, control tokens included, and what looks like
    those in it but is not.
    """
    text, marks, begin = "", [], 0
    for end in range(len(tokens) + 1):
        if end < len(tokens) and not vocab.is_special(tokens[end]):
            continue
        run = vocab.detokenize(tokens[begin:end], special=True)
        marks += [(len(text) + at, False) for at in markers.find(run)]
        text, begin = text + run, end + 1
        if end < len(tokens):
            text += vocab.detokenize(tokens[end : end + 1], special=True)
    return text, tuple(marks)


def cut_inside(words: str, invocation: Sequence[int], vocab: Vocabulary) -> int | None:
    """The index of a character of `words`, an invocation's text without space around it, behind
    which no token of it ends; None if all of them are of one character.
    """
    whole = vocab.detokenize(invocation, special=True)
    begin, at = len(whole) - len(whole.lstrip()), 0
    for token in invocation:
        end = at + len(vocab.detokenize([token], special=True))
        cut = max(at, begin)
        if cut + 1 < min(end, begin + len(words)):
            return cut - begin
        at = end
    return None
