"""The input: conversations as JSON, one as a whole or one on each line; each with what is wrong
with it: one bad line does not affect the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import alora_gguf as ag

_FIELDS: Final = ("messages", "documents", "arguments", "id")


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said, about which documents, and what the intrinsics' instructions are filled in
    with, by the intrinsics' names.
    """

    messages: tuple[ag.Message, ...]
    documents: tuple[ag.Document, ...] = ()
    arguments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """A conversation of the input, or why it is none.

    line    its number, from 1
    where   the file and the line, for messages
    digest  tells it from others by what it says
    echo    what comes back with its answer: its id, if it has one
    """

    line: int
    where: str
    digest: str
    echo: Mapping[str, Any]
    conversation: Conversation | None = None
    problem: str = ""


def read_input(
    data: bytes, name: str, intrinsics: Sequence[str], template: str, *, lines: bool
) -> tuple[list[Entry], bool]:
    """The conversations in `data`, read from `name`, to be judged by `intrinsics` and written by a
    chat `template`; and whether each has a line of its own.

    It is read as one JSON value unless `lines` says otherwise or it looks like JSON lines. Raises
    InputError if it is to hold one conversation and does not.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not lines:
        if not data.strip():
            raise ag.InputError(f"{name}: is empty, expected a conversation as JSON")
        one = _entry(1, name, data, intrinsics, template)
        if one.conversation is not None or not _is_lines(data):
            return [one], False
    found = [
        _entry(number, f"{name}:{number}", line, intrinsics, template)
        for number, line in enumerate(data.split(b"\n"), 1)
        if line.strip()
    ]
    return found, True


def _is_lines(data: bytes) -> bool:
    """Whether several lines hold something and one of them a conversation."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    return len(lines) > 1 and any(_looks_right(line) for line in lines)


def _looks_right(line: bytes) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict) and "role" in value[0]
    return isinstance(value, dict) and "messages" in value


def _entry(number: int, where: str, data: bytes, intrinsics: Sequence[str], template: str) -> Entry:
    digest, echo = hashlib.sha256(data.strip()).hexdigest(), dict[str, Any]()
    try:
        value = _parse(data)
        if isinstance(value, dict) and "id" in value:
            echo = {"id": value["id"]}
        _check_text(value)
        conversation = _conversation(value, intrinsics, template)
    except ag.InputError as error:
        return Entry(number, where, digest, echo, problem=str(error))
    said = {**asdict(conversation), **echo}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return Entry(number, where, digest, echo, conversation)


def _parse(data: bytes) -> Any:
    """JSON that can be written again. Raises InputError."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ag.InputError(f"is not UTF-8 (at byte {error.start})") from None
    try:
        value = json.loads(text, object_pairs_hook=_without_repetition, parse_constant=_no_constant)
        json.dumps(value, allow_nan=False)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        where = f"{line}column {error.colno}"
        raise ag.InputError(f"is not JSON: {error.msg} ({where})") from None
    except RecursionError:
        raise ag.InputError("is nested too deeply") from None
    except ValueError as error:  # of ours, or numbers that cannot be held
        raise ag.InputError(f"is not JSON that can be used: {error}") from None
    return value


def _check_text(value: Any) -> None:
    """Raises InputError for JSON that says what is not text."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ag.InputError("holds half of a surrogate pair, which is not text") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"the field {twice!r} occurs twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _conversation(value: Any, intrinsics: Sequence[str], template: str) -> Conversation:
    if isinstance(value, list):
        value = {"messages": value}
    if not isinstance(value, dict):
        raise ag.InputError(
            f"is {_kind(value)}, expected an object with messages, or an array of messages"
        )
    unknown = sorted(set(value) - set(_FIELDS))
    if unknown:
        raise ag.InputError(
            f"has the field {unknown[0]!r}; known are {', '.join(_FIELDS)}; put what should come "
            "back with the answer into id"
        )
    messages, documents = value.get("messages"), value.get("documents") or ()
    if not isinstance(messages, list) or not messages:
        raise ag.InputError("messages: expected an array with at least one message")
    if not isinstance(documents, (list, tuple)):
        raise ag.InputError(f"documents: is {_kind(documents)}, expected an array")
    return Conversation(
        tuple(_message(each, template, f"messages[{i}]") for i, each in enumerate(messages)),
        tuple(ag.Document.of(each, f"documents[{i}]") for i, each in enumerate(documents)),
        _arguments(value.get("arguments"), intrinsics),
    )


def _message(value: Any, template: str, what: str) -> ag.Message:
    return ag.Message.of(value, what).for_template(template, what)


def _arguments(value: Any, intrinsics: Sequence[str]) -> dict[str, dict[str, str]]:
    """By intrinsic. Those of one intrinsic need not say which."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ag.InputError(f"arguments: is {_kind(value)}, expected an object")
    if not value or not all(isinstance(inner, dict) for inner in value.values()):
        if value and len(intrinsics) != 1:
            raise ag.InputError(
                'arguments: write {"NAME": {...}} to say for which of the intrinsics they are'
            )
        value = {intrinsics[0]: value} if value else {}
    found: dict[str, dict[str, str]] = value
    for name in found:
        if name not in intrinsics:
            asked = ", ".join(intrinsics) or "none"
            raise ag.InputError(f"arguments: are for {name!r}, which is not asked; asked: {asked}")
    return found


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", str: "a text", dict: "an object", list: "an array"}
    return names.get(type(value), "a number")
