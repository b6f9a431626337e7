"""What is asked of every conversation: intrinsics, a reply before them, and what both are known by
when a later run wants to know whether it was asked before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from alora_gguf.chat.asking import MAX_TOKENS
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.gguf.base import BaseFile
from alora_gguf.gguf.fingerprint import BaseFingerprint
from alora_gguf.intrinsics import Contract, load_contract
from alora_gguf.options import GenerateOptions

from .conversations import Entry
from .sources import Sources

_FORMAT = 1  # of what asked() hashes


@dataclass(frozen=True)
class Intrinsic:
    """An intrinsic that is asked: its adapter, read but not loaded, and its contract."""

    name: str
    file: AdapterFile
    contract: Contract

    @property
    def max_tokens(self) -> int:
        """The most tokens of its reply."""
        return self.contract.max_tokens or MAX_TOKENS


@dataclass(frozen=True)
class Plan:
    """What is asked of every conversation.

    base        the model's file
    adapters    the files to load, by name
    intrinsics  in the order they were given
    reply       how the conversation is replied to before they are asked; None: it is not
    reply_file  the adapter that writes the reply; None: the base does
    template    Jinja text that writes conversations; None: the base's own
    """

    base: Path
    adapters: Mapping[str, Path]
    intrinsics: tuple[Intrinsic, ...]
    reply: GenerateOptions | None
    reply_file: AdapterFile | None
    template: str | None

    @classmethod
    def make(
        cls,
        sources: Sources,
        intrinsics: Sequence[str],
        reply: GenerateOptions | None,
        template: str | None = None,
    ) -> Plan:
        """Reads adapters and contracts. Raises AdapterFormatError and ContractError."""
        files = {
            name: AdapterFile.read(path).without_data() for name, path in sources.adapters.items()
        }
        asked = []
        for name in intrinsics:
            beside = sources.contracts.get(name)
            contract = load_contract(files[name] if beside is None else beside)
            asked.append(Intrinsic(name, files[name], contract))
        adapter = None if reply is None else reply.adapter
        return cls(
            sources.base,
            sources.adapters,
            tuple(asked),
            reply,
            None if adapter is None else files[adapter],
            template,
        )

    @property
    def reader(self) -> str | None:
        """The plain LoRA that reads the whole conversation to reply to it; None: the base does."""
        plain = self.reply_file is not None and not self.reply_file.invocation
        return self.reply.adapter if plain and self.reply is not None else None


class Asked:
    """Tells what was asked of a conversation from all else that might be: by its text, the base,
    the adapters' weights, the contracts and the reply's options; not by threads or sizes.
    """

    def __init__(self, plan: Plan) -> None:
        """Reads parts of the base. Raises ModelError."""
        reply = None if plan.reply is None else asdict(plan.reply)
        if reply is not None and plan.reply_file is not None:
            reply["adapter"] = plan.reply_file.identity
        setting = {
            "format": _FORMAT,
            "base": BaseFingerprint.of(BaseFile.read(plan.base)).digest,
            "intrinsics": [
                [each.name, each.file.identity, repr(replace(each.contract, source=""))]
                for each in plan.intrinsics
            ],
            "reply": reply,
            "template": plan.template,
        }
        self._setting = json.dumps(setting, sort_keys=True)

    def of(self, entry: Entry) -> str:
        """The hash of what is asked of `entry`."""
        return hashlib.sha256(f"{self._setting}\n{entry.digest}".encode()).hexdigest()[:32]
