"""Which tokens switch an adapter on: from its configuration and from the caller, compared."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from alora_gguf.convert.base.model import BaseModel

from alora_gguf.errors import (
    AdapterMismatchError,
    AloraError,
    FileFormatError,
    InputError,
    UnsupportedAdapterError,
)

from .config import FILE_NAME, PeftConfig


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

    Text is tokenized only where ids are missing or have to be compared with it, for that takes as
    long as a whole conversion.
    """
    ids_given = _ids(given, base)
    warnings = []
    if config.invocation:
        ids = config.invocation
        if ids_given not in (None, ids):
            raise InputError(
                f"{config.path}: alora_invocation_tokens = {list(ids)} differs from the given "
                f"invocation {_shown(given, ids_given)}; leave it out to use the file's"
            )
        _check_range(ids, base)
        _check_string(config, ids, base)
    elif config.invocation_text:
        ids = _from_string(config, config.invocation_text, ids_given, base)
        if ids_given is None:
            warnings.append(
                f"{FILE_NAME} has the older invocation_string {config.invocation_text!r}, with "
                "which the adapter is on from the string's second token; so the invocation is "
                f"{_shown(base.tokenizer.text_of(ids), ids)}"
            )
    elif ids_given is None:
        return Invocation((), None)
    else:
        ids = ids_given
        warnings.append(
            f"{FILE_NAME} names no invocation; converted as an aLoRA because one was given"
        )
    _check_range(ids, base)
    text = given if isinstance(given, str) else base.tokenizer.text_of(ids)
    warnings += _check_ends(ids, text, base)
    return Invocation(ids, text, tuple(warnings))


def given_invocation(given: str | Sequence[int], base: BaseModel) -> Invocation:
    """The invocation that a caller gives. Raises InputError, and what a tokenizer does."""
    ids = _ids(given, base) or ()
    _check_range(ids, base)
    return Invocation(ids, given if isinstance(given, str) else base.tokenizer.text_of(ids))


def _ids(given: str | Sequence[int] | None, base: BaseModel) -> tuple[int, ...] | None:
    """The ids that were given, or those of the text that was."""
    if given is None:
        return None
    if isinstance(given, bytes):
        raise InputError("the invocation is bytes, expected text or a list of token ids")
    if len(given) == 0:
        what = "text is" if isinstance(given, str) else "tokens are"
        raise InputError(f"the invocation {what} empty; leave it out for a plain LoRA")
    if isinstance(given, str):
        try:
            given.encode()
        except UnicodeEncodeError:
            raise InputError(f"the invocation {given!r} is not valid text (UTF-8)") from None
        tokens = tuple(base.tokenizer.tokenize(given))
        if not tokens:
            raise InputError(f"{base.label}: has no tokens for the invocation {given!r}")
        return tokens
    for item in given:
        if isinstance(item, bool) or not hasattr(item, "__index__") or item < 0:
            raise InputError(f"the invocation tokens hold {item!r}, expected token ids from 0 on")
    return tuple(map(operator.index, given))


def _check_string(config: PeftConfig, ids: tuple[int, ...], base: BaseModel) -> None:
    """Refuses an invocation_string beside the ids that stands neither for them nor, as in the older
    format, for one more token before them. PEFT itself goes by the ids.
    """
    text = config.invocation_text
    if text is None or base.tokenizer.text_of(ids) == text:
        return
    try:
        tokens = tuple(base.tokenizer.tokenize(text))
    except AloraError:
        return  # nothing to compare with
    if ids not in (tokens, tokens[1:]):
        raise FileFormatError(
            f"{config.path}: alora_invocation_tokens = {list(ids)}, but invocation_string "
            f"{text!r} is {list(tokens)} for {base.label}; remove the one that the adapter was not "
            "trained with, if this is the base it was trained on"
        )


def _from_string(
    config: PeftConfig, text: str, given: tuple[int, ...] | None, base: BaseModel
) -> tuple[int, ...]:
    """The invocation of an adapter that has only the older invocation_string.

    IBM's activated-lora switches the weights on one token after the string's start, where PEFT does
    so at its invocation's first token; so the string's first token is none of the invocation's.
    """
    try:
        tokens = tuple(base.tokenizer.tokenize(text))
    except AloraError as error:
        if given is not None:
            return given
        raise UnsupportedAdapterError(
            f"{config.path}: has only the older invocation_string {text!r}, which has to be "
            f"tokenized: {error}, leaving out its first token, after which the adapter is on"
        ) from error
    if len(tokens) < 2:
        raise UnsupportedAdapterError(
            f"{config.path}: invocation_string {text!r} is one token, {list(tokens)}, for "
            f"{base.label}; in this older format the adapter is on after the first token, so "
            "nothing is left to switch it on: train it with alora_invocation_tokens"
        )
    if given not in (None, tokens[1:]):
        raise InputError(
            f"{config.path}: invocation_string {text!r} makes the invocation {list(tokens[1:])} "
            f"(its tokens without the first), but {list(given or ())} is given; leave it out to "
            "use the file's"
        )
    return tokens[1:]


def _check_range(ids: tuple[int, ...], base: BaseModel) -> None:
    for number in ids:
        if not 0 <= number < base.n_vocab:
            raise AdapterMismatchError(
                f"{base.label}: has the token ids 0 to {base.n_vocab - 1}, but the invocation "
                f"{list(ids)} contains {number}; was the adapter trained on another base?"
            )


def _check_ends(ids: tuple[int, ...], text: str | None, base: BaseModel) -> list[str]:
    """A warning if the invocation begins or ends in ordinary text, which merges with what is beside
    it: "<certainty>" after a space begins with another token than at the start of a line.
    """
    ordinary = base.tokenizer.ordinary(ids)
    if ordinary is None or not (ordinary[0] or ordinary[-1]):
        return []
    ways = []
    if ordinary[0]:
        ways.append(("begins", "begin a line with it"))
    if ordinary[-1]:
        ways.append(("ends", "end the prompt with it or let a special token follow"))
    how, what = (" and ".join(words) for words in zip(*ways, strict=True))
    return [
        f"the invocation {_shown(text, ids)} {how} in ordinary text, which works in chats, where "
        "its tokens are appended; in a prompt that you write as text, what stands beside it can "
        f"merge with it: {what}, or give its ids in place of text"
    ]


def _shown(text: object, ids: tuple[int, ...] | None) -> str:
    stated = f"{text!r} = " if isinstance(text, str) else ""
    return f"{stated}{list(ids or ())}"
