"""adapter_index.json: by which mellea finds adapters and the contracts of their answers. The format
is Granite Switch's, whose checkpoints hold one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from alora_gguf.errors import ContractError

from .contract import Contract

FILE_NAME: Final = "adapter_index.json"


class Entry(NamedTuple):
    """An adapter: its name, "alora" or "lora", and the text of its io.yaml."""

    name: str
    technology: str
    contract: str


def check_readable(contract: Contract) -> None:
    """Raises ContractError for a contract that mellea cannot read."""
    if contract.choices:
        raise ContractError("its replies are bare words, which mellea cannot read")
    if contract.free_text:
        raise ContractError("its contract is a name alone, which mellea refuses")


def write_index(directory: Path, model: str, entries: Sequence[Entry]) -> None:
    """Writes the index, and io_configs/ with the contracts; entries of one name share theirs.
    Raises OSError.
    """
    listed = []
    for each in entries:
        path = f"io_configs/{each.name}/io.yaml"
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(each.contract, encoding="utf-8")
        listed.append({"adapter_name": each.name, "io_config": path, "technology": each.technology})
    text = json.dumps({"model": model, "adapters": listed}, indent=2) + "\n"
    (directory / FILE_NAME).write_text(text, encoding="utf-8")
