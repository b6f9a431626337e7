"""Text that is only quoted: what users and documents write is carried through a chat template so
that the control tokens in it are known for text, and not for the template's own.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Final

from alora_gguf.engine.special import Markers, Marks, cut_inside
from alora_gguf.engine.tokens import Vocabulary
from alora_gguf.errors import InputError
from alora_gguf.messages import Document, Message
from alora_gguf.tools import ToolCall

_SIGNS: Final = range(0xE000, 0xF8FF, 2)  # private use; a template's filters leave them alone
_LONG: Final = 64  # characters, more than a control token has
_AROUND: Final = (24, 12, 2)  # characters beside a control token that it is found by


@dataclass(frozen=True)
class Quoting:
    """How text is marked: a sign behind the first character of each control token in it.

    signs    the two kinds, in no text of the conversation: what is ordinary text unless it would
             be a special token, and what is split in any case
    markers  what is marked
    words    what is split in any case, with the index of the character behind which
    before   whether signs stand before control tokens, which are whole then
    """

    signs: str
    markers: Markers
    words: tuple[str, int] | None = None
    before: bool = False

    @classmethod
    def of(cls, texts: Sequence[str], markers: Markers) -> Quoting:
        """With signs that are in none of the texts."""
        free = (n for n in _SIGNS if not any(chr(n + i) in t for t in texts for i in (0, 1)))
        first = next(free)
        return cls(chr(first) + chr(first + 1), markers)

    def splitting(self, invocation: Sequence[int], vocab: Vocabulary) -> Quoting:
        """The same, in which no text makes the tokens of an invocation of ordinary text."""
        if any(map(vocab.is_special, invocation)):
            return self  # which text does not make anyway
        words = vocab.detokenize(invocation, special=True).strip()
        cut = cut_inside(words, invocation, vocab)
        return self if cut is None else replace(self, words=(words, cut))

    def text(self, text: str, *, added: bool = True) -> str:
        """`text` with signs; without `added` only control tokens are marked."""
        places = dict.fromkeys(self.markers.find(text, added=added), self.signs[0])
        if self.words is not None:
            words, cut = self.words
            found = re.finditer(f"(?={re.escape(words)})", text)
            places |= {match.start() + cut: self.signs[1] for match in found}
        out, last = [], 0
        for at in sorted(places):
            end = at if self.before else at + 1
            out += [text[last:end], places[at]]
            last = end
        return "".join(out) + text[last:]

    def marks_any(self, texts: Iterable[str]) -> bool:
        """Whether any of the texts has what is marked."""
        words = self.words and self.words[0]
        return any(
            next(self.markers.find(text), None) is not None or (words and words in text)
            for text in texts
        )

    def message(self, message: Message) -> Message:
        """What is said, marked. Tags in what a model says, such as those around its thinking, are
        its own; it cannot be told from what it wrote whether it wrote them as one token.
        """
        own = message.role == "assistant"
        said = self.text(message.content, added=not own)
        plain = Message(self.text(message.role), said)
        if not (message.reasoning or message.tool_calls or message.tool_call_id or message.name):
            return plain
        return replace(
            plain,
            tool_calls=[
                ToolCall(self.text(each.id), self.text(each.name), self.value(each.arguments))
                for each in message.tool_calls
            ],
            tool_call_id=message.tool_call_id and self.text(message.tool_call_id),
            name=message.name and self.text(message.name),
            reasoning=self.text(message.reasoning, added=not own),
        )

    def document(self, document: Document) -> Document:
        """A document with all that it says of itself marked."""
        return Document(**{name: self.text(value) for name, value in document.fields().items()})

    def value(self, value: Any) -> Any:
        """What JSON can hold, keys of objects included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(name): self.value(each) for name, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(each) for each in value]
        return value

    def json(self, value: Any, key: str = "") -> Any:
        """OpenAI's messages or documents, whatever they hold."""
        if isinstance(value, str):
            return self.text(value) if key not in ("type", "role") else value
        if isinstance(value, dict):
            kept = {name: self.json(each, name) for name, each in value.items()}
            if value.get("role") == "assistant" and isinstance(value.get("content"), str):
                kept["content"] = self.text(value["content"], added=False)
            return kept
        if isinstance(value, (list, tuple)):
            return [self.json(each, key) for each in value]
        return value

    def places(self, written: str, signed: Callable[[Quoting], str], texts: Sequence[str]) -> Marks:
        """Where in `written`, a rendered conversation, control tokens are only quoted. `signed`
        renders it with texts that are marked; here they are `texts`.

        A template that looks for control tokens in text writes another text then, so they are
        left whole the next time. One that looks at more may write another still: what the text
        has around them is looked for instead, and what is not found so is the template's own.
        """
        for how in (self, replace(self, before=True)):
            with suppress(InputError):  # a template may refuse marked text
                plain, marks = how._read(signed(how))
                if plain == written:
                    return marks
        found: dict[int, bool] = {}
        for text in texts:
            said, inside = self._read(text)
            for index, always in inside:
                found |= dict.fromkeys(self._around(written, said, index), always)
        return tuple(sorted(found.items()))

    def _read(self, signed: str) -> tuple[str, Marks]:
        escaped = "|".join(f"\\\\u{ord(sign):04x}" for sign in self.signs)  # by JSON
        parts = re.split(f"([{self.signs}]|{escaped})", signed)
        plain, marks, at = "".join(parts[::2]), dict[int, bool](), 0
        always = (self.signs[1], f"\\u{ord(self.signs[1]):04x}")
        for text, sign in zip(parts[::2], parts[1::2], strict=False):
            at += len(text)
            index = at if self.before else at - 1
            if not self.before or sign in always or 0 in self.markers.find(plain[at : at + _LONG]):
                marks[index] = marks.get(index, False) or sign in always
        return plain, tuple(marks.items())

    def _around(self, written: str, said: str, index: int) -> Iterator[int]:
        """Where `written` has what `said` has around a character."""
        for n in _AROUND:
            begin = max(0, index - n)
            part = said[begin : index + n + 1].strip()
            offset = index - begin - (len(said[begin:]) - len(said[begin:].lstrip()))
            found = [m.start() + offset for m in re.finditer(f"(?={re.escape(part)})", written)]
            if found and part not in self.markers.texts:
                yield from found
                return


def leaves(value: Any) -> Iterator[str]:
    """The texts in OpenAI's messages, documents or tools."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        if isinstance(value, dict):
            yield from (key for key in value if isinstance(key, str))
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)


def differ_at(one: Marks, other: Marks) -> int | None:
    """From which character on two texts are marked differently; None if nowhere."""
    for a, b in zip_longest(one, other):
        if a != b:
            return min(mark[0] for mark in (a, b) if mark is not None)
    return None


def since(marks: Marks, at: int) -> Marks:
    """The marks of the text from a character on."""
    return tuple((i - at, always) for i, always in marks[bisect_left(marks, (at, False)) :])


def until(marks: Marks, at: int) -> Marks:
    """The marks of the text before a character."""
    return marks[: bisect_left(marks, (at, False))]
