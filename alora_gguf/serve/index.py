"""What makes mellea take this server for a Granite Switch: an index of the adapters and their
contracts, in a directory.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import alora_gguf as ag
from alora_gguf.intrinsics import index

from .service import Service


def write_index(service: Service, directory: Path) -> list[str]:
    """Writes adapter_index.json and io_configs/ for the adapters that have contracts; returns why
    others are left out. What was there under these names is replaced. Raises InputError if it
    cannot be written.
    """
    entries, left = [], []
    for name, served in service.adapters.served.items():
        try:
            text = _text(service.model, served.loaded)
        except ag.AloraError as error:
            left.append(f"{name}: {error}")
            continue
        entries.append(index.Entry(name, served.kind, text))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        index.write_index(directory, service.name, entries)
    except OSError as error:
        where, why = error.filename or directory, error.strerror or error
        raise ag.InputError(f"{where}: cannot be written: {why}") from error
    return left


def program(service: Service, url: str, directory: Path) -> str:
    """The Python that uses the index."""
    return (
        "from mellea.backends.openai import OpenAIBackend\n\n"
        "backend = OpenAIBackend(\n"
        f"    model_id={service.name!r}, base_url={url + '/v1'!r}, api_key={_key(service)},\n"
        f"    load_embedded_adapters=True, adapter_source={str(directory)!r},\n"
        ")\n"
    )


def _key(service: Service) -> str:
    return '"none"' if service.settings.api_key is None else 'os.environ["ALORA_API_KEY"]'


def _text(model: ag.Model, name: str) -> str:
    """A contract's text, as mellea can read it. Raises ContractError."""
    contract, own = model.contract(name), model.adapter(name).io_yaml
    index.check_readable(contract)
    if own is not None and hashlib.sha256(own.encode()).hexdigest() == contract.digest:
        return own
    try:
        return Path(contract.source).read_text(encoding="utf-8")
    except OSError as error:
        raise ag.ContractError(f"{contract.source}: cannot be read: {error}") from error
