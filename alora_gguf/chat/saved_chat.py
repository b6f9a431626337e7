"""What a saved session holds of a chat: messages, documents, how they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from alora_gguf.errors import SavedSessionError
from alora_gguf.messages import Document, Message, as_documents, as_said

_KEY: Final = "alora_gguf.chat"


@dataclass(frozen=True, slots=True)
class ChatNotes:
    """A chat as its notes have it.

    template  the Jinja text that writes it, and `arguments` further variables of that
    text      what the session's `tokens` stand for
    reader    the adapter that reads it (None: the base) and its scale
    """

    messages: tuple[Message, ...]
    documents: tuple[Document, ...]
    arguments: Mapping[str, object]
    template: str
    text: str
    tokens: tuple[int, ...]
    reader: tuple[str | None, float]

    def to_notes(self) -> dict[str, Any]:
        """For Session.save()."""
        kept = asdict(self)
        return {_KEY: {k: list(v) if isinstance(v, tuple) else v for k, v in kept.items()}}

    @classmethod
    def of(cls, notes: Mapping[str, Any], origin: str) -> ChatNotes:
        """The chat in a saved session's `notes`. Raises SavedSessionError if there is none, or it
        is not what to_notes() made.
        """
        kept = notes.get(_KEY)
        if not isinstance(kept, Mapping):
            raise SavedSessionError(
                f"{origin}: holds a session without a chat's messages; open it with "
                "Model.restore_session()"
            )
        try:
            adapter, scale = kept["reader"]
            if not isinstance(kept["template"], str):
                raise TypeError("the template is not text")
            return cls(
                as_said(kept["messages"]),
                as_documents(kept["documents"]),
                dict(kept["arguments"]),
                kept["template"],
                str(kept["text"]),
                tuple(map(int, kept["tokens"])),
                (None if adapter is None else str(adapter), float(scale)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(origin, error) from error


def damaged(origin: str, error: Exception) -> SavedSessionError:
    """The error for notes that cannot be a chat's."""
    return SavedSessionError(
        f"{origin}: the chat that it holds is damaged ({error!r}); restore its session with "
        "Model.restore_session()"
    )
