"""An intrinsic's contract, its io.yaml, read strictly: what it makes of a conversation, and of the
reply. docs/intrinsics.md describes the fields, and where it differs from mellea.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from alora_gguf._calls import checked
from alora_gguf.errors import ContractError, InputError, MissingFileError
from alora_gguf.files import read_small
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.classifier import ClassifierFile
from alora_gguf.gguf.header import read_header
from alora_gguf.messages import Document, Message
from alora_gguf.options import ABOUT, FrozenDict, TokenLogprob

from .fields import FIELDS, fields_of, fill
from .reply import Further, JsonValue, Reply, Tokens, check_spelling, parse
from .reply import Path as Place
from .rules import TOP_LOGPROBS, Likelihood, Rule, read_rules
from .sentences import LAST_MESSAGE, Sentence, number_sentences
from .yaml_file import MAX_BYTES, Item, read_yaml

IO_YAML: Final = "io.yaml"
_KEY: Final = "alora.io_yaml"
_NAMES: Final = ("name", "model")
REQUIRED: Final = ("model", "response_format", "transformations")
OPTIONAL: Final = (
    "name",
    "choices",
    "instruction",
    "parameters",
    "sentence_boundaries",
    "docs_as_message",
    "logprobs_workaround",
)


class HasContract(Protocol):
    """An adapter, a vector, or several together: what may have a contract in it."""

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def io_yaml(self) -> str | None:
        """The contract's text, None if there is none."""


