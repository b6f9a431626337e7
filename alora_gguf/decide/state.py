"""What questions are about: a text, or what JSON can hold; a conversation where it is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from alora_gguf.errors import FieldError, InputError
from alora_gguf.messages import ROLES, Message

from .questions import Content, check_known, content_text, kind_of

_FIELDS: Final = (
    "role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content"
)  # fmt: skip
_JSON: Final = "an array of objects with a role is a conversation; within an object it is JSON"


def state_messages(state: Content) -> tuple[Message, ...]:
    """The conversation that a state is: its own turns, where it is an array of objects that all
    have a role, or an object with nothing but such `messages`; else what the user says. Raises
    FieldError for what is neither text nor JSON, for an empty text, and for a turn that is none.
    """
    text = content_text(state, "state")
    if isinstance(state, str) and not state.strip():
        raise FieldError(("state",), "is empty, expected what the questions are about")
    turns: Any = state
    path: tuple[str | int, ...] = ("state",)
    if isinstance(state, Mapping) and state.keys() == {"messages"}:
        turns, path = state["messages"], ("state", "messages")
    if not isinstance(turns, (list, tuple)) or not turns or not all(map(_has_role, turns)):
        return (Message("user", text),)
    return tuple(_turn(turn, (*path, i)) for i, turn in enumerate(turns))


def _has_role(value: object) -> bool:
    return isinstance(value, Mapping) and "role" in value


def _turn(turn: Mapping[str, Any], path: tuple[str | int, ...]) -> Message:
    role, content = turn["role"], turn.get("content")
    if role not in ROLES:
        raise FieldError((*path, "role"), f"is {role!r:.40}, expected {', '.join(ROLES)}; {_JSON}")
    if content is None and not turn.get("tool_calls"):
        raise FieldError((*path, "content"), f"is missing, expected text; {_JSON}")
    if content is not None and not isinstance(content, (str, list, tuple)):
        raise FieldError((*path, "content"), f"is {kind_of(content)}, expected text")
    check_known(turn, _FIELDS, *path)
    try:
        return Message.of(turn, "it")
    except InputError as error:
        raise FieldError(path, f"is no message: {error}") from error
