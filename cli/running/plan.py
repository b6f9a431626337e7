"""What is asked of every conversation: base, adapters, contracts, a reply; and what both are known
by when a later run wants to know whether it was asked before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
from alora_gguf.cli.bases import NamedBase
from alora_gguf.cli.calls import Written, read_call, usage
from alora_gguf.cli.options import named_contract, named_path, no_template

import alora_gguf as ag

from .conversations import Conversation

_FORMAT = 2  # of Plan.setting(): 1 had the contracts' reprs, which change with our releases


@dataclass(frozen=True)
class Plan:
    """What is asked of every conversation.

    base       the model's file
    adapters   the files to load, by name
    files      the same, read but not loaded
    contracts  of the intrinsics
    asks       what they are asked, in the order they were given, with the arguments that are the
               same for every conversation
    reply      how the conversation is replied to before they are asked; None: it is not
    template   Jinja text that writes conversations; None: the base's own
    special_tokens_in_text  whether control tokens that conversations quote are such
    """

    base: Path
    adapters: Mapping[str, Path]
    files: Mapping[str, ag.AdapterFile | ag.VectorFile | ag.ClassifierFile]
    contracts: Mapping[str, ag.Contract]
    asks: Sequence[ag.IntrinsicCall]
    reply: ag.GenerateOptions | None
    template: str | None
    special_tokens_in_text: bool = False

    @classmethod
    def make(
        cls,
        base: str | None,
        adapters: Sequence[str],
        contracts: Sequence[str],
        intrinsics: Sequence[str],
        reply: ag.GenerateOptions | None,
        template: str | None = None,
    ) -> Plan:
        """Finds and reads adapters and contracts. `base` is a path or a name of the store,
        `adapters` are NAME=PATH, paths, or names of the store, `contracts` are NAME=PATH,
        `intrinsics` are calls as in calls.py, or names of adapters as they were given. Without a
        base it is the demo's. An adapter that is not among those given is the base's own, or the
        store's.

        Raises click.UsageError, InputError, StoreError, ContractError, AdapterFormatError.
        """
        given = dict[str, str]()
        for name, path in map(named_path, adapters):
            if name in given:
                raise click.UsageError(f"-a: two adapters are named '{name}'; write NAME=PATH")
            given[name] = path
        beside = dict(map(named_contract, contracts))
        writers = _writers(reply)
        calls = [Written(each, each) if each in given else read_call(each) for each in intrinsics]
        asked = list(dict.fromkeys(each.name for each in calls))
        names = list(dict.fromkeys([*asked, *writers]))
        unused = sorted(set(beside) - set(names) - set(given))
        if unused:
            raise click.UsageError(f"--contract is for '{unused[0]}', which is not asked anything")
        named = NamedBase.of(base)
        model, paths = named.path, {name: named.adapter(name, given) for name in names}
        files = {name: ag.read_adapter(path).without_data() for name, path in paths.items()}
        if template is None and ag.BaseFile.read(model).chat_template is None:
            raise no_template(model)
        found = {
            name: ag.load_contract(beside[name]) if name in beside else _own(name, files[name])
            for name in asked
        }
        asks = [_ask(each, found[each.name]) for each in calls]
        for i, each in enumerate(asks):
            if any(each.label == other.label for other in asks[:i]):
                raise click.UsageError(
                    f"--intrinsic {each.label} is given twice; with other arguments it needs an "
                    f"alias: ALIAS={usage(each.name, found[each.name])}"
                )
        return cls(model, paths, files, found, asks, reply, template)

    def calls(self, conversation: Conversation) -> list[ag.IntrinsicCall]:
        """What intrinsics are asked of a conversation. Raises InputError where both say what an
        argument is.
        """
        return [_with(each, conversation.arguments.get(each.label, {})) for each in self.asks]

    @property
    def asked(self) -> tuple[str, ...]:
        """What an answer has a value for: intrinsics, or the reply if there are none."""
        return tuple(each.label for each in self.asks) or ("reply",)

    @property
    def reader(self) -> Mapping[str, float] | None:
        """The plain LoRAs that read the whole conversation to reply to it; None: the base does."""
        writers = _writers(self.reply).items()
        return {each: at for each, at in writers if self.files[each].begins == "start"} or None

    @property
    def template_text(self) -> str:
        """What writes conversations: the Jinja text that was given, or the base's own."""
        return self.template or ag.BaseFile.read(self.base).chat_template or ""

    def tokenizer(self) -> ag.Tokenizer:
        """What says how many tokens a conversation has. Raises ModelError."""
        return ag.Tokenizer(
            self.base,
            template=self.template,
            adapters=self.files,
            contracts=self.contracts,
            special_tokens_in_text=self.special_tokens_in_text,
        )

    def setting(self, tokenizer: ag.Tokenizer) -> str:
        """What is asked, told from all else that might be: by the base, the adapters' weights, the
        contracts' files and the reply's options; not by threads or sizes. Reads parts of the base.
        Raises ModelError.
        """
        reply = None if self.reply is None else asdict(self.reply)
        if reply is not None and self.reply is not None:
            by = {self.files[name].identity: at for name, at in _writers(self.reply).items()}
            plain = isinstance(self.reply.adapter, str)  # as format 2 has it
            reply["adapter"] = next(iter(by)) if plain else by or None
        setting = {
            "format": _FORMAT,
            "base": tokenizer.fingerprint(),
            "intrinsics": [
                [
                    each.label,
                    self.files[each.name].identity,
                    self.contracts[each.name].digest,
                    *([dict(each.arguments)] if each.arguments else ()),
                ]
                for each in self.asks
            ],
            "reply": reply,
            "template": self.template,
            "special_tokens_in_text": self.special_tokens_in_text,
        }
        return json.dumps(setting, sort_keys=True)


def _writers(reply: ag.GenerateOptions | None) -> dict[str, float]:
    """The adapters that write the reply, and their scales."""
    by = None if reply is None else reply.adapter
    return {} if by is None else {by: 1.0} if isinstance(by, str) else dict(by)


def _ask(each: Written, contract: ag.Contract) -> ag.IntrinsicCall:
    return ag.IntrinsicCall(each.name, each.arguments_for(contract), alias=each.alias)


def _with(call: ag.IntrinsicCall, arguments: Mapping[str, str]) -> ag.IntrinsicCall:
    if twice := sorted(call.arguments.keys() & arguments.keys()):
        raise ag.InputError(
            f"arguments: {twice[0]} of {call.label} is given by --intrinsic as well; leave it out "
            "of one of them"
        )
    return replace(call, arguments={**call.arguments, **arguments})


def _own(name: str, file: ag.AdapterFile | ag.VectorFile | ag.ClassifierFile) -> ag.Contract:
    if isinstance(file, ag.VectorFile):
        raise ag.ContractError(
            f"{file.path}: is a steering vector, which is not asked anything; --reply --steer "
            f"{name}=1 writes a reply that it steers"
        )
    if file.io_yaml is None:
        raise ag.ContractError(
            f"{file.path}: holds no contract (alora.io_yaml), which says how '{name}' is asked; "
            f"give one with --contract {name}=io.yaml, or convert the adapter again with its "
            "io.yaml beside it"
        )
    return ag.load_contract(file)
