"""An intrinsic's contract, its io.yaml: read strictly, so that a mistake shows when it is loaded.

docs/intrinsics.md describes the fields.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from alora_gguf._kinds import checked
from alora_gguf.errors import ContractError, MissingFileError
from alora_gguf.files import read_small
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.header import GGUFHeader, read_header
from alora_gguf.gguf.parser import ValueType

from .fields import ABOUT, FIELDS
from .records import Likelihood
from .reply import JsonValue
from .rules import Rule, read_rules
from .yaml_file import MAX_BYTES, read_yaml

IO_YAML: Final = "io.yaml"
_KEY: Final = "alora.io_yaml"
REQUIRED: Final = ("model", "response_format", "transformations")
OPTIONAL: Final = (
    "name",
    "instruction",
    "parameters",
    "sentence_boundaries",
    "docs_as_message",
    "logprobs_workaround",
)


class _Frozen(dict[str, Any]):
    """A dict that cannot be changed, but compared, copied and pickled."""

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("a contract cannot be changed")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[_Frozen], tuple[dict[str, Any]]]:
        return _Frozen, (dict(self),)


@checked
@dataclass(frozen=True, kw_only=True)
class Contract:
    """What an intrinsic expects and answers.

    source               stands for the contract in messages, such as its file's path
    name, model          what the file says; None if it does not
    response_format      the JSON Schema of replies; None if there is none
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
    digest               SHA-256 of the text it was read from; "" if it was not read
    """

    source: str
    name: str | None = None
    model: str | None = None
    response_format: Mapping[str, JsonValue] | None = field(default=None, hash=False)
    transformations: tuple[Rule, ...] = ()
    instruction: str | None = None
    instruction_fields: tuple[str, ...] = ()
    parameters: Mapping[str, JsonValue] = field(default_factory=_Frozen, hash=False)
    sentence_boundaries: Mapping[str, str] | None = field(default=None, hash=False)
    docs_as_message: Literal["string", "json", "roles"] | None = None
    logprobs_workaround: bool = False
    judges: Literal["question", "answer"] | None = None
    good: Literal["high", "low"] | None = None
    digest: str = field(default="", compare=False, repr=False)

    @classmethod
    def parse(cls, text: str | bytes, source: str = IO_YAML) -> Contract:
        """The contract that an io.yaml says. Raises ContractError with the line of a mistake."""
        found = read_yaml(text, source).fields(REQUIRED, OPTIONAL, "a contract")
        given = {
            name: FIELDS[name](item)
            for name, item in found.items()
            if name in FIELDS and not item.is_null
        }
        rules = read_rules(found["transformations"], given.get("sentence_boundaries", ()))
        instruction, instruction_fields = given.pop("instruction", (None, ()))
        for name, value in given.items():
            given[name] = _Frozen(value) if isinstance(value, dict) else value
        # a note to us, which mellea and servers pass over: it refuses unknown fields of a contract
        schema = given.get("response_format")
        about = {} if schema is None else schema.get(ABOUT, {})
        if schema is not None:
            given["response_format"] = _Frozen({k: v for k, v in schema.items() if k != ABOUT})
        return cls(
            source=source,
            transformations=rules,
            instruction=instruction,
            instruction_fields=instruction_fields,
            judges=about.get("judges"),
            good=about.get("good"),
            digest=hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest(),
            **given,
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Contract:
        """The contract in a file, or in the io.yaml of a directory.

        Raises MissingFileError if there is none, ContractError if it is malformed.
        """
        file = Path(path)
        if file.is_dir():
            file = file / IO_YAML
            if not file.exists():
                raise MissingFileError(
                    f"{path}: has no {IO_YAML}; give an adapter's own directory, such as "
                    "<library>/<intrinsic>/<model>/alora, or the file itself"
                )
        data = read_small(file, MAX_BYTES, what="contract's file", error=ContractError)
        return cls.parse(data, str(file))

    @classmethod
    def of_adapter(cls, adapter: AdapterFile) -> Contract:
        """The contract that the converter put into an adapter's file, as it was when the adapter
        was read. Raises ContractError if there is none.
        """
        if adapter.io_yaml is None:
            raise _no_contract(adapter.path)
        return cls.parse(adapter.io_yaml, f"{adapter.path}({IO_YAML})")

    @classmethod
    def _of_header(cls, header: GGUFHeader) -> Contract:
        if _KEY not in header.metadata:
            raise _no_contract(header.name)
        if header.types[_KEY] is not ValueType.STRING:
            found = header.types[_KEY].name.lower()
            raise ContractError(
                f"{header.name}: {_KEY} must be a string, but it is {found}; convert the adapter "
                "again"
            )
        return cls.parse(header.string(_KEY), f"{header.name}({IO_YAML})")

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
        return found if isinstance(found, dict) else {}


@checked
def load_contract(source: str | os.PathLike[str] | AdapterFile) -> Contract:
    """The contract of an adapter: of its GGUF or AdapterFile, or an io.yaml or a directory with it.

    Raises ContractError if there is none or if it is malformed, FileFormatError for a damaged GGUF.
    """
    if not isinstance(source, (str, os.PathLike)):
        return Contract.of_adapter(source)
    path = Path(source)
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return Contract._of_header(read_header(path))
    return Contract.read(path)


def _no_contract(file: str | os.PathLike[str]) -> ContractError:
    return ContractError(
        f"{os.fspath(file)}: holds no contract ({_KEY}); convert the adapter again with its "
        f"{IO_YAML} beside it, or give the contract as a file"
    )
