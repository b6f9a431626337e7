"""What an adapter is trained on: conversations in JSON lines, each with its right answer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from alora_gguf.errors import FileFormatError, InputError
from alora_gguf.files import open_file
from alora_gguf.messages import Document, Message, as_documents, as_said

Split = Literal["train", "held_out"]
SPLITS: Final = ("train", "held_out")
_FIELDS: Final = ("messages", "documents", "arguments", "answer", "split")
_MAX_LINE: Final = 16 << 20  # bytes: more than any model's context
_SHARE: Final = 0.1  # of the conversations that are held out where the file does not say which
_FEW: Final = (
    20  # things that conversations are about, with fewer of which whole ones are told apart
)
_MOST_HELD_OUT: Final = 500  # where that would be more: asking them takes time, too


@dataclass(frozen=True)
class Example:
    """A conversation and what is the right answer to an intrinsic's question about it.

    answer     text, or what JSON can hold
    arguments  for the contract's instruction
    split      "train" or "held_out"; None if the file does not say
    line       where it stands in the file, from 1; 0 if it is from none
    """

    messages: tuple[Message, ...]
    answer: Any
    documents: tuple[Document, ...] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    split: Split | None = None
    line: int = 0

    @property
    def source(self) -> str:
        """What the conversation is about, so that examples about the same thing stay together: its
        documents, or what the user says first.
        """
        said = (each.content for each in self.messages if each.role == "user")
        about = [each.text for each in self.documents] or [next(said, "")]
        return _hash(about)


@dataclass(frozen=True)
class Examples:
    """Those of one file: what is trained on, and what is held out."""

    path: Path
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]


def read_examples(path: str | os.PathLike[str], *, seed: int = 0) -> Examples:
    """Reads JSON lines. Each is an object with `messages`, as in a chat completion, and `answer`;
    and if need be `documents`, `arguments` for the contract's instruction, and `split`.

    Where no line has a split, a tenth is held out, at most 500, chosen by `seed`, conversations
    about the same documents together. Raises MissingFileError, FileFormatError, which names the
    line, InputError if one of the splits is empty.
    """
    file = Path(path)
    with open_file(file, "JSON lines of conversations") as lines:
        found = []
        for number, line in enumerate(iter(lambda: lines.readline(_MAX_LINE + 1), b""), 1):
            if len(line) > _MAX_LINE:
                raise _wrong(file, number, f"is longer than {_MAX_LINE} bytes; split it up")
            if line.strip():
                found.append(_example(file, number, line))
    if not found:
        raise FileFormatError(f"{file}: has no lines, expected one conversation a line, as JSON")
    said = [each for each in found if each.split is not None]
    if said and len(said) < len(found):
        line_without = next(each.line for each in found if each.split is None)
        raise _wrong(
            file, line_without, f"has no split, but line {said[0].line} has one; give all or none"
        )
    return _parted(file, found if said else hold_out(found, seed))


def hold_out(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples with their splits, where none has one."""
    keys = [each.source for each in examples]
    if len(set(keys)) < _FEW:
        keys = [_hash([f"{m.role}: {m.content}" for m in each.messages]) for each in examples]
    groups: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        groups.setdefault(key, []).append(i)
    wanted = min(max(1, round(_SHARE * len(examples))), _MOST_HELD_OUT)
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    held: set[int] = set()
    for key in order[:-1]:  # at least one group is left
        if len(held) >= wanted:
            break
        held.update(groups[key])
    return [
        replace(each, split="held_out" if i in held else "train") for i, each in enumerate(examples)
    ]


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def _parted(file: Path, examples: Sequence[Example]) -> Examples:
    parts = {name: tuple(each for each in examples if each.split == name) for name in SPLITS}
    for name, part in parts.items():
        if not part:
            raise InputError(
                f"{file}: no line is in the split '{name}'; give some lines "
                f'"split": "{name}", or none a split and at least two different conversations'
            )
    return Examples(file, parts["train"], parts["held_out"])


def _example(file: Path, number: int, line: bytes) -> Example:
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:
        raise _wrong(
            file,
            number,
            f"is {line[:40].decode(errors='replace').strip()!r}, expected an object as JSON, "
            f'{{"messages": [...], "answer": ...}}: {error}',
        ) from None
    if not isinstance(value, dict):
        raise _wrong(file, number, f"holds {value!r:.40}, expected an object")
    if unknown := [name for name in value if name not in _FIELDS]:
        raise _wrong(file, number, f"has a field {unknown[0]!r:.40}; known are {_known()}")
    for name in ("messages", "answer"):
        if name not in value:
            raise _wrong(file, number, f"has no {name}, expected the fields {_known()}")
    try:
        messages = value["messages"]
        if not isinstance(messages, list) or not messages:
            raise InputError(f"messages are {messages!r:.40}, expected a list of at least one")
        said = as_said(messages)
        documents = as_documents(value.get("documents") or ())
    except InputError as error:
        raise _wrong(file, number, str(error)) from None
    arguments = value.get("arguments") or {}
    if not isinstance(arguments, dict) or not all(isinstance(v, str) for v in arguments.values()):
        raise _wrong(file, number, f"has arguments {arguments!r:.40}, expected an object of texts")
    split = value.get("split")
    if split is not None and split not in SPLITS:
        raise _wrong(file, number, f"has the split {split!r:.40}, expected {' or '.join(SPLITS)}")
    answer = value["answer"]
    if answer is None or answer == "":
        raise _wrong(file, number, "has an empty answer, expected text or JSON")
    return Example(said, answer, documents, arguments, split, number)


def _known() -> str:
    return ", ".join(_FIELDS)


def _wrong(file: Path, number: int, problem: str) -> FileFormatError:
    return FileFormatError(f"{file}: line {number} {problem}")
