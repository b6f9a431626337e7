"""What a contract makes of a conversation, the request, and of the reply to it: the answer that its
rules come to, one after the other.

Where this differs from mellea is listed in docs/intrinsics.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import Formatter
from typing import Final

from alora_gguf._kinds import checked
from alora_gguf.errors import InputError
from alora_gguf.messages import Document, Message
from alora_gguf.options import TokenLogprob

from .contract import Contract
from .records import TOP_LOGPROBS
from .reply import JsonValue, Reply, Tokens, parse
from .sentences import DOCUMENTS, HISTORY, LAST_MESSAGE, Sentence, tag


@dataclass(frozen=True)
class Request:
    """What to ask a model.

    messages         the conversation as the model shall see it
    documents        what is left to the chat template
    parameters       the contract's, by their names in a chat completion's request
    response_format  a JSON Schema that the reply must meet; None if it may be anything
    top_logprobs     how many alternatives of each token to report; 0 for no log-probabilities
    sentences        which sentence has which number, by the places of `sentence_boundaries`
    """

    messages: tuple[Message, ...]
    documents: tuple[Document, ...] = ()
    parameters: Mapping[str, JsonValue] = field(default_factory=dict)
    response_format: Mapping[str, JsonValue] | None = None
    top_logprobs: int = 0
    sentences: Mapping[str, tuple[Sentence, ...]] = field(default_factory=dict)

    @property
    def want_logprobs(self) -> bool:
        """Whether the reply's rules need the log-probabilities of its tokens."""
        return self.top_logprobs > 0


@checked
def rewrite(
    contract: Contract,
    messages: Sequence[Message],
    documents: Sequence[Document] = (),
    arguments: Mapping[str, str] | None = None,
) -> Request:
    """The request for a conversation: sentences numbered, documents placed, instruction appended.

    `arguments` fill in the instruction's fields; `last_message` fills in itself, with the text of
    the last message before the instruction.

    Raises InputError if an argument is missing or unknown, if there is no message where one is
    needed, and if sentences must be numbered but nltk is not installed.
    """
    arguments = {} if arguments is None else arguments
    _check_arguments(contract, arguments)
    if contract.docs_as_message in ("string", "roles"):  # where each document shows its id
        documents = [
            document if document.doc_id is not None else replace(document, doc_id=str(i))
            for i, document in enumerate(documents)
        ]
    new_messages, new_documents, sentences = _number_sentences(contract, messages, documents)
    if contract.docs_as_message is not None:
        new_messages = _as_messages(contract.docs_as_message, new_documents) + new_messages
        new_documents = []
    if contract.instruction is not None:
        new_messages.append(_instruction(contract, new_messages, arguments))
    return Request(
        messages=tuple(new_messages),
        documents=tuple(new_documents),
        parameters=contract.parameters,
        response_format=contract.response_format,
        top_logprobs=TOP_LOGPROBS if contract.needs_logprobs else 0,
        sentences=sentences,
    )


def _number_sentences(
    contract: Contract, messages: Sequence[Message], documents: Sequence[Document]
) -> tuple[list[Message], list[Document], dict[str, tuple[Sentence, ...]]]:
    """Tags what `sentence_boundaries` names.

    The last message is counted from 0; documents and the messages before the last share a counter.
    """
    prefixes = contract.sentence_boundaries or {}
    new_messages, new_documents = list(messages), list(documents)
    sentences: dict[str, tuple[Sentence, ...]] = {}
    if LAST_MESSAGE in prefixes:
        if not messages:
            raise InputError(
                f"{contract.source}: this intrinsic numbers the sentences of the last message, but "
                "there is no message; give the conversation that it is about"
            )
        last = messages[-1]
        text, found = tag(last.content, prefixes[LAST_MESSAGE], 0)
        new_messages[-1] = replace(last, content=text)
        sentences[LAST_MESSAGE] = tuple(found)
    count = 0
    if DOCUMENTS in prefixes:
        shared: list[Sentence] = []
        for i, document in enumerate(documents):
            text, found = tag(
                document.text, prefixes[DOCUMENTS], count, document_id=document.doc_id
            )
            new_documents[i] = replace(document, text=text)
            shared += found
            count += len(found)
        sentences[DOCUMENTS] = tuple(shared)
    if HISTORY in prefixes:
        shared = []
        for i, message in enumerate(messages[:-1]):
            text, found = tag(message.content, prefixes[HISTORY], count, message_index=i)
            new_messages[i] = replace(message, content=text)
            shared += found
            count += len(found)
        sentences[HISTORY] = tuple(shared)
    return new_messages, new_documents, sentences


def _as_messages(how: str, documents: Sequence[Document]) -> list[Message]:
    """Documents as messages at the beginning of a conversation; none if there are none."""
    if not documents:
        return []
    if how == "roles":
        return [Message(f"document {doc.doc_id}", doc.text) for doc in documents]
    if how == "json":
        return [Message("user", json.dumps([document.fields() for document in documents]))]
    shown = "\n\n".join(f"[Document {doc.doc_id}]\n{doc.text}" for doc in documents)
    return [Message("user", f"You have access to the following documents:\n\n{shown}")]


