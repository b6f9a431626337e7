"""What tests see of a model's and a session's inside: the one place that touches their privates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import alora_gguf as ag
from alora_gguf.chat.prompt import ChatTemplate
from alora_gguf.engine.cells import CellAllocator
from alora_gguf.engine.context import Engine
from alora_gguf.engine.prefix_cache import PrefixCache
from alora_gguf.engine.runtime import Runtime
from alora_gguf.engine.sequence import TokenSequence
from alora_gguf.engine.tokens import Vocabulary


def runtime(model: ag.Model) -> Runtime:
    return model._runtime


def engine(model: ag.Model) -> Engine:
    return runtime(model).engine


def cells(model: ag.Model) -> CellAllocator:
    """Who has which cells."""
    return engine(model).cells


def vocab(model: ag.Model) -> Vocabulary:
    return engine(model).vocab


def prefix_cache(model: ag.Model) -> PrefixCache:
    return runtime(model).prefix_cache


def sequence(session: ag.Session) -> TokenSequence:
    return session._sequence


def last_logits(session: ag.Session) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The logits [n_vocab] after the session's last token."""
    return sequence(session).last_logits()


def last_position(session: ag.Session) -> int:
    """llama.cpp's own word on the session's last cell."""
    native = engine(session.model)
    llama = native.native.llama
    return int(llama.llama_memory_seq_pos_max(native.context.memory, sequence(session).seq))


def forget_prefixes(model: ag.Model) -> None:
    """Empties the prefix cache."""
    while prefix_cache(model).evict():
        pass


def give_back(model: ag.Model) -> None:
    """Empties the prefix cache, and collects what closed sessions have left."""
    forget_prefixes(model)
    engine(model).collect()


def template(chat: ag.Chat) -> ChatTemplate:
    """What writes a chat's messages."""
    return chat._template


def limit_prompt_cache(model: ag.Model, limit: int) -> None:
    """Lets its files have so many bytes."""
    assert model._prompt_cache is not None
    model._prompt_cache._limit = limit


def read_beginning(
    session: ag.Session, tokens: Sequence[int], beginning: Sequence[int]
) -> ag.Timings:
    """As a chat reads what it has with the beginning that it knows of."""
    return session._read(lambda: list(tokens), None, 1.0, None, None, beginning)
