"""Which tokens switch an adapter on: from its configuration, from the caller, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alora_gguf.errors import AdapterMismatchError, InputError, UnsupportedAdapterError

from .base_model import BaseModel
from .peft_config import FILE_NAME, PeftConfig


@dataclass(frozen=True)
class Invocation:
    """The ids that switch an aLoRA on, () for a plain LoRA; the text they stand for, if known."""

    tokens: tuple[int, ...]
    text: str | None
    warnings: tuple[str, ...] = ()


def find_invocation(
    config: PeftConfig, given: str | Sequence[int] | None, base: BaseModel
) -> Invocation:
    """The invocation of an adapter; `given` is its text or ids, where the configuration lacks them.

    Raises InputError if `given` is empty or contradicts the configuration, AdapterMismatchError for
    ids outside the base's vocabulary.
    """
    if given is not None and not given:
        raise InputError("the invocation tokens are empty; leave them out for a plain LoRA")
    if isinstance(given, str):
        given = base.tokenize(given)
    if config.invocation and given is not None and tuple(given) != config.invocation:
        raise InputError(
            f"{config.path}: alora_invocation_tokens = {list(config.invocation)} differs from "
            f"the given invocation tokens {list(given)}; leave them out to use the file's"
        )
    if config.invocation_text and not config.invocation and given is None:
        raise UnsupportedAdapterError(
            f"{config.path}: has an invocation_string but no alora_invocation_tokens, and this "
            "version does not tokenise; pass the ids with --invocation-tokens. In this older "
            "format the adapter is on after the string's first token, so leave the first id out"
        )
    warnings = []
    if given is not None and not config.invocation and not config.invocation_text:
        warnings.append(
            f"{FILE_NAME} names no invocation; converted as an aLoRA because tokens were given"
        )
    ids = config.invocation or tuple(given or ())
    for number in ids:
        if not 0 <= number < base.n_vocab:
            raise AdapterMismatchError(
                f"{base.label}: has the token ids 0 to {base.n_vocab - 1}, but the invocation "
                f"{list(ids)} contains {number}; was the adapter trained on another base?"
            )
    return Invocation(ids, config.invocation_text if ids else None, tuple(warnings))
