"""What conversations are made of: messages, calls of tools in them, and the documents they are
about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, TypeVar

from ._calls import checked
from .errors import InputError, did_you_mean
from .tools import ToolCall

_T = TypeVar("_T")
ROLES: Final = ("system", "user", "assistant", "tool")
"""Who speaks in a conversation; some templates know others."""


@checked
@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks ("system", "user", "assistant", "tool", ...) and what is said.

    tool_calls    the calls of tools that an assistant's turn ends with
    tool_call_id  of the call that a tool's turn answers
    name          who speaks, or which tool answers, where a template wants to know
    reasoning     what an assistant thought before it spoke
    """

    role: str
    content: str
    tool_calls: Sequence[ToolCall] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str = ""

    def __post_init__(self) -> None:
        calls = tuple(ToolCall.of(each, "tool_calls: one") for each in self.tool_calls)
        object.__setattr__(self, "tool_calls", calls)

    @staticmethod
    def known_role(role: str, template: str, what: str) -> str:
        """The role that a chat template is given; "developer" is OpenAI's word for system. Raises
        InputError, which calls the message `what`, for one that is none of ROLES and that the
        template's Jinja text does not know either.
        """
        if role == "developer":
            return "system"
        if role not in ROLES and not mentions(template, role):
            raise InputError(
                f"{what}.role is {role!r:.60}, expected {', '.join(ROLES)}, or one that the chat "
                f"template knows{did_you_mean(role, ROLES)}"
            )
        return role

    def for_template(self, template: str, what: str) -> Message:
        """The same with its known_role(), as this template is given it. Raises InputError."""
        if self.role in ROLES:
            return self
        return replace(self, role=self.known_role(self.role, template, what))

    @classmethod
    def of(cls, value: object, what: str = "the message") -> Message:
        """`value` if it is a Message, or what OpenAI's mapping says: role and content, tool_calls
        (their arguments as JSON text or an object), tool_call_id, name, and reasoning or
        reasoning_content. Content given as parts is joined if all are text, and needs not be there
        beside calls. Raises InputError, which calls it `what`.
        """
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping):
            raise InputError(
                f"{what} is {value!r}, expected a Message or a mapping with role, content"
            )
        role, content = value.get("role"), value.get("content")
        if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
            content = "".join(_text_part(part, what) for part in content)
        calls = _calls(value.get("tool_calls"), what)
        reasoning = value.get("reasoning") or value.get("reasoning_content")
        if content is None and (calls or reasoning):
            content = ""
        if role is None or content is None:
            name, wanted = (
                ("role", "a word such as 'user'") if role is None else ("content", "text")
            )
            raise InputError(f"{what} has no {name}, expected {wanted}")
        if not isinstance(role, str) or not role:
            raise InputError(f"{what}: its role is {role!r}, expected a word such as 'user'")
        if not isinstance(content, str):
            raise InputError(f"{what}: its content is {content!r}, expected text")
        more = {
            "reasoning": reasoning,
            **{key: value.get(key) for key in ("tool_call_id", "name")},
        }
        for key, text in more.items():
            if text is not None and not isinstance(text, str):
                raise InputError(f"{what}: its {key} is {text!r}, expected text")
        return cls(role, content, calls, **{key: text for key, text in more.items() if text})

    def fields(self) -> dict[str, Any]:
        """As chat templates get it, in Hugging Face's form: role, content, and what there is of
        reasoning_content, tool_calls (with their arguments as an object), tool_call_id and name.
        """
        more = {
            "reasoning_content": self.reasoning,
            "tool_calls": [call.fields() for call in self.tool_calls],
            "tool_call_id": self.tool_call_id,
            "name": self.name,
        }
        said = {name: value for name, value in more.items() if value}
        return {"role": self.role, "content": self.content, **said}


