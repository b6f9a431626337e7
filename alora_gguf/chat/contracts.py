"""The contracts of a model's adapters: those in their files, or others that a program gives."""

from __future__ import annotations

import os

from alora_gguf.engine.bank import Bank
from alora_gguf.gguf.adapter import AdapterFile
from alora_gguf.intrinsics import Contract, load_contract


class Contracts:
    """By the names of loaded adapters; for any thread."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank
        self._known: dict[str, tuple[str | None, Contract]] = {}  # of whose weights: None: any

    def adapter(self, name: str) -> AdapterFile:
        """A loaded adapter. Raises UnknownAdapterError, naming those that are loaded."""
        return self._bank.find(name)

    def of(self, name: str) -> Contract:
        """What set() gave, or else what is in the adapter's file. Raises UnknownAdapterError,
        ContractError if there is none or it is malformed.
        """
        file = self.adapter(name)
        given = self._known.get(name)
        if given is None or given[0] not in (None, file.identity):
            given = self._known[name] = (file.identity, Contract.of_adapter(file))
        return given[1]

    def set(self, name: str, contract: Contract | str | os.PathLike[str]) -> None:
        """Gives an adapter another contract until forget(). Raises UnknownAdapterError,
        ContractError.
        """
        _ = self.adapter(name)
        found = contract if isinstance(contract, Contract) else load_contract(contract)
        self._known[name] = (None, found)

    def forget(self, name: str) -> None:
        """Drops what set() gave; for an adapter that is unloaded."""
        self._known.pop(name, None)
