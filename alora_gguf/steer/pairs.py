"""Contrast pairs and questions: JSON lines, checked line by line. Knows no model."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from alora_gguf.errors import FileFormatError, InputError
from alora_gguf.files import open_file
from alora_gguf.messages import Message, as_said

Split = Literal["train", "held_out"]
Side = str | tuple[Message, ...]
SPLITS: Final = ("train", "held_out")
FEWEST: Final = 4
"""Pairs, or questions: two to learn from, and two to tell how well."""
_FIELDS: Final = ("prompt", "positive", "negative", "split")
_MAX_LINE: Final = 16 << 20  # bytes: more than any model's context
_SHARE: Final = 0.25  # that is held out where the file does not say which
_T = TypeVar("_T", bound="Pair | Question")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two things that differ in what a vector is to do: `positive` has it, `negative` has not.

    prompt              what both answer: a conversation, a text is what the user says; None if the
                        two are whole
    positive, negative  text: an answer to the prompt, without one a text as it stands; or a whole
                        conversation, which is read up to where the assistant's reply begins, or to
                        the end of that reply if it is there
    split               "train" or "held_out"; None if the file does not say
    line                where it stands in the file, from 1; 0 if it is from none
    """

    positive: Side
    negative: Side
    prompt: tuple[Message, ...] | None = None
    split: Split | None = None
    line: int = 0

    @property
    def answers(self) -> bool:
        """Whether both sides are answers to something, which can be more and less likely."""
        return self.prompt is not None or all(
            not isinstance(side, str) and side[-1].role == "assistant"
            for side in (self.positive, self.negative)
        )

    @property
    def question(self) -> tuple[Message, ...] | None:
        """What a reply can be asked for: the prompt, or else the negative conversation without its
        answer; None for texts.
        """
        if self.prompt is not None:
            return self.prompt
        if isinstance(self.negative, str):
            return None
        return self.negative[:-1] if self.negative[-1].role == "assistant" else self.negative

    @property
    def source(self) -> str:
        """What it is about: pairs with the same prompt stay on one side of the split."""
        return self.content if self.prompt is None else _spelled(self.prompt)

    @property
    def content(self) -> str:
        """All of it but where it stands: what is there twice is never on both sides."""
        return _spelled(self.prompt or (), self.positive, self.negative)

    @property
    def lot(self) -> str:
        """What it is drawn by."""
        return _spelled(self.prompt or (), self.positive, "" if self.prompt else self.negative)


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation to reply to; `split` and `line` as a Pair's."""

    messages: tuple[Message, ...]
    split: Split | None = None
    line: int = 0

    @property
    def source(self) -> str:
        """The conversation; what is there twice is never on both sides of the split."""
        return _spelled(self.messages)

    content = lot = source


def read_pairs(path: str | os.PathLike[str], *, seed: int = 0) -> tuple[Pair, ...]:
    """The pairs of a file of JSON lines, each an object with `positive` and `negative`, and if need
    be `prompt` and `split`; Pair says what they are. Where no line has a split, a quarter is held
    out, chosen by `seed`, pairs with the same prompt together.

    Raises MissingFileError, FileFormatError, which names the line, InputError if there are too few
    pairs, or none in one of the splits.
    """
    return _parted(Path(path), "pairs", _pair, seed)


def read_questions(path: str | os.PathLike[str], *, seed: int = 0) -> tuple[Question, ...]:
    """The questions of a file of JSON lines, each an object with `prompt`: a conversation, or a
    text, which the user says. A file of pairs that have prompts is one, too. Splits and what is
    raised are as in read_pairs().
    """
    return _parted(Path(path), "questions", _question, seed)


