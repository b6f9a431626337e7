"""What stands behind a command: adapters, files, settings, arguments of an intrinsic."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from alora_gguf.cli.adapters import adapter_file
from alora_gguf.cli.calls import NOT_IN_NAMES
from alora_gguf.cli.options import named_path, named_scales, read_bytes
from alora_gguf.cli.render import size_text

import alora_gguf as ag

_DOCUMENT_LIMIT: Final = 4 << 20
SAMPLING: Final = (
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "seed",
)  # fmt: skip
SETTINGS: Final = (*SAMPLING, "max_tokens", "adapter")
_INTEGERS: Final = ("top_k", "seed", "max_tokens")
_NONE: Final = ("", "off", "none")


def split_adapter(text: str, commands: Sequence[str], base: Path) -> tuple[str, Path]:
    """NAME=PATH, a path (named after its file), or a name in the store; the file is one for `base`.
    A name can be typed behind a slash and is none of the `commands`. Raises InputError, and what
    adapter_file() does.
    """
    name, path = named_path(text)
    if NOT_IN_NAMES.search(name) or not name.isprintable():
        raise ag.InputError(f"'{name}': cannot be typed as /NAME; give it another one: NAME={path}")
    if name in commands:
        raise ag.InputError(f"'{name}': is a command's name; give it another one: NAME={path}")
    return name, adapter_file(_checked_path(path), base)


def file_path(text: str) -> Path:
    """A file's path as people type it, which may be quoted and begin with ~. Raises InputError."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    return Path(_checked_path(text))


def _checked_path(text: str) -> str:
    if "\0" in text:
        raise ag.InputError("a path cannot have a character 0")
    return os.path.expanduser(text)  # noqa: PTH111 - leaves what it cannot


def read_text(path: Path) -> str:
    """A file's text. Raises InputError for what is none."""
    data = read_bytes(path, _DOCUMENT_LIMIT + 1)
    if len(data) > _DOCUMENT_LIMIT:
        raise ag.InputError(
            f"{path}: is longer than {size_text(_DOCUMENT_LIMIT)}; give a part of it"
        )
    if data.startswith(b"%PDF-"):
        raise ag.InputError(
            f"{path}: is a PDF, expected a text; convert it first, for instance with pdftotext"
        )
    try:
        text = data.decode("utf-8-sig")
        at = text.find("\0")
    except UnicodeDecodeError as error:
        at = error.start
    if at >= 0:
        raise ag.InputError(
            f"{path}: is not UTF-8 text (byte {at}); convert it to plain text first"
        )
    if not text.strip():
        raise ag.InputError(f"{path}: is empty")
    return text


def read_document(path: Path, number: int) -> ag.Document:
    """A text file as a document. Raises InputError for what is none."""
    return ag.Document(read_text(path).strip(), title=path.name, doc_id=str(number))


def changed_options(
    model: ag.Model, options: ag.GenerateOptions, name: str, text: str
) -> ag.GenerateOptions:
    """The options with one setting changed. Raises InputError, UnknownAdapterError."""
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, 1)
        hint = f"did you mean {near[0]}? There" if near else "there"
        raise ag.InputError(f"there is no setting '{name}'; {hint} are {', '.join(SETTINGS)}")
    if name == "adapter":
        return replace(options, adapter=None if text in _NONE else _writers(model, text))
    sampling = options.sampling
    if name == "seed" and text in _NONE:
        return replace(options, sampling=replace(sampling, seed=None))
    try:
        value = int(text) if name in _INTEGERS else float(text)
    except ValueError:
        kind = "an integer" if name in _INTEGERS else "a number"
        raise ag.InputError(f"/set {name}: expected {kind}, found '{text}'") from None
    if name == "max_tokens":
        if value < 1:
            raise ag.InputError(f"/set max_tokens: expected at least 1, found {value}")
        return replace(options, max_tokens=int(value))
    changed: dict[str, Any] = {name: value}
    try:
        return replace(options, sampling=replace(sampling, **changed))
    except ag.InputError as error:
        raise ag.InputError(str(error).removeprefix("Sampling(): ")) from None


def _writers(model: ag.Model, text: str) -> ag.AdapterLike | None:
    """The adapter that replies, or several as NAME=SCALE with spaces between; None if all are 0.
    Raises InputError, UnknownAdapterError.
    """
    if text in model.adapters or not ("=" in text or len(text.split()) > 1):
        _ = model.adapter(text)
        return text
    by = named_scales(text.split(), "/set adapter", model.adapters)
    for name in by:
        _ = model.adapter(name)
    return by or None


def shown_setting(options: ag.GenerateOptions, name: str) -> str:
    """A setting's value, for people."""
    if name == "adapter":
        by = options.adapter
        if isinstance(by, Mapping):
            return " + ".join(f"{each} at {scale:g}" for each, scale in by.items())
        return by or "none: the base replies"
    if name == "max_tokens":
        return str(options.max_tokens)
    value = getattr(options.sampling, name)
    if value is None:
        return "a new one each time"
    return f"{value:g}" if isinstance(value, float) else str(value)