@checked
@dataclass(frozen=True, kw_only=True)
class Contract:
    """What an intrinsic expects and answers.

    source               stands for the contract in messages, such as its file's path
    name, model          what the file says; None if it does not
    response_format      the JSON Schema of replies, and in its "x-alora" their form; None if there
                         is none
    transformations      the rules that make an answer of a reply, in order
    instruction          the template of the message that asks; `instruction_fields` are its fields
    parameters           of the request, by their names in a chat completion
    sentence_boundaries  which sentences are numbered: from last_message, documents and
                         all_but_last_message to the prefix of their tags
    docs_as_message      how documents become messages; None leaves them to the chat template
    logprobs_workaround  whether the reply is what its tokens say in Harmony's final channel
    judges               what it is about: the user's last "question" or the "answer" to it; None if
                         the file does not say, as with `good`
    good                 which end of the number that it answers is the good one: "high" or "low"
    free_text            whether the answer is the reply's text as it is, and no JSON: where the
                         file says nothing but names
    digest               SHA-256 of the text it was read from; "" if it was not read
    """

    source: str
    name: str | None = None
    model: str | None = None
    response_format: Mapping[str, JsonValue] | None = None
    transformations: tuple[Rule, ...] = ()
    instruction: str | None = None
    parameters: Mapping[str, JsonValue] = field(default_factory=FrozenDict)
    sentence_boundaries: Mapping[str, str] | None = None
    docs_as_message: Literal["string", "json", "roles"] | None = None
    logprobs_workaround: bool = False
    judges: Literal["question", "answer"] | None = None
    good: Literal["high", "low"] | None = None
    free_text: bool = False
    digest: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("response_format", "parameters", "sentence_boundaries"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, FrozenDict(value))

    @classmethod
    def parse(cls, text: str | bytes, source: str = IO_YAML) -> Contract:
        """The contract that an io.yaml says. Raises ContractError with the line of a mistake."""
        item = read_yaml(text, source)
        if free := _only_names(item):
            found = item.fields((), _NAMES, "a contract")
        else:
            found = item.fields(REQUIRED, OPTIONAL, "a contract")
        given = {
            name: FIELDS[name](item)
            for name, item in found.items()
            if name in FIELDS and not item.is_null
        }
        # where contracts for Ollama have it
        schema = given.get("parameters", {}).pop("response_format", None)
        if schema is not None and given.setdefault("response_format", schema) != schema:
            wanted = "the response_format of the contract, or none"
            raise found["parameters"].error(wanted, "remove one of them", found="another one")
        words = given.pop("choices", None)
        if words is not None:
            about = given.pop("response_format", {})
            if about.keys() - {ABOUT}:
                wanted = "choices or a schema in response_format"
                raise found["choices"].error(wanted, "remove one of them", found="both")
            given["response_format"] = {**words, ABOUT: {**about.get(ABOUT, {}), **words[ABOUT]}}
        boundaries, schema = given.get("sentence_boundaries", ()), given.get("response_format")
        rules = () if free else read_rules(found["transformations"], boundaries, schema)
        # a note to us, which mellea and servers pass over: it refuses unknown fields of a contract
        about = given.get("response_format", {}).pop(ABOUT, {})
        if form := about.pop("form", None):
            given["response_format"][ABOUT] = {"form": form}
        digest = hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()
        return cls(
            source=source, transformations=rules, digest=digest, free_text=free, **given, **about
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Contract:
        """The contract in a file, or in the io.yaml of a directory.

        Raises MissingFileError if there is none, ContractError if it is malformed.
        """
        file = file_in(Path(path))
        data = read_small(file, MAX_BYTES, what="contract's file", error=ContractError)
        return cls.parse(data, str(file))

    @classmethod
    def of_adapter(cls, adapter: HasContract) -> Contract:
        """The contract that the converter put into an adapter's file, as it was when the adapter
        was read. Raises ContractError if there is none.
        """
        return _embedded(adapter.io_yaml, str(adapter.path or adapter.name))

    @cached_property
    def instruction_fields(self) -> tuple[str, ...]:
        """The names of the instruction's fields."""
        return fields_of(self.instruction or "")

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names of the arguments that a call has to give: fields that do not fill themselves
        in.
        """
        return tuple(name for name in self.instruction_fields if name != "last_message")

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Raises InputError where `arguments` are not those that a call has to give."""
        wanted = self.arguments
        unknown = sorted(str(name) for name in arguments if name not in wanted)
        missing = [name for name in wanted if name not in arguments]
        other = [name for name, value in arguments.items() if not isinstance(value, str)]
        if unknown:
            near = get_close_matches(unknown[0], wanted, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            known = ", ".join(wanted) or "none"
            problem = f"unknown argument {', '.join(unknown)}{hint}; the instruction takes {known}"
        elif missing:
            given = ", ".join(sorted(arguments)) or "none"
            problem = f"the instruction needs the argument {', '.join(missing)}; given: {given}"
        elif other:
            kind = type(arguments[other[0]]).__name__
            problem = f"the argument {other[0]} is {kind}, expected a string"
        else:
            return
        raise InputError(f"{self.source}: {problem}")

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts that replies can be, where they are bare words; none where they are JSON."""
        schema: Mapping[str, Any] = self.response_format or {}
        about = schema.get(ABOUT)
        bare = isinstance(about, Mapping) and about.get("form") == "text"
        return tuple(schema.get("enum", ())) if bare else ()

    @property
    def needs_logprobs(self) -> bool:
        """Whether a rule weighs tokens by their probabilities."""
        return any(isinstance(rule, Likelihood) for rule in self.transformations)

    @property
    def tags_history(self) -> bool:
        """Whether text of the conversation or its documents is changed by sentences' tags.

        Then a base's cells can be reused only up to the first such text.
        """
        return bool(self.sentence_boundaries)

    @property
    def moves_documents(self) -> bool:
        """Whether documents become messages before the conversation, with the same consequence."""
        return self.docs_as_message is not None

    def parameter(self, name: str) -> JsonValue:
        """A parameter's value, which may stand in extra_body; None if the contract has none."""
        extra = self.parameters.get("extra_body")
        inner = extra.get(name) if isinstance(extra, dict) else None
        return self.parameters.get(name) if inner is None else inner

    @property
    def max_tokens(self) -> int | None:
        """The most tokens of a reply; None if the contract sets no limit."""
        found = self.parameter("max_completion_tokens")
        found = self.parameter("max_tokens") if found is None else found
        return found if isinstance(found, int) else None

    @property
    def temperature(self) -> float | None:
        """The temperature of sampling; None if the contract does not say."""
        found = self.parameter("temperature")
        return float(found) if isinstance(found, (int, float)) else None

    @property
    def stop(self) -> tuple[str, ...]:
        """The texts that end a reply."""
        found = self.parameter("stop")
        return tuple(map(str, found if isinstance(found, list) else [found] if found else []))

    @property
    def chat_template_kwargs(self) -> Mapping[str, JsonValue]:
        """What the chat template is given besides messages and documents."""
        found = self.parameter("chat_template_kwargs")
        effort = self.parameter("reasoning_effort")  # a variable of templates, as in vLLM
        return {
            **({} if effort is None else {"reasoning_effort": effort}),
            **(found if isinstance(found, dict) else {}),
        }


@checked
def load_contract(
    source: str | os.PathLike[str] | AdapterFile | ClassifierFile,
) -> Contract:
    """The contract of an adapter: of its GGUF or AdapterFile, or an io.yaml or a directory with it.

    Raises ContractError if there is none or if it is malformed, FileFormatError for a damaged GGUF.
    """
    if not isinstance(source, (str, os.PathLike)):
        return Contract.of_adapter(source)
    path = Path(source)
    if path.suffix.lower() != ".gguf" or path.is_dir():
        return Contract.read(path)
    header = read_header(path)
    return _embedded(header.string(_KEY) if _KEY in header.metadata else None, header.name)


def _only_names(item: Item) -> bool:
    """Whether a contract says nothing but who it is of, as Granite Switch allows."""
    given = item.value if isinstance(item.value, dict) else {}
    found = {key.value: value for key, value in given.items()}
    return "name" in found and not found["name"].is_null and found.keys() <= {*_NAMES}


def file_in(path: Path) -> Path:
    """The contract's file in a directory, or that which `path` is. Raises MissingFileError."""
    if not path.is_dir():
        return path
    for name in (IO_YAML, "io.yml"):
        if (path / name).exists():
            return path / name
    raise MissingFileError(
        f"{path}: has no {IO_YAML}; give an adapter's own directory, such as "
        "<library>/<intrinsic>/<model>/alora, or the file itself"
    )


def _embedded(text: str | None, file: str) -> Contract:
    if text is None:
        raise ContractError(
            f"{file}: holds no contract ({_KEY}); convert the adapter again with its {IO_YAML} "
            "beside it, or give the contract as a file"
        )
    return Contract.parse(text, f"{file}({IO_YAML})")


def contract_problem(read: Callable[..., object], *arguments: object) -> str | None:
    """What to tell of an adapter, in a sentence, whose contract `read` finds unusable; None if it
    does not.
    """
    try:
        read(*arguments)
    except ContractError as error:
        return f"the adapter works, but cannot be asked as an intrinsic: {error}"
    return None


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
    *,
    quote: Callable[[str], str] | None = None,
) -> Request:
    """The request for a conversation: sentences numbered, documents placed, instruction appended.

    `arguments` fill in the instruction's fields; `last_message` fills in itself, with the text of
    the last message before the instruction; `quote` says how text stands in it.

    Raises InputError if an argument is missing or unknown, if there is no message where one is
    needed, and if sentences must be numbered but nltk is not installed.
    """
    arguments = {} if arguments is None else arguments
    contract.check_arguments(arguments)
    boundaries = contract.sentence_boundaries or {}
    if not messages and LAST_MESSAGE in boundaries:
        raise _no_message(contract, "this intrinsic numbers the sentences of the last message")
    if contract.docs_as_message in ("string", "roles"):  # where each document shows its id
        documents = [
            document if document.doc_id is not None else replace(document, doc_id=str(i))
            for i, document in enumerate(documents)
        ]
    messages, documents = list(messages), list(documents)
    sentences: Mapping[str, tuple[Sentence, ...]] = {}
    if boundaries:
        messages, documents, sentences = number_sentences(boundaries, messages, documents)
    if contract.docs_as_message is not None:
        messages = _as_messages(contract.docs_as_message, documents) + messages
        documents = []
    if contract.instruction is not None:
        values = dict(arguments)
        if messages:
            values["last_message"] = messages[-1].content
        elif "last_message" in contract.instruction_fields:
            raise _no_message(contract, "the instruction quotes the last message")
        if quote is not None:
            values = {name: quote(value) for name, value in values.items()}
        messages.append(Message("user", fill(contract.instruction, values, contract.source)))
    return Request(
        messages=tuple(messages),
        documents=tuple(documents),
        parameters=contract.parameters,
        response_format=contract.response_format,
        top_logprobs=TOP_LOGPROBS if contract.needs_logprobs else 0,
        sentences=sentences,
    )


def _no_message(contract: Contract, why: str) -> InputError:
    return InputError(
        f"{contract.source}: {why}, but there is no message; give the conversation that it is about"
    )


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


@dataclass(frozen=True)
class Outcome:
    """What an intrinsic answers: a JSON value; and the tokens whose probabilities went into it, in
    the order of the rules.

    shares  the probabilities of the categories of a likelihood rule, by the place that it weighed
    unread  beginnings of replies, in tokens, after which categories part that begin alike, but
            what comes next is not known; the likeliest first
    """

    value: JsonValue
    used: tuple[TokenLogprob, ...] = ()
    unread: tuple[Tokens, ...] = ()
    shares: Mapping[Place, tuple[float, ...]] = field(default_factory=dict)


@checked
def transform(
    contract: Contract,
    text: str,
    logprobs: Sequence[TokenLogprob] | None,
    request: Request,
    *,
    max_tokens: int | None = None,
    further: Further | None = None,
    temperatures: Mapping[str, float] | None = None,
) -> Outcome:
    """What `text`, the reply to `request`, means by the contract.

    `logprobs` are the reply's tokens, each with its `request.top_logprobs` likeliest alternatives
    where the contract needs them, else None will do; those behind the text, such as an end token,
    are passed over. `max_tokens` is the
    limit that the reply had, for messages (None: the contract's). `further` has what can come after
    the beginnings that an earlier outcome left unread. `temperatures`, by type of decision, divide
    the log-probabilities of categories: two that stand for 1 and 0 are a "noul", others a "choice".

    Raises OutputError if the reply is not what the contract says: no JSON, cut off, of another
    shape, with a sentence number that was not given. Raises InputError if log-probabilities are
    needed and missing, or are those of another text.
    """
    source = f"{contract.source}: the reply"
    if contract.logprobs_workaround and logprobs is not None:
        final = final_channel(logprobs)
        if final is not None:
            logprobs, text = final, "".join(token.text for token in final)
    if contract.free_text:
        return Outcome(text)
    limit = contract.max_tokens if max_tokens is None else max_tokens
    value, places = parse(text, source, limit, contract.choices)
    tokens = logprobs if contract.needs_logprobs else None
    if tokens is not None:
        check_spelling(tokens, text, source)
    known = (further or {}, temperatures or {})
    reply = Reply(source, text, value, places, tokens, request.sentences, *known)
    for rule in contract.transformations:
        value = rule.apply(value, reply)
        reply.check(value, rule.name)
    unread = sorted(reply.unread, key=lambda path: -reply.unread[path])
    return Outcome(value, tuple(reply.used), tuple(unread), reply.shares)


def final_channel(tokens: Sequence[TokenLogprob]) -> Sequence[TokenLogprob] | None:
    """The tokens of the last final channel in OpenAI's Harmony format; None if there is none, or
    nothing in it.

    A server may or may not strip `<|channel|>analysis<|message|>...` from the text, so a contract
    with logprobs_workaround goes by the tokens. Whole tokens are compared: the same characters,
    spelled by ordinary tokens, are not a header.
    """
    texts = [token.text for token in tokens]
    solid = [i for i, text in enumerate(texts) if text.strip()]
    begin = None
    for a, b, c in zip(solid, solid[1:], solid[2:], strict=False):
        if (texts[a], texts[b].strip(), texts[c]) == ("<|channel|>", "final", "<|message|>"):
            begin = c + 1
    if begin is None:
        return None
    ends = ("<|end|>", "<|return|>", "<|end_of_text|>")
    end = next((i for i in range(begin, len(texts)) if texts[i] in ends), len(texts))
    return tokens[begin:end] or None
