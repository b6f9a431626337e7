"""Asking mellea what we ask ourselves, and comparing the two."""

from __future__ import annotations

import math
from typing import Any

from alora_gguf.intrinsics import Contract, Request


def question(messages: list[dict[str, Any]], documents: list[dict[str, Any]]) -> dict[str, Any]:
    """A chat completion request; without documents it has no extra_body."""
    return {"messages": messages} | ({"extra_body": {"documents": documents}} if documents else {})


def wire_tokens(rows: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    if rows is None:
        return None
    return [
        {
            "token": row["token"],
            "logprob": row["logprob"],
            "top_logprobs": [{"token": t, "logprob": lp} for t, lp in row["top"]],
        }
        for row in rows
    ]


def as_wire(contract: Contract, request: Request) -> dict[str, Any]:
    """Our request as mellea writes its own."""
    parameters = dict(request.parameters)
    extra = dict(parameters.pop("extra_body", None) or {})  # type: ignore[call-overload]
    if request.documents:
        extra["documents"] = [
            {k: getattr(d, k) for k in ("text", "title", "doc_id") if getattr(d, k) is not None}
            for d in request.documents
        ]
    if request.response_format is not None:
        extra["structured_outputs"] = {"json": dict(request.response_format)}
    out = {
        "messages": [{"content": m.content, "role": m.role} for m in request.messages],
        **parameters,
    }
    if request.want_logprobs:
        out |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if contract.model is not None:
        out["model"] = contract.model
    return out | ({"extra_body": extra} if extra else {})


def assert_same(ours: Any, theirs: Any, path: str = "") -> None:
    """Equal in everything, numbers within 1e-12."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        assert list(ours) == list(theirs), path  # the order of fields, too
        for key in ours:
            assert_same(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list):
        assert len(ours) == len(theirs), path
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{path}[{i}]")
    elif isinstance(ours, float) or isinstance(theirs, float):
        assert math.isclose(ours, theirs, rel_tol=0, abs_tol=1e-12), path
    else:
        assert type(ours) is type(theirs), path
        assert ours == theirs, path
