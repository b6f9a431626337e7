"""An invocation of a base's own control tokens, so that its ids are the same wherever it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from alora_gguf.errors import InputError
from alora_gguf.model import Model

# what begins a turn in common chat templates, with a role's name in it
_TURNS: Final = (
    "<|start_of_role|>{}<|end_of_role|>",
    "<|im_start|>{}\n",
    "<|start_header_id|>{}<|end_header_id|>\n\n",
    "<start_of_turn>{}\n",
    "<|start|>{}<|message|>",
)
# tokens that vocabularies have for purposes to come
_UNUSED: Final = ("<unused{}>", "<|reserved_special_token_{}|>", "<|unused{}|>", "[unused{}]")
_MOST_UNUSED: Final = 100


def choose_invocation(
    model: Model, name: str, template: str | None, taken: Sequence[tuple[int, ...]] = ()
) -> str:
    """A text for an adapter of that `name`, to stand behind the conversation: the beginning of a
    turn of its own role, as the base's chat `template` begins turns; else a token that the
    vocabulary has for purposes to come, other than those `taken`; else what begins instructions.
    """
    for form in _TURNS:
        opening = form.split("{}")[0]
        if (template is None or opening in template) and len(ids_of(model, opening)) == 1:
            return form.format(name)
    for form in _UNUSED:
        for number in range(_MOST_UNUSED):
            ids = ids_of(model, form.format(number))
            if len(ids) == 1 and ids not in taken:
                return form.format(number)
    return instruction_opening(name)


def instruction_opening(name: str) -> str:
    """The text of an adapter of that `name` that begins its instruction: ordinary text, as a user's
    message can hold it.
    """
    return f"<{name}>"


def ids_of(model: Model, text: str) -> tuple[int, ...]:
    """The token ids of an invocation. Raises InputError if there are none."""
    ids = tuple(model.tokenize(text))
    if not ids:
        raise InputError(f"the invocation {text!r} has no tokens in this vocabulary")
    return ids
