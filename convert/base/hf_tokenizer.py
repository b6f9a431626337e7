"""The tokenizer.json of a Hugging Face directory: text to ids by the library `tokenizers`, ids to
text and what is special by the file alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from alora_gguf.errors import AloraError, ConvertError, FileFormatError
from alora_gguf.files import read_small

from .tokenizer import BYTE, BYTE_LEVEL, CONTROL, NORMAL, SENTENCE_PIECE, Token, Tokenizer

_NAME: Final = "tokenizer.json"
_MAX_BYTES: Final = 256 << 20
_BYTE_TOKEN: Final = re.compile("<0x[0-9A-F]{2}>")
_WAYS_OUT: Final = "give the base as a GGUF, or pass the ids with --invocation-tokens"


class HFTokenizer(Tokenizer):
    """A directory's tokenizer.json, which need not exist and is read when it is first needed."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / _NAME

    def tokenize_all(self, texts: Sequence[str]) -> list[list[int]]:
        """As Tokenizer, by the library `tokenizers`."""
        if not self.path.is_file():
            raise ConvertError(
                f"{self.path}: there is no such file, so text cannot be tokenized; fetch it, "
                f"{_WAYS_OUT}"
            )
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConvertError(
                f"{self.path}: text can be tokenized only with the library 'tokenizers'; run "
                f"`pip install tokenizers`, {_WAYS_OUT}"
            ) from None
        source = read_small(self.path, _MAX_BYTES).decode("utf-8", "replace")
        try:
            tokenizer = Tokenizer.from_str(source)
        except Exception as error:  # the library raises nothing more specific
            raise FileFormatError(
                f"{self.path}: cannot be used: {error}; download it again, {_WAYS_OUT}"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return [list(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]

    @property
    def n_listed(self) -> int | None:
        """The tokens of the model and the added ones, counted one by one; None if unknown."""
        if self._vocabulary is None:
            return None
        return len(self._vocabulary) + len(self._added)

    def find(self, tokens: Sequence[int]) -> list[Token] | None:
        """As Tokenizer; added tokens are CONTROL."""
        if self._vocabulary is None:
            return None
        wanted = set(tokens)
        found = {}
        for text, number in self._vocabulary:
            if number in wanted:
                is_byte = self.model == SENTENCE_PIECE and _BYTE_TOKEN.fullmatch(text)
                found[number] = Token(text.encode("utf-8", "replace"), BYTE if is_byte else NORMAL)
        for number, text in self._added.items():
            found[number] = Token(text.encode("utf-8", "replace"), CONTROL)
        return [found[token] for token in tokens] if wanted <= found.keys() else None

    @cached_property
    def _fields(self) -> dict[str, Any]:
        """What the file says; nothing if it cannot be read: nothing that depends on it is vital."""
        try:
            fields = json.loads(read_small(self.path, _MAX_BYTES))
        except (AloraError, ValueError, RecursionError):
            return {}
        return fields if isinstance(fields, dict) else {}

    @cached_property
    def _vocabulary(self) -> list[tuple[str, int]] | None:
        """(token, id) of the model; a unigram model's are listed in the order of their ids."""
        model = self._fields.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocabulary, dict):
            return [(text, number) for text, number in vocabulary.items() if type(number) is int]
        if isinstance(vocabulary, list):
            firsts = (item[0] if isinstance(item, list) and item else None for item in vocabulary)
            return [(text, i) for i, text in enumerate(firsts) if isinstance(text, str)]
        return None

    @cached_property
    def _added(self) -> dict[int, str]:
        listed = self._fields.get("added_tokens")
        items = listed if isinstance(listed, list) else []
        pairs = ((i.get("id"), i.get("content")) for i in items if isinstance(i, dict))
        return {n: text for n, text in pairs if type(n) is int and isinstance(text, str)}

    @cached_property
    def model(self) -> str | None:  # type: ignore[override]  # read when it is first needed
        """The kind of vocabulary, as tokenizer.ggml.model has it; None if it is another one."""
        steps = list(self._steps("pre_tokenizer", "decoder"))
        if any(step.get("type") == "ByteLevel" for step in steps):
            return BYTE_LEVEL
        model = self._fields.get("model")
        falls_back = isinstance(model, dict) and model.get("byte_fallback") is True
        if falls_back or any(step.get("type") == "Metaspace" for step in steps):
            return SENTENCE_PIECE
        return None

    @cached_property
    def space_prefix(self) -> bool:  # type: ignore[override]
        """Whether its normalizer or pre-tokenizer puts a space before a text."""
        for step in self._steps("normalizer", "pre_tokenizer"):
            if step.get("type") == "Prepend":
                return True
            if step.get("type") == "Metaspace":
                scheme = step.get("prepend_scheme")
                return scheme != "never" if scheme else step.get("add_prefix_space") is not False
        return False

    def _steps(self, *names: str) -> Iterator[dict[str, Any]]:
        """The steps of the named parts of the pipeline, those of a sequence one by one."""
        for name in names:
            part = self._fields.get(name)
            if not isinstance(part, dict):
                continue
            inner = [value for value in part.values() if isinstance(value, list)]
            yield from (step for steps in inner for step in steps if isinstance(step, dict))
            yield part
