"""What questions are about: a text, or what JSON can hold; a conversation where it is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alora_gguf.messages import Message

from .questions import Content, content_text


def state_messages(state: Content) -> tuple[Message, ...]:
    """The conversation that a state is: its own turns, where it is an array of messages with role
    and content, or an object with nothing but such `messages`; else what the user says. Raises
    InputError for what is neither text nor JSON.
    """
    text = content_text(state, "state")
    turns: Any = state
    if isinstance(state, Mapping) and state.keys() == {"messages"}:
        turns = state["messages"]
    if not isinstance(turns, (list, tuple)) or not turns or not all(map(_is_turn, turns)):
        return (Message("user", text),)
    return tuple(Message(turn["role"], turn["content"]) for turn in turns)


def _is_turn(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and value.keys() == {"role", "content"}
        and all(isinstance(each, str) for each in value.values())
        and bool(value["role"])
    )
