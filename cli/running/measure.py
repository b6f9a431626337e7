"""How many tokens a conversation has and how many cells answering takes, told from the base's
vocabulary alone: so that a cache can be opened that is large enough, and no larger.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import Final

from alora_gguf.chat.prompt import Dialogue
from alora_gguf.chat.tokenizer import Tokenizer
from alora_gguf.engine.provenance import find_last
from alora_gguf.intrinsics import rewrite
from alora_gguf.messages import Message

from .conversations import Conversation, Entry
from .plan import Intrinsic, Plan

_REPLY: Final = Message("assistant", ".")  # stands for one that is not written yet
_SLACK: Final = 8  # tokens: a reply may end in other tokens than it began to be read as


@dataclass(frozen=True, slots=True)
class Task:
    """A conversation to work on.

    tokens  what it is read as, before any reply
    least   cells with which it can be worked on: its intrinsics take turns then
    most    cells with which all of them are asked at once
    """

    entry: Entry
    conversation: Conversation
    tokens: array[int]
    least: int
    most: int


def measure(tokenizer: Tokenizer, plan: Plan, entry: Entry, conversation: Conversation) -> Task:
    """Works out the prompts as they will be asked. Raises InputError where the chat template or a
    contract refuses the conversation.
    """
    said, reply = conversation.messages, plan.reply
    dialogue = _written(tokenizer, conversation, said)
    tokens, held, ahead = dialogue.transcript.tokens, 0, 0
    if reply is not None:
        invocation = () if plan.reply_file is None else plan.reply_file.invocation
        ahead = reply.max_tokens + _SLACK
        held = len(dialogue.reply_prompt(invocation).tokens) + ahead
        dialogue = _written(tokenizer, conversation, (*said, _REPLY))
    held = max(held, len(dialogue.transcript.tokens) + ahead)
    own = []
    for each in plan.intrinsics:
        shares, n = _own_cells(tokenizer, each, dialogue, conversation)
        by_base = shares and plan.reply_file is None
        own.append(n + each.max_tokens + (0 if by_base else ahead))
    least = held + max(own, default=0)
    return Task(entry, conversation, array("i", tokens), least, held + sum(own))


def _written(
    tokenizer: Tokenizer, conversation: Conversation, messages: tuple[Message, ...]
) -> Dialogue:
    """The dialogue as a session would hold it."""
    bare = Dialogue(tokenizer.template, tokenizer.vocab, messages, conversation.documents)
    return replace(bare, transcript=bare.written(prompt=False))


def _own_cells(
    tokenizer: Tokenizer, intrinsic: Intrinsic, dialogue: Dialogue, conversation: Conversation
) -> tuple[bool, int]:
    """Whether its prompt goes on from the conversation, and how many cells it takes beyond that."""
    contract, invocation = intrinsic.contract, intrinsic.file.invocation
    arguments = conversation.arguments_of(intrinsic.name)
    request = rewrite(contract, dialogue.messages, dialogue.documents, arguments)
    prompt = dialogue.question(
        request,
        contract.chat_template_kwargs,
        invocation=invocation,
        instructed=contract.instruction is not None,
    )
    read = dialogue.transcript.tokens
    first = find_last(prompt, invocation) if invocation else 0
    n = min(len(read), len(prompt), len(prompt) if first is None else first)
    shared = n
    if read[:n] != prompt[:n]:
        shared = next(i for i in range(n) if read[i] != prompt[i])
    if not tokenizer.rewinds and shared < len(read):
        shared = 0
    return shared == len(read), len(prompt) - shared
