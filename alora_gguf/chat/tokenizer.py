"""What conversations come to in tokens, before a model is opened: a base's vocabulary and chat
template, without its weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from alora_gguf._calls import checked
from alora_gguf.engine.activation import Loaded, begins_at
from alora_gguf.engine.loading import BareVocabulary
from alora_gguf.engine.tokens import common
from alora_gguf.errors import ModelError, UnknownAdapterError
from alora_gguf.gguf.base import BaseFile, BaseFingerprint
from alora_gguf.gguf.header import read_header
from alora_gguf.intrinsics import Contract
from alora_gguf.messages import Document, Message, Said, Texts, as_documents, as_said
from alora_gguf.options import Count, GenerateOptions, IntrinsicCall

from .asking import Contracts, Question
from .prompt import ChatTemplate, Dialogue

_REPLY: Final = Message("assistant", ".")  # stands for one that is not written yet
_SLACK: Final = 8  # tokens: a reply may end in other tokens than it began to be read as


@dataclass(frozen=True, slots=True)
class ChatSize:
    """What a conversation comes to, and what is asked about it.

    tokens  what it is read as, before any reply
    least   cells of the KV cache in which its intrinsics can be asked one after another
    most    cells in which all of them can be asked at once
    """

    tokens: tuple[int, ...]
    least: int
    most: int

    def shared(self, other: ChatSize) -> int:
        """How many tokens both conversations begin with."""
        return common(self.tokens, other.tokens)


@checked
class Tokenizer:
    """A base's vocabulary and chat template without its weights; also a context manager.

    n_ctx_train  the context length that its file says it was trained for; None if it does not say
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        template: str | None = None,
        adapters: Mapping[str, Loaded] | None = None,
        contracts: Mapping[str, Contract] | None = None,
        special_tokens_in_text: bool = False,
    ) -> None:
        """`template` is Jinja text to use instead of the base's own; `adapters`, read but not
        loaded, are those that size() can be asked about, `contracts` others than theirs;
        `special_tokens_in_text` is as for Model.

        Raises ModelError if the file is not a base, or there is no template that can be parsed.
        """
        self._base = BaseFile.read(path)
        self.n_ctx_train = _context_length(self._base)
        self._bare = BareVocabulary(self._base.path, str(path))
        own = self._base.chat_template
        if template is None and own is None:
            self.close()
            raise ModelError(
                f"{path}: has no chat template, so it does not say how a conversation is written; "
                "give one, or use a base that was tuned to chat"
            )
        name = str(path) if template in (None, own) else "template"  # as Model names it
        self._template = ChatTemplate(
            template or own or "",
            self._bare.vocab,
            name,
            special_tokens_in_text=special_tokens_in_text,
        )
        self._files = dict(adapters or {})
        self._contracts = Contracts(self._find, contracts)

    def fingerprint(self) -> str:
        """What the base is known by in saved sessions: a hash of parts of its file. Raises
        ModelError.
        """
        return BaseFingerprint.of(self._base).digest

    def size(
        self,
        messages: Iterable[Said],
        documents: Texts = (),
        *,
        calls: Sequence[IntrinsicCall] = (),
        reply: GenerateOptions | None = None,
        n_ctx: Count | None = None,
    ) -> ChatSize:
        """What a conversation comes to, with a `reply` to it and `calls` about all that. One whose
        text has more tokens than the `n_ctx` cells that it shall have is refused before it is split
        into them, which may take minutes, where that can be told: CacheFullError.

        Prompts are worked out as Chat would. Raises InputError where the chat template or a
        contract refuses the conversation, UnknownAdapterError, ContractError.
        """
        said, pages = as_said(messages), as_documents(documents)
        self._bare.vocab.room = n_ctx
        dialogue = self._dialogue(said, pages)
        tokens, held, ahead, writer = dialogue.transcript.tokens, 0, 0, None
        if reply is not None:
            writer = None if reply.adapter is None else self._contracts.acting(reply.adapter)
            ahead = reply.max_tokens + _SLACK
            prompt = dialogue.reply_prompt(() if writer is None else writer.invocation)
            held = len(prompt.tokens) + ahead
            dialogue = self._dialogue((*said, _REPLY), pages)
        held = max(held, len(dialogue.transcript.tokens) + ahead)
        own = []
        for call in calls:
            asked = Question.about(self._contracts, dialogue, call).invocation
            shared = self._shared(call.name, dialogue, asked.prompt or ())
            whole = shared == len(dialogue.transcript.tokens) and writer is None
            n = len(asked.prompt or ()) - shared + asked.max_tokens
            own.append(n + (0 if whole else ahead))
        return ChatSize(tokens, held + max(own, default=0), held + sum(own))

    def _dialogue(self, said: tuple[Message, ...], pages: tuple[Document, ...]) -> Dialogue:
        """As a session would hold it."""
        bare = Dialogue(self._template, self._bare.vocab, said, pages)
        return replace(bare, transcript=bare.written(prompt=False))

    def _shared(self, name: str, dialogue: Dialogue, prompt: Sequence[int]) -> int:
        """How many of the conversation's cells serve an intrinsic's prompt."""
        read, asked = dialogue.transcript.tokens, self._find(name)
        shared = common(read, tuple(prompt[: begins_at(asked, prompt)]))
        return shared if self._bare.rewinds or shared == len(read) else 0

    def _find(self, name: str) -> Loaded:
        if name not in self._files:
            known = ", ".join(self._files) or "none"
            raise UnknownAdapterError(f"no adapter named '{name}' was given; there are: {known}")
        return self._files[name]

    def close(self) -> None:
        """Frees the vocabulary; idempotent."""
        self._bare.close()

    def __enter__(self) -> Tokenizer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _context_length(base: BaseFile) -> int | None:
    found = read_header(Path(base.path)).metadata.get(f"{base.architecture}.context_length")
    return found if type(found) is int and found > 0 else None
