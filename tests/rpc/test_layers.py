"""A model whose layers are on two RPC servers says what it says on this machine alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import alora_gguf as ag
from alora_gguf import demo
from tests.support.files import INVOCATION, Files
from tests.support.inside import last_logits
from tests.support.rpc import RpcServer, rpc_servers

# the demo's five, and three of them again, so that eight work on one cache
ADAPTERS = dict(demo.adapter_paths())
ADAPTERS |= {f"{name} too": path for name, path in [*ADAPTERS.items()][:3]}
NEAR = 0.01  # in probability: blocks of weights are multiplied in another order there
DOCUMENT = "The museum opens at nine and closes at five. Tickets cost four euros. " * 8


@pytest.fixture(scope="module")
def servers() -> Iterator[list[RpcServer]]:
    with rpc_servers(2) as servers:
        yield servers


def opened(servers: list[RpcServer], **options: object) -> ag.Model:
    rpc = [each.endpoint for each in servers]
    return ag.Model(demo.base_path(), adapters=ADAPTERS, rpc=rpc, **options)  # type: ignore[arg-type]


def judged(model: ag.Model) -> tuple[list[ag.IntrinsicResult], ag.Stats, ag.Stats]:
    """Eight intrinsics at once after a reply; what the graphs were before, and after."""
    with model, model.chat(documents=[DOCUMENT]) as chat:
        chat.say("When does the museum open?", temperature=0, max_tokens=16)
        chat.invoke_many([*ADAPTERS])
        before = model.stats()
        chat.add(ag.Message("user", "What does a ticket cost?"))
        results = chat.invoke_many([*ADAPTERS])
        return results, before, model.stats()


def test_eight_intrinsics_at_once(servers: list[RpcServer]) -> None:
    """Equal answers; and on the servers, too, nothing is read again and no buffer made anew."""
    with opened([], n_threads=1) as local:
        expected, _, _ = judged(local)
    found, before, after = judged(opened(servers))
    for ours, theirs in zip(found, expected, strict=True):
        said, expected_value = ours.value, theirs.value
        assert said == pytest.approx(expected_value, abs=NEAR)
        assert ours.timings.evaluated == theirs.timings.evaluated < 64
        assert ours.timings.reused == theirs.timings.reused > 128
    assert (after.n_reserves, after.compute_bytes) == (before.n_reserves, before.compute_bytes)


@pytest.mark.parametrize("layers", [1, -1])
def test_logits(servers: list[RpcServer], layers: int, files: Files) -> None:
    """Of the base and of an adapted suffix, with some layers there, or all."""
    rows = []
    for used in ([], servers):
        how = {"rpc": [each.endpoint for each in used], "n_gpu_layers": layers if used else 0}
        with files.model(**how) as model, model.session() as session:
            session.append(DOCUMENT)
            rows.append(last_logits(session))
            session.append(INVOCATION, adapter="sure")
            rows.append(last_logits(session))
    for ours, theirs in zip(rows[2:], rows[:2], strict=True):
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_from_the_command_line(servers: list[RpcServer], tmp_path: Path) -> None:
    conversation = tmp_path / "asked.json"
    said = [{"role": "user", "content": "When does the museum open?"}]
    conversation.write_text(json.dumps({"messages": said, "documents": [{"text": DOCUMENT}]}))
    command = [sys.executable, "-m", "alora_gguf", "run", str(conversation), "--value"]
    command += ["--intrinsic", "answerability", "--intrinsic", "jailbreak"]
    rpc = [word for each in servers for word in ("--rpc", each.endpoint)]
    local, there = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout
        for more in ([], rpc)
    )
    found, expected = json.loads(there), json.loads(local)
    assert found["answerability"] == pytest.approx(expected["answerability"], abs=NEAR)
    assert found["jailbreak"] == pytest.approx(expected["jailbreak"], abs=NEAR)