def hold_out(found: Sequence[_T], seed: int) -> tuple[_T, ...]:
    """They with their splits, where none has one; where there are too few prompts to part, equal
    ones stay together.
    """
    groups = _groups(each.source for each in found)
    if len(groups) < FEWEST:
        groups = _groups(each.content for each in found)

    def drawn(group: Sequence[int]) -> bytes:
        return hashlib.sha256(f"{seed} {found[group[0]].lot}".encode()).digest()

    wanted, held = max(FEWEST // 2, round(_SHARE * len(found))), set[int]()
    for group in sorted(groups, key=drawn):
        room = len(found) - FEWEST // 2 - len(held)
        if len(held) < wanted and len(group) <= room:
            held.update(group)
    split: dict[bool, Split] = {True: "held_out", False: "train"}
    return tuple(replace(each, split=split[i in held]) for i, each in enumerate(found))


def _groups(keys: Iterable[str]) -> list[list[int]]:
    """The numbers of those that have the same key."""
    found = dict[str, list[int]]()
    for i, key in enumerate(keys):
        found.setdefault(key, []).append(i)
    return [*found.values()]


def split_of(found: Sequence[_T], split: Split) -> list[_T]:
    """Those of one split."""
    return [each for each in found if each.split == split]


def read_before(path: str | os.PathLike[str]) -> tuple[Message, ...]:
    """What stands before a question: a text file is a system prompt; one whose name ends in .json
    holds a list of messages, such as a system prompt and examples of questions and answers.

    Raises MissingFileError, FileFormatError.
    """
    file = Path(path)
    with open_file(file, "a system prompt's text, or .json with messages") as opened:
        data = opened.read(_MAX_LINE + 1)
    if len(data) > _MAX_LINE:
        raise FileFormatError(f"{file}: is longer than {_MAX_LINE} bytes; shorten it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{file}: is not UTF-8: {error}") from None
    if file.suffix == ".json":
        try:
            return _conversation(json.loads(text), "the file")
        except (ValueError, RecursionError, InputError) as error:
            raise FileFormatError(
                f'{file}: expected messages, [{{"role": ..., "content": ...}}, ...]: {error}'
            ) from None
    if not text.strip():
        raise FileFormatError(f"{file}: is empty, expected a system prompt's text")
    return (Message("system", text.strip()),)


# Lines -------------------------------------------------------------------------------------------


def _parted(
    file: Path, what: str, read: Callable[[Mapping[str, Any], int], _T], seed: int
) -> tuple[_T, ...]:
    """What the lines hold, with splits: both have at least two."""
    found = list[_T]()
    for number, value in _lines(file):
        try:
            found.append(read(value, number))
        except InputError as error:  # noqa: PERF203 - it names the line
            raise FileFormatError(f"{file}: line {number} {error}") from None
    n = len({each.content for each in found})
    if n < FEWEST:
        different = "" if n == len(found) else " different"
        raise InputError(
            f"{file}: has {n}{different} {what}, expected at least {FEWEST}, as some are held out "
            "to tell how well it works; give more"
        )
    said = [each for each in found if each.split is not None]
    if said and len(said) < len(found):
        without = next(each.line for each in found if each.split is None)
        raise FileFormatError(
            f"{file}: line {without} has no split, but line {said[0].line} has one; give all or "
            "none"
        )
    parted = tuple(found) if said else hold_out(found, seed)
    first = dict[str, _T]()
    for each in parted:
        other = first.setdefault(each.content, each)
        if other.split != each.split:
            raise FileFormatError(
                f"{file}: line {each.line} is what line {other.line} is, but in the other split, "
                "so it would be told by heart; leave one out"
            )
    for split in SPLITS:
        n = sum(each.split == split for each in parted)
        if n < FEWEST // 2:
            raise InputError(
                f"{file}: {n} {what} are in the split '{split}', expected at least {FEWEST // 2}; "
                'give more lines that "split", or no line any'
            )
    return parted


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, by their numbers."""
    with open_file(file, "JSON lines") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(_MAX_LINE + 1), b""), 1):
            where = f"{file}: line {number}"
            if len(line) > _MAX_LINE:
                raise FileFormatError(f"{where} is longer than {_MAX_LINE} bytes; split it up")
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                shown = line[:40].decode(errors="replace").strip()
                raise FileFormatError(
                    f"{where} is {shown!r}, expected an object as JSON: {error}"
                ) from None
            if not isinstance(value, dict):
                raise FileFormatError(f"{where} holds {value!r:.40}, expected an object")
            if unknown := [name for name in value if name not in _FIELDS]:
                raise FileFormatError(
                    f"{where} has a field {unknown[0]!r:.40}; known are {', '.join(_FIELDS)}"
                )
            yield number, value


def _pair(value: Mapping[str, Any], line: int) -> Pair:
    for name in ("positive", "negative"):
        if name not in value:
            raise InputError(f"has no {name}, expected the fields positive and negative")
    prompt = None
    if value.get("prompt") is not None:
        prompt = _conversation(value["prompt"], "prompt", alone=True)
    sides = [_side(value[name], name, prompt) for name in ("positive", "negative")]
    talks = [side for side in sides if not isinstance(side, str)]
    if len(talks) == 1:
        raise InputError("has a text and a conversation, expected two of a kind")
    if len({each[-1].role == "assistant" for each in talks}) > 1:
        raise InputError("ends with a reply on one side alone; give both, or neither")
    if sides[0] == sides[1]:
        raise InputError("has the same on both sides, which shows no difference")
    return Pair(sides[0], sides[1], prompt, _split(value), line)


def _side(value: object, name: str, prompt: object) -> Side:
    if isinstance(value, str):
        if not value.strip():
            raise InputError(f"has an empty {name}, expected text")
        return value
    if prompt is not None:
        raise InputError(f"has {name} {value!r:.40} beside a prompt, expected the answer's text")
    return _conversation(value, name)


def _question(value: Mapping[str, Any], line: int) -> Question:
    if value.get("prompt") is None:
        raise InputError("has no prompt, expected what the user says, or messages")
    return Question(_conversation(value["prompt"], "prompt", alone=True), _split(value), line)


def _conversation(value: object, name: str, *, alone: bool = False) -> tuple[Message, ...]:
    """Messages; a text is the user's where it may stand `alone`."""
    if alone and isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        wanted = "text or messages" if alone else "messages"
        raise InputError(f"has {name} {value!r:.40}, expected {wanted}")
    said = as_said(value)
    if empty := [each.role for each in said if not each.content.strip()]:
        raise InputError(f"has an empty message of the {empty[0]} in {name}, expected text")
    if alone and said[-1].role == "assistant":
        raise InputError(f"has a {name} that ends with a reply, expected what is to be replied to")
    return tuple(said)


def _split(value: Mapping[str, Any]) -> Split | None:
    split: Split | None = value.get("split")
    if split is not None and split not in SPLITS:
        raise InputError(f"has the split {split!r:.40}, expected {' or '.join(SPLITS)}")
    return split


def _spelled(*sides: Side) -> str:
    texts = [
        side if isinstance(side, str) else "\0".join(f"{m.role}: {m.content}" for m in side)
        for side in sides
    ]
    return hashlib.sha256("\1".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