def _instruction(
    contract: Contract, messages: Sequence[Message], arguments: Mapping[str, str]
) -> Message:
    """The instruction with its fields filled in, as a message of the user."""
    values = dict(arguments)
    if messages:
        values["last_message"] = messages[-1].content
    elif "last_message" in contract.instruction_fields:
        raise InputError(
            f"{contract.source}: the instruction quotes the last message, but there is no message; "
            "give the conversation that it is about"
        )
    # joined by hand: str.format() would follow attributes and indices if a template had any
    parts = Formatter().parse(contract.instruction or "")
    filled = (text if name is None else f"{text}{values[name]}" for text, name, _, _ in parts)
    return Message("user", "".join(filled))


def _check_arguments(contract: Contract, arguments: Mapping[str, str]) -> None:
    wanted = [name for name in contract.instruction_fields if name != "last_message"]
    given = ", ".join(sorted(map(str, arguments))) or "none"
    missing = [name for name in wanted if name not in arguments]
    if missing:
        raise InputError(
            f"{contract.source}: the instruction needs the argument {', '.join(missing)}; given: "
            f"{given}"
        )
    unknown = sorted(set(arguments) - set(wanted))
    if unknown:
        known = ", ".join(wanted) or "none"
        raise InputError(
            f"{contract.source}: unknown argument {', '.join(unknown)}; the instruction takes "
            f"{known}"
        )
    for name, value in arguments.items():
        if not isinstance(value, str):
            raise InputError(
                f"{contract.source}: the argument {name} is {type(value).__name__}, expected a "
                "string"
            )


_CHANNEL: Final = "<|channel|>"
_MESSAGE: Final = "<|message|>"
_ENDS: Final = frozenset({"<|end|>", "<|return|>", "<|end_of_text|>"})


@dataclass(frozen=True)
class Outcome:
    """What an intrinsic answers: a JSON value; and the tokens whose probabilities went into it, in
    the order of the rules.
    """

    value: JsonValue
    used: tuple[TokenLogprob, ...] = ()


@checked
def transform(
    contract: Contract,
    text: str,
    logprobs: Sequence[TokenLogprob] | None,
    request: Request,
    *,
    max_tokens: int | None = None,
) -> Outcome:
    """What `text`, the reply to `request`, means by the contract.

    `logprobs` are the reply's tokens, without an end token; each with its `request.top_logprobs`
    likeliest alternatives where the contract needs them, else None will do. `max_tokens` is the
    limit that the reply had, for messages (None: the contract's).

    Raises OutputError if the reply is not what the contract says: no JSON, cut off, of another
    shape, with a sentence number that was not given. Raises InputError if log-probabilities are
    needed and missing, or are those of another text.
    """
    source = f"{contract.source}: the reply"
    if contract.logprobs_workaround and logprobs is not None:
        final = final_channel(logprobs)
        if final is not None:
            logprobs, text = final, "".join(token.text for token in final)
    root = parse(text, source, contract.max_tokens if max_tokens is None else max_tokens)
    weighs = logprobs is not None and contract.needs_logprobs
    tokens = Tokens(logprobs, text, source) if weighs and logprobs is not None else None
    reply = Reply(source, root, tokens, request.sentences)
    value = root.value
    for rule in contract.transformations:
        value = rule.apply(value, reply)
    return Outcome(value, tuple(reply.used))


def final_channel(tokens: Sequence[TokenLogprob]) -> Sequence[TokenLogprob] | None:
    """The tokens of the last final channel in OpenAI's Harmony format; None if there is none, or
    nothing in it.

    A server may or may not strip `<|channel|>analysis<|message|>...` from the text, so a contract
    with logprobs_workaround goes by the tokens. Whole tokens are compared: the same characters,
    spelled by ordinary tokens, are not a header.
    """
    texts = [token.text for token in tokens]
    begins = [end for i in range(len(texts)) if (end := _header_end(texts, i)) is not None]
    if not begins:
        return None
    begin = begins[-1]
    end = next((i for i in range(begin, len(texts)) if texts[i] in _ENDS), len(texts))
    return tokens[begin:end] or None


def _header_end(texts: Sequence[str], at: int) -> int | None:
    """Where the content begins, if `<|channel|> final <|message|>` stands at `at`."""
    if texts[at] != _CHANNEL:
        return None
    word = _skip_space(texts, at + 1)
    if word == len(texts) or texts[word].strip() != "final":
        return None
    message = _skip_space(texts, word + 1)
    return message + 1 if message < len(texts) and texts[message] == _MESSAGE else None


def _skip_space(texts: Sequence[str], at: int) -> int:
    while at < len(texts) and not texts[at].strip():
        at += 1
    return at
