"""A model's chat template: from messages and documents to the text that the model reads, and on to
tokens. Knows no cells; what a conversation holds is Chat's.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

from alora_gguf.engine.vocab import Vocabulary
from alora_gguf.errors import InputError, ModelError
from alora_gguf.messages import Document, Message

OURS: Final = frozenset(
    {
        "add_generation_prompt", "bos_token", "documents", "eos_token", "function_call",
        "functions", "messages", "raise_exception", "strftime_now", "tool_choice", "tools",
    }
)  # fmt: skip
"""Names that a template gets from us, so that a caller's arguments cannot set them."""


_LONG: Final = 64
"""Characters before a seam that are looked at: more than a control token has."""

_Key = tuple[bool, tuple[Message, ...], tuple[Document, ...], dict[str, object]]


class ChatTemplate:
    """A Jinja chat template, rendered in llama-cpp-python's sandbox; for any thread."""

    def __init__(self, source: str, vocab: Vocabulary, name: str) -> None:
        """`source` is the template, `name` stands for it in messages. Raises ModelError for one
        that cannot be parsed.
        """
        # after the native library, which it would look for elsewhere
        from jinja2 import TemplateError
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        self.source, self.name = source, name
        self._latest: deque[tuple[_Key, str]] = deque(maxlen=4)
        bos, eos = vocab.special_text("bos"), vocab.special_text("eos")
        try:
            self._formatters: dict[bool, Any] = {
                prompt: Jinja2ChatFormatter(source, eos, bos, add_generation_prompt=prompt)
                for prompt in (True, False)
            }
        except TemplateError as error:
            raise ModelError(
                f"{name}: the chat template cannot be parsed: {error}; pass another as template="
            ) from error

    def check_arguments(self, arguments: Mapping[str, object], what: str) -> None:
        """Raises InputError for arguments that the template has no use for, or gets from us."""
        self.check_ours(arguments, what)
        for name in arguments:
            if not self.uses(name):
                raise InputError(f"{what}: {self.name}: the chat template has no use for {name!r}")

    def check_ours(self, arguments: Mapping[str, object], what: str) -> None:
        """Raises InputError for arguments that the template gets from us."""
        for name in arguments:
            if name in OURS:
                raise InputError(f"{what} cannot set {name!r}: it is set for every conversation")

    def uses(self, name: str) -> bool:
        """Whether the template mentions a variable."""
        return re.search(rf"\b{re.escape(name)}\b", self.source) is not None

    def render(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document],
        arguments: Mapping[str, object],
        *,
        prompt: bool,
    ) -> str:
        """The conversation as text; with `prompt` it ends with what begins the assistant's turn.

        Raises InputError for documents that the template has no use for, and with the template's
        own words if it refuses the messages.
        """
        key = (prompt, tuple(messages), tuple(documents), deepcopy(dict(arguments)))
        for known, text in tuple(self._latest):
            if known == key:
                return text
        text = self._render(messages, documents, arguments, prompt)
        if "strftime_now" not in self.source:
            self._latest.append((key, text))
        return text

    def _render(
        self,
        messages: Sequence[Message],
        documents: Sequence[Document],
        arguments: Mapping[str, object],
        prompt: bool,
    ) -> str:
        given = dict(arguments)
        if documents:
            if not self.uses("documents"):
                raise InputError(
                    f"{self.name}: the chat template has no use for documents; put them into a "
                    "message, or use an intrinsic whose contract does (docs_as_message)"
                )
            given["documents"] = [document.fields() for document in documents]
        try:
            rendered = self._formatters[prompt](
                messages=[{"role": m.role, "content": m.content} for m in messages], **given
            )
        except Exception as error:  # a template may do, and fail at, anything
            raise InputError(
                f"{self.name}: the chat template refused the conversation: "
                f"{str(error) or type(error).__name__}"
            ) from error
        text: str = rendered.prompt
        return text


@dataclass(frozen=True, slots=True)
class Transcript:
    """A conversation's text, and the tokens that a model has read or written for it. The tokens of
    what the model wrote need not be those that its tokenizer would make of the text.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()

    def become(self, text: str, vocab: Vocabulary) -> Transcript:
        """The transcript of `text`. Our tokens stay as they are up to a seam that no token can
        reach over: the last control token (of theirs or of `text`) before the two differ, or the
        end of `text`. What follows there is tokenized again.

        Like transformers' apply_chat_template(), it adds no token that the template does not write.
        """
        if text == self.text:
            return self
        same = common(self.text, text)
        n, end = len(self.tokens), len(self.text)  # so many tokens spell so many characters
        while n:
            if end <= same:
                rest = _tokens(text[end:], vocab)
                if not rest or _begins_anew(text[:end], rest[0], vocab):
                    return Transcript(text, (*self.tokens[:n], *rest))
            last, n = n, n - 1
            while n and not vocab.is_special(self.tokens[n]):
                n -= 1
            part = vocab.detokenize(self.tokens[n:last], special=True)
            if not self.text.endswith(part, 0, end):
                break  # the tokens do not spell the text
            end -= len(part)
        return Transcript(text, _tokens(text, vocab))


def common(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items, or characters, two sequences have in common at the beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _begins_anew(before: str, token: int, vocab: Vocabulary) -> bool:
    """Whether no token can reach from the text `before` into that of `token`: the tokenizer looks
    for control tokens first, and takes the longest.
    """
    if not vocab.is_special(token):
        return False
    seam = before[-_LONG:] + vocab.detokenize([token], special=True)
    return _tokens(seam, vocab)[-1] == token


def _tokens(text: str, vocab: Vocabulary) -> tuple[int, ...]:
    return tuple(vocab.tokenize(text, add_special=False, parse_special=True)) if text else ()
