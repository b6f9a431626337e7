"""The KV cache's room: what fits a conversation into it, and into a cache of another size."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import alora_gguf as ag

_STEP: Final = 1024  # cells: what is advised is a multiple
FAR_TOO_MANY: Final = 1 << 30  # tokens, where counting them would take minutes


def beyond(model: ag.Model) -> str | None:
    """What there is to say of a cache that is larger than what the model was trained for."""
    trained = model.n_ctx_train
    if trained is None or model.n_ctx <= trained:
        return None
    return f"the model was trained for {trained} tokens; it may ramble beyond them"


def needed(chat: ag.Chat, messages: Sequence[ag.Message] | None = None) -> int:
    """Cells that the conversation takes, or these messages of it."""
    try:
        return chat.count(messages)
    except ag.CacheFullError:
        return FAR_TOO_MANY


def newest(chat: ag.Chat, messages: Sequence[ag.Message], room: int) -> list[ag.Message]:
    """The messages without so many of the oldest turns that the rest fits `room`; a system message
    and the last turn stay in any case.
    """
    kept = list(messages)
    starts = [i for i, message in enumerate(kept) if message.role == "user"]
    head = [message for message in kept[:1] if message.role == "system"]
    for start in starts[1:]:
        if needed(chat, kept) <= room:
            break
        kept = [*head, *messages[start:]]
    return kept


def check_documents(chat: ag.Chat, documents: Sequence[ag.Document], way_out: str) -> None:
    """Raises InputError for documents that leave no room for a question. `way_out` is how one has
    a larger cache, to which its size is added.
    """
    model, trained = chat.model, chat.model.n_ctx_train
    system = [message for message in chat.messages[:1] if message.role == "system"]
    try:
        found = chat.count([*system, ag.Message("user", "?")], documents)
    except ag.CacheFullError:
        found = FAR_TOO_MANY
    if found < model.n_ctx:
        return
    size = "far too many tokens" if found == FAR_TOO_MANY else f"{found} tokens"
    if found > (trained or found):
        limit, more = f"the model was trained for {trained}", ""
    else:
        limit = f"the KV cache has room for {model.n_ctx}"
        more = f", or {way_out} {-(-found // _STEP) * _STEP + _STEP}"
    raise ag.InputError(f"the documents have {size}, and {limit}; give a part of them{more}")


def moved(chat: ag.Chat, messages: Sequence[ag.Message], model: ag.Model) -> ag.Chat:
    """The conversation, of which `messages` are left, in another model of the same base: with its
    cells where all of it is left, else with nothing read yet.
    """
    if len(messages) == len(chat.messages):
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "moved.alora")
                chat.save(path)
                return model.restore(path)
        except (ag.SavedSessionError, ag.CacheFullError, OSError):
            pass  # by reading, then
    return model.chat(messages=messages, documents=chat.documents, template=chat.template)
