"""What is served: the base and its adapters, as OpenAI, vLLM and llama-server list them; loading
and unloading; and what the cache holds.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import alora_gguf as ag

from . import fields
from .adapters import Served
from .service import VERSION, Service, service_of
from .streams import answer


async def models(request: Request) -> Response:
    """GET /v1/models."""
    service = service_of(request)
    base = {
        **_entry(service.name, service.opened, None),
        "root": service.name,
        "parent": None,
        "max_model_len": service.model.n_ctx,
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text", "decisions"]},
    }
    served = service.adapters.served.values()
    data = [base, *(_of(service, each) for each in served)]
    # TypeSafe's clients look for names with dates, in a list of their own
    models = [
        {
            "name": each["id"],
            "description": "a base"
            if each["parent"] is None
            else f"an adapter of {each['parent']}",
            "release_date": time.strftime("%Y-%m-%d", time.gmtime(each["created"])),
        }
        for each in data
    ]
    return answer({"object": "list", "data": data, "models": models})


async def model(request: Request) -> Response:
    """GET /v1/models/NAME."""
    service, name = service_of(request), request.path_params["name"]
    whom = service.adapters.asked(name)
    if whom.name is None:
        return answer(_entry(service.name, service.opened, None))
    return answer(_of(service, service.adapters.served[whom.name]))


def _entry(name: str, created: int, parent: str | None) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "alora-gguf",
            "parent": parent}  # fmt: skip


def _of(service: Service, served: Served) -> dict[str, Any]:
    return {
        **_entry(f"{service.name}:{served.name}", served.created, service.name),
        "root": served.file_name,
        "alora": about(service, served),
    }


def about(service: Service, served: Served) -> dict[str, Any]:
    """What a client has to know of an adapter to use it."""
    file, model = served.file, service.model
    found: dict[str, Any] = {
        "name": served.name,
        "kind": served.kind,
        "sha256": file.identity,
        "generation": served.generation,
        "rank": file.rank,
        "invocation": {
            "tokens": list(file.invocation),
            "text": model.detokenize(file.invocation, special=True) if file.invocation else None,
        },
        "begins": file.begins,
        "intrinsic": False,
        "arguments": [],
    }
    if isinstance(file, ag.VectorFile):
        part = file.parts[0]
        found |= {"operation": part.operation, "hook": part.hook, "layers": list(file.layers)}
    elif not isinstance(file, ag.Combination) and file.labels:
        found["labels"] = list(file.labels)
    try:
        contract = model.contract(served.loaded)
    except ag.AloraError as error:
        if file.io_yaml is not None:
            found["contract_error"] = service.shown(str(error))
        return found
    return {
        **found,
        "intrinsic": True,
        "arguments": list(contract.arguments),
        "judges": contract.judges,
        "good": contract.good,
        "response_format": contract.response_format,
    }


async def adapters(request: Request) -> Response:
    """GET /v1/adapters: those that are served, and the files that others can be loaded from."""
    service = service_of(request)
    served = service.adapters.served.values()
    files = await ag.aio.call(service.adapters.loadable)
    return answer(
        {
            "object": "list",
            "data": [about(service, each) for each in served],
            "loading": files is not None,
            "files": files or [],
        }
    )


async def lora_adapters(request: Request) -> Response:
    """GET /lora-adapters, llama-server's: the ids that `lora` may name. None is on by itself."""
    adapters = service_of(request).adapters
    return answer(
        [
            {"id": adapters.id_of(name), "name": name, "path": each.file_name, "scale": 0.0}
            for name, each in adapters.served.items()
        ]
    )


class LoadRequest(msgspec.Struct):
    """vLLM's."""

    lora_name: str
    lora_path: str


class UnloadRequest(msgspec.Struct):
    """vLLM's."""

    lora_name: str


async def load(request: Request) -> Response:
    """POST /v1/load_lora_adapter."""
    service = service_of(request)
    body = await fields.read(request, LoadRequest)
    served = await ag.aio.call(service.adapters.load, body.lora_name, body.lora_path)
    return answer(
        {
            "message": f"Success: LoRA adapter '{body.lora_name}' added successfully.",
            "alora": about(service, served),
        }
    )


async def unload(request: Request) -> Response:
    """POST /v1/unload_lora_adapter."""
    service = service_of(request)
    body = await fields.read(request, UnloadRequest)
    await ag.aio.call(service.adapters.unload, body.lora_name)
    return answer({"message": f"Success: LoRA adapter '{body.lora_name}' removed successfully."})


async def cache(request: Request) -> Response:
    """GET /v1/cache: what the cells hold, and who computed them."""
    service = service_of(request)
    report = await ag.aio.call(service.model.cache_report)
    names = {each.loaded: name for name, each in service.adapters.served.items()}
    found = asdict(report)
    for holder, held in zip(found["holders"], report.holders, strict=True):
        holder["why"] = held.why
        for span in holder["spans"] or ():
            span["adapter"] = names.get(span["adapter"], span["adapter"])
    return answer(found)


async def health(request: Request) -> Response:
    """GET /health: "ready" with 200; "loading", "draining" or "lost" with 503."""
    service = service_of(request)
    desk = service.desk
    body = {"status": service.state, "running": desk.running, "waiting": desk.waiting}
    return answer(body, 200 if service.state == "ready" else 503)


async def ping(_request: Request) -> Response:
    """GET /ping."""
    return PlainTextResponse("pong")


async def version(_request: Request) -> Response:
    """GET /version, as vLLM has it."""
    return answer({"version": VERSION, "alora_gguf": ag.__version__})
