"""Commands and the server with a classifier's head: shown, asked, and refused where it is no use
to anybody.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from alora_gguf.cli.inspect import command as inspect
from click.testing import CliRunner

import alora_gguf as ag
from alora_gguf import demo
from tests.support.classifiers import LABELS, convert_head, write_head
from tests.support.running import Runner, talk
from tests.support.serving import serving

TABLE = """\
{path}: classifier's head, 4.1 kB
  name           safety
  architecture   granite
  labels         safe, unsafe, neutral
  reads          states of 256 values
  invocation     '<|start_of_role|>'
"""


@pytest.fixture
def head(tmp_path: Path) -> Path:
    write_head(tmp_path / "head")
    return convert_head(tmp_path / "head", tmp_path / "safety.gguf").out


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(monkeypatch, capsys)


def test_inspect(head: Path) -> None:
    shown = CliRunner().invoke(inspect, [str(head), "-m", str(demo.base_path())]).output
    assert shown.startswith(TABLE.format(path=head))
    assert "problems" not in shown
    told = json.loads(CliRunner().invoke(inspect, [str(head), "--json"]).output)
    assert told["labels"] == list(LABELS)


def test_run(run: Runner, head: Path) -> None:
    given = talk("When does the Bomel library open?", ())
    outcome = run("-a", f"safety={head}", "--intrinsic", "safety", given=given)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.json["results"]["safety"]["value"] in LABELS
    refused = run("-a", f"safety={head}", "--reply", "--reply-adapter", "safety", given=given)
    assert refused.status != 0
    assert "neither reads a conversation nor replies" in refused.out + refused.err


def test_a_server(head: Path) -> None:
    def load() -> ag.Model:
        adapters = {"safety": head, "jailbreak": demo.adapter_path("jailbreak")}
        return ag.Model(demo.base_path(), adapters=adapters, n_threads=1)

    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}]}
    with serving(load) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        (about,) = [
            each["alora"]
            for each in client.get("/v1/models").json()["data"]
            if each["id"].endswith("safety")
        ]
        assert (about["kind"], about["labels"]) == ("classifier", list(LABELS))
        assert about["intrinsic"] is True
        names = {"intrinsics": ["safety", "jailbreak"]}
        both = client.post("/v1/chat/completions", json={**asked, **names}).json()
        assert json.loads(both["choices"][0]["message"]["content"])["safety"] in LABELS
        refused = client.post("/v1/chat/completions", json={**asked, "adapter": "safety"})
        assert refused.status_code == 400
        assert "neither reads a conversation nor replies" in refused.text