def _calls(value: object, what: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        raise InputError(f"{what}: its tool_calls are {value!r:.60}, expected a list")
    return tuple(ToolCall.of(each, f"{what}: tool_calls[{i}]") for i, each in enumerate(value))


def _text_part(part: object, what: str) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise InputError(f"{what}: its content has a part that is not text: {part!r}")
    return text


@checked
@dataclass(frozen=True, slots=True)
class Document:
    """A text that a conversation is about. Its `doc_id` is what answers cite."""

    text: str
    title: str | None = None
    doc_id: str | None = None

    @classmethod
    def of(cls, value: object, what: str = "the document") -> Document:
        """`value` if it is a Document, a text, or what a mapping with text and perhaps title and
        doc_id says. Raises InputError for anything else, which it calls `what`.
        """
        if isinstance(value, Document):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping):
            raise InputError(
                f"{what} is {value!r}, expected a Document, a text or a mapping with text"
            )
        unknown = sorted(set(value) - {"text", "title", "doc_id"}, key=str)
        if unknown:
            raise InputError(f"{what}: has {unknown[0]!r}; known are text, title and doc_id")
        text, title, doc_id = value.get("text"), value.get("title"), value.get("doc_id")
        if not isinstance(text, str):
            raise InputError(f"{what}: its text is {text!r}, expected a string")
        if title is not None and not isinstance(title, str):
            raise InputError(f"{what}: its title is {title!r}, expected a string")
        if doc_id is not None and not isinstance(doc_id, (str, int)):
            raise InputError(f"{what}: its doc_id is {doc_id!r}, expected a string")
        return cls(text, title, None if doc_id is None else str(doc_id))

    def fields(self) -> dict[str, str]:
        """As chat templates get it: what is known of text, title and doc_id."""
        fields = {"text": self.text, "title": self.title, "doc_id": self.doc_id}
        return {name: value for name, value in fields.items() if value is not None}


Said: TypeAlias = str | Message | Mapping[str, object]
"""A message: the user's words, a Message, or OpenAI's mapping with role and content."""
Texts: TypeAlias = Iterable[Document | str | Mapping[str, object]]
"""Documents: each a Document, its text, or a mapping with text and perhaps title and doc_id."""


def as_said(messages: Iterable[Said]) -> tuple[Message, ...]:
    """`messages` as Messages. Raises InputError, naming the one that is none."""
    return tuple(
        Message("user", value) if isinstance(value, str) else Message.of(value, f"messages[{i}]")
        for i, value in enumerate(messages)
    )


def mentions(template: str, name: str) -> bool:
    """Whether a chat template's Jinja text has a word, such as a variable."""
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def as_documents(documents: Texts) -> tuple[Document, ...]:
    """`documents` as Documents. Raises InputError, naming the one that is none."""
    if isinstance(documents, (str, Mapping, Document)):
        raise InputError(f"documents must be a list, got {documents!r}")
    return tuple(Document.of(value, f"documents[{i}]") for i, value in enumerate(documents))


Place: TypeAlias = Literal["template", "system", "user"]
"""Where documents stand: where the chat template writes them or, in one that takes none, in the
system message, or where there can be none either, in the user's first."""


def documents_as_text(documents: Sequence[Document]) -> str:
    """What stands in a message where the template takes no documents."""
    shown = []
    for i, document in enumerate(documents, 1):
        title = f": {document.title}" if document.title else ""
        shown.append(f"[Document {document.doc_id or i}{title}]\n{document.text}")
    return "You have access to the following documents:\n\n" + "\n\n".join(shown)


def in_messages(
    messages: Sequence[_T],
    text: str,
    place: Place,
    read: Callable[[_T], Message],
    write: Callable[[Message, _T | None], _T],
) -> list[_T]:
    """`messages` with a `text` in one of them, or in a new one: behind a system message's words,
    before the user's. `read` makes a Message of one, `write` one of a Message, perhaps like
    another.
    """
    turns = list(map(read, messages))
    at = next((i for i, each in enumerate(turns) if each.role == place), None)
    if place == "system" and at != 0:
        return [write(Message(place, text), None), *messages]
    if at is None:
        return [*messages, write(Message(place, text), None)]
    said = turns[at].content
    parts = (said, text) if place == "system" else (text, said)
    both = "\n\n".join(filter(None, parts))
    changed = write(replace(turns[at], content=both), messages[at])
    return [*messages[:at], changed, *messages[at + 1 :]]
